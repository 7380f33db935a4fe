r"""Trace estimators with frozen probes: Hutchinson, Hutch++ and XTrace.

For a probe :math:`\omega` with independent signs, :math:`E[\omega^T J \omega] = \mathrm{tr} J` with
standard deviation :math:`\sqrt 2\,\lVert \mathrm{sym} J - \mathrm{diag} J\rVert_F`. Hutch++ takes
the trace exactly on the range of a sketch :math:`J S` and estimates only the rest; XTrace does
so with every probe left out in turn, so that all of them serve both purposes.

References:
    Hutchinson (1989), A Stochastic Estimator of the Trace of the Influence Matrix.
    Meyer, Musco, Musco and Woodruff (2021), Hutch++: Optimal Stochastic Trace Estimation.
    Epperly, Tropp and Webber (2024), XTrace: Making the Most of Every Sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._random import signs
from pyro_stad.divergence.base import AbstractProbedDivergence
from pyro_stad.divergence.exact import Exact
from pyro_stad.fields.base import AbstractField
from pyro_stad.registry import storable

__all__ = ["HutchPlusPlus", "Hutchinson", "XTrace", "shared_probes"]


_MOST_PROBES = 100_000  # more products than any exact trace takes


def _check_probes(divergence: AbstractProbedDivergence, least: int) -> None:
    check_count(divergence.num_probes, "num_probes", least=least, most=_MOST_PROBES)
    # Stored as an int: files can't hold those of numpy.
    object.__setattr__(divergence, "seed", check_seed(divergence.seed))


def shared_probes(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return probes of random signs that share out the coordinates of each row among themselves.

    A probe of random signs has the diagonal of a Jacobian without error, and all pairs of
    coordinates for noise. Shared out at random, only pairs within a share are left:
    :math:`(D/k - 1) / (D - 1)` of one probe's variance where k divides D, less than the
    :math:`1/k` of independent probes; and D of them are the exact trace.

    Returns:
        Probes with shape ``(count, *like.shape)``: the sum of their quadratic forms is the trace.
    """
    size, device = like[0].numel(), like.device
    share = torch.randperm(size, generator=generator, device=device) % count
    mine = share == torch.arange(count, device=device)[:, None, None]
    return (mine * signs(like.flatten(1).shape, generator, like)).unflatten(2, like.shape[1:])


def _flat_products(
    field: AbstractField, t: Tensor, x: Tensor, tangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return velocity and products of directions, ``(K, B or 1, D)``: as many, ``(K, B, D)``."""
    shaped = tangents.reshape(*tangents.shape[:2], *x.shape[1:])
    velocity, products = field.jacobian_products(t, x, shaped)
    return velocity, products.flatten(2)


@storable("divergence", "hutchinson")
@dataclass(frozen=True)
class Hutchinson(AbstractProbedDivergence):
    """Mean of ``num_probes`` quadratic forms; unbiased over seeds.

    Arguments:
        num_probes: number of sign vectors, one Jacobian-vector product each.
        seed: seed of the frozen probes.
    """

    num_probes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_probes(self, 1)

    def passes(self, features: int) -> int:
        return self.num_probes

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        probes = self._signs(self.num_probes, x)[:, None, :]
        velocity, products = _flat_products(field, t, x, probes)
        return velocity, (probes * products).sum(-1).mean(0)


@storable("divergence", "hutch++")
@dataclass(frozen=True)
class HutchPlusPlus(AbstractProbedDivergence):
    """Hutch++: exact on a sketched range, Hutchinson on the rest.

    Arguments:
        num_probes: Jacobian-vector products in all, at least three; a third sketches, a third
            projects, a third probes the rest. From the point where the sketch would span the
            space (``num_probes >= 3 D``) the exact trace is taken.
        seed: seed of the frozen probes.
    """

    num_probes: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        _check_probes(self, 3)

    def passes(self, features: int) -> int:
        return min(3 * (self.num_probes // 3), features)

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        k = self.num_probes // 3
        if k >= field.features:
            return Exact().velocity_and_divergence(field, t, x)
        velocity, sketch = _flat_products(field, t, x, self._sphere(k, x)[:, None, :])
        basis, _ = torch.linalg.qr(sketch.permute(1, 2, 0))  # (B, D, k)
        rest = self._signs(k, x)[:, None, :].expand(k, len(x), -1).permute(1, 2, 0)
        rest = rest - basis @ (basis.mT @ rest)
        directions = torch.cat([basis, rest], dim=-1)
        _, products = _flat_products(field, t, x, directions.permute(2, 0, 1))
        forms = (directions.permute(2, 0, 1) * products).sum(-1)
        return velocity, forms[:k].sum(0) + forms[k:].mean(0)


@storable("divergence", "xtrace")
@dataclass(frozen=True)
class XTrace(AbstractProbedDivergence):
    """XTrace: the exchangeable, leave-one-out form of Hutch++.

    Arguments:
        num_probes: Jacobian-vector products in all, at least two; half sketch, half project.
            From ``num_probes >= 2 D`` on, the exact trace is taken.
        seed: seed of the frozen probes.
    """

    num_probes: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        _check_probes(self, 2)

    def passes(self, features: int) -> int:
        return min(2 * (self.num_probes // 2), features)

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        k = self.num_probes // 2
        if k >= field.features:
            return Exact().velocity_and_divergence(field, t, x)
        probes = self._sphere(k, x)[:, None, :]
        velocity, sketch = _flat_products(field, t, x, probes)
        sketch = sketch.permute(1, 2, 0)  # (B, D, k), columns J omega_i
        basis, triangle = torch.linalg.qr(sketch)
        _, projected = _flat_products(field, t, x, basis.permute(2, 0, 1))
        projected = projected.permute(1, 2, 0)  # J Q
        # Column i of R^{-T}, normalised, is the direction (in the basis) that only probe i
        # contributes; leaving the probe out removes that direction from the range.
        lonely = _lonely_directions(triangle)
        inner = basis.mT @ projected
        range_traces = torch.diagonal(inner, dim1=-2, dim2=-1).sum(-1, keepdim=True) - (
            lonely * (inner @ lonely)
        ).sum(-2)
        omega = probes[:, 0, :].mT.expand_as(basis)
        coefficients = basis.mT @ omega
        coefficients = coefficients - lonely * (lonely * coefficients).sum(-2, keepdim=True)
        rest = omega - basis @ coefficients
        rest_forms = (rest * (sketch - projected @ coefficients)).sum(-2)
        return velocity, (range_traces + rest_forms).mean(-1)


def _lonely_directions(triangle: Tensor) -> Tensor:
    """Return the normalised columns of :math:`R^{-T}`, with a guard for a singular R."""
    diagonal = torch.diagonal(triangle, dim1=-2, dim2=-1)
    floor = torch.finfo(triangle.dtype).eps * diagonal.abs().amax(-1, keepdim=True) + 1e-30
    shift = torch.where(diagonal.abs() < floor, floor, torch.zeros_like(floor))
    eye = torch.eye(triangle.shape[-1], dtype=triangle.dtype, device=triangle.device)
    inverse = torch.linalg.solve_triangular(
        triangle + torch.diag_embed(shift), eye.expand_as(triangle), upper=True
    )
    return torch.nn.functional.normalize(inverse.mT, dim=-2)
