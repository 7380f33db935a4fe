r"""How wrong is a distilled likelihood: measured against the exact trace, and against itself.

With :math:`e = \log\hat p - \log p_{exact}` on the same solver's grid:

- *bias* and *sd* of e over held-out data: the error that NUTS, weights and evidences inherit;
- the *worst* e, over these and over the most suspect of all held-out data and of thousands of own
  draws (:mod:`pyro_stad.calibrate.suspects`);
- the *normaliser* :math:`E_{x\sim flow}[\exp e(x)]`, which is one for a normalised density: the
  flow's own density is exactly normalised, so the surrogate's mass can be measured against it;
- *solver error*: the flow's log-density, with its own divergence, on this grid less that on a grid
  twice as fine; with the exact trace the grid would be off by the same, at D times the price;
- the *Stein residual* :math:`E_p[d + v\cdot S]` at several times, zero for a divergence that is
  right on average and a law within the Stein class; no Jacobian is needed for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import decode, encode
from pyro_stad._joined import log_prob_at, own_draws, parted
from pyro_stad._weights import mean_weight
from pyro_stad.calibrate.suspects import suspects
from pyro_stad.learn.clouds import AbstractCloud, stein_residual
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.flow_ode import FlowODE, exact_twin

__all__ = [
    "LARGEST_LOG",
    "Audit",
    "SteinResidual",
    "audit",
    "exact_log_prob",
    "own_noise",
    "stein_residuals",
]

_STEIN_TIMES = 9
_FEWEST_DRAWS = 500
_LOOKED_AT, _MOST_LOOKED_AT = 3000, 20_000  # own draws, and held-out data
_SUSPECTS = 32  # for each of two reasons
LARGEST_LOG = math.log(torch.finfo(torch.float64).max)


@dataclass(frozen=True)
class SteinResidual:
    """The Stein residual at one time, with its standard error; in units of the divergence."""

    fraction: float
    mean: float
    standard_error: float


@dataclass(frozen=True)
class Audit:
    """Accuracy of a distilled likelihood, in nats.

    Attributes:
        points: number of held-out points.
        bias, sd: mean and standard deviation of the error on held-out points.
        worst: largest absolute error, on these and on the suspects.
        solver_error: standard deviation of the error of the time grid, on held-out points.
        normaliser, normaliser_error: mass of the density, with its standard error.
        stein: Stein residuals from the data end to the noise end.
        log_normaliser: logarithm of the mass, finite where the mass is too large for a number;
            NaN in files of before it was kept.
        highest: largest error above the exact trace, on the same; NaN where it was not kept.
        looked_at: points at which the density itself was looked at.
        suspects: the most suspect of them, at which the exact trace was computed as well.
        noise: standard deviation of the noise of what all this is held against, where the trace
            was sampled: ``sd`` is without it, ``worst`` and ``highest`` are with it.
    """

    points: int
    bias: float
    sd: float
    worst: float
    solver_error: float
    normaliser: float
    normaliser_error: float
    stein: tuple[SteinResidual, ...]
    log_normaliser: float = math.nan
    highest: float = math.nan
    looked_at: int = 0
    suspects: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_count(self.points, "points")
        for name in ("looked_at", "suspects"):
            check_count(getattr(self, name), name, least=0)
        if not self.stein:
            raise ValueError("`stein` must hold a residual at one time at the least; got none")

    @property
    def is_finite(self) -> bool:
        """Whether every error is a number, and not NaN or infinity."""
        found = (self.bias, self.sd, self.worst, self.solver_error)
        return all(map(math.isfinite, (*found, self.normaliser, self.normaliser_error)))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return encode(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> Audit:
        """Return the audit that ``to_dict`` described."""
        return decode(Audit, stored, "audit")

    def mass(self) -> str:
        """Return the normaliser with its error, by its logarithm if it is beyond all numbers."""
        if math.isinf(self.normaliser) and math.isfinite(self.log_normaliser):
            return f"exp({self.log_normaliser:.4g})"
        return f"{self.normaliser:.4g} +- {self.normaliser_error:.2g}"

    def text(self) -> str:
        """Return the audit as a few lines of text."""
        # Not in standard errors: at pure noise both are next to nothing.
        largest = max(self.stein, key=lambda s: abs(s.mean))
        looked = f" (with {self.suspects} suspects of {self.looked_at})" if self.suspects else ""
        against = f"sampled trace (noise {self.noise:.2g} nat)" if self.noise else "exact trace"
        return (
            f"  log_prob less {against}, {self.points} held-out points: "
            f"bias {self.bias:+.3g}, sd {self.sd:.3g}, worst {self.worst:.3g} nat{looked}\n"
            f"  time grid against a finer one: sd {self.solver_error:.3g} nat\n"
            f"  normaliser: {self.mass()}\n"
            f"  Stein residual, in units of the divergence, largest of {len(self.stein)} times: "
            f"{largest.mean:+.2g} +- {largest.standard_error:.2g}"
        )


def exact_log_prob(likelihood: AbstractLikelihood, x: Tensor) -> Tensor:
    """Return the exact log-density of the flow of ``likelihood`` at data ``x``, shape ``(B,)``."""
    with torch.no_grad():
        return log_prob_at(exact_twin(likelihood), x)


def own_noise(
    likelihood: AbstractLikelihood,
    data: Tensor,
    generator: torch.Generator,
    count: int | None = None,
) -> Tensor:
    """Return noise for ``count`` of the flow's own draws: as many as data, but never few.

    Held-out data are what there is; own draws can be had, and a mass known from 80 was off by 0.2.
    """
    points, _ = parted(data, likelihood)
    shape = (count or max(len(data), _FEWEST_DRAWS), *points.shape[1:])
    return torch.randn(shape, generator=generator, dtype=data.dtype, device=data.device)


def audit(
    likelihood: AbstractLikelihood,
    held_out: Tensor,
    cloud: AbstractCloud,
    generator: torch.Generator,
    *,
    exact: Tensor | None = None,
    others: Tensor | None = None,
) -> Audit:
    """Measure the accuracy of ``likelihood``.

    Arguments:
        likelihood: the flow with its divergence.
        held_out: data that the training has not seen, whitened, with shape ``(B, D)``.
        cloud: a law of points with scores, for the Stein residual.
        generator: source of randomness.
        exact: exact log-densities of ``held_out`` on the likelihood's grid, if they are known.
        others: all that the training has not seen, shape ``(N, D)``, if ``held_out`` is a part.
    """
    reference = exact_log_prob(likelihood, held_out) if exact is None else exact
    grid = FlowODE.of(likelihood)
    finer = grid.replace(solver=likelihood.solver.finer())
    noise = own_noise(likelihood, held_out, generator)
    with torch.no_grad():
        grid_error = log_prob_at(grid, held_out) - log_prob_at(finer, held_out)
        context = parted(held_out, likelihood)[1]
        draws = own_draws(likelihood.transport(), noise, context)
        error = log_prob_at(likelihood, held_out) - reference
        ratio = log_prob_at(likelihood, draws) - exact_log_prob(likelihood, draws)
        log_z, relative = mean_weight(ratio)
    stein = stein_residuals(likelihood, cloud, generator, len(held_out))
    off, looked_at = _suspect_error(likelihood, held_out if others is None else others, generator)
    mass = math.exp(log_z) if not log_z > LARGEST_LOG else math.inf
    return Audit(
        points=len(held_out),
        bias=error.mean().item(),
        sd=error.std().item(),
        # Of both at once: a NaN among them is to be seen.
        worst=torch.cat([error, off]).abs().max().item(),
        highest=torch.cat([error, off]).max().item(),
        solver_error=grid_error.std().item(),
        normaliser=mass,
        normaliser_error=relative * mass,
        stein=stein,
        log_normaliser=log_z,
        looked_at=looked_at,
        suspects=len(off),
    )


def _suspect_error(
    likelihood: AbstractLikelihood, data: Tensor, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Return the errors at the most suspect of data and own draws, and how many there were."""
    # Evenly, if they are very many: a second is enough.
    data = data[:: math.ceil(len(data) / _MOST_LOOKED_AT)]
    noise = own_noise(likelihood, data, generator, _LOOKED_AT)
    with torch.no_grad():
        draws = own_draws(likelihood.transport(), noise, parted(data, likelihood)[1])
        points = torch.cat([data, draws])
        found = suspects(likelihood, points, _SUSPECTS)
        return log_prob_at(likelihood, found) - exact_log_prob(likelihood, found), len(points)


def stein_residuals(
    likelihood: AbstractLikelihood, cloud: AbstractCloud, generator: torch.Generator, count: int
) -> tuple[SteinResidual, ...]:
    """Return the Stein residual at several times, by ``count`` pairs of points of a cloud."""
    residuals = []
    fractions = torch.linspace(0.02, 1, _STEIN_TIMES, dtype=torch.float32, device="cpu")
    for fraction in fractions.tolist():
        places = torch.full((count,), fraction, dtype=cloud.like.dtype, device=cloud.like.device)
        points = cloud.at(places, generator)
        mean, error = stein_residual(likelihood.divergence, likelihood.field, points)
        residuals.append(SteinResidual(fraction, mean.item(), error.item()))
    return tuple(residuals)
