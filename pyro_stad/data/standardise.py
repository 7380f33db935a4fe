r"""Whitening: the affine map between the sample and coordinates of mean 0 and covariance I.

:math:`\theta = \mu + L\, x` with :math:`L L^T` the covariance of the sample. Its log-determinant,
:math:`\sum_i \log L_{ii}`, lives here and nowhere else. Whitening, rather than scaling each
coordinate, makes the law at the noise end match its Gaussian to second order on every path, and
makes a Gaussian sample exactly representable by an untrained network. Events with a shape, such as
images, are scaled number by number: their covariance has too many of them.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad._context import full_precision
from pyro_stad._rows import RowProduct
from pyro_stad.errors import SampleWarning

__all__ = [
    "AbstractWhitening",
    "Rescale",
    "Standardise",
    "StandardiseRows",
    "affine",
    "check_dependence",
    "real_events",
    "spread_of",
    "whitening",
]

# Smallest eigenvalues of the correlation: of columns that are dependent, and of some that may be.
_WORST_CORRELATION, _DOUBTFUL_CORRELATION = 1e-10, 5e-6
_OUTLYING = 50.0
_MOST_FULL = 512


def real_events(dims: int) -> constraints.Constraint:
    """Return the constraint of real events of so many dimensions."""
    if dims == 1:
        return constraints.real_vector
    return constraints.independent(constraints.real, dims)


class AbstractWhitening(Transform):
    """An affine bijection between whitened events and the sample's."""

    bijective = True
    loc: Tensor
    scale_tril: Tensor
    log_det: Tensor

    def with_cache(self, cache_size: int = 1) -> AbstractWhitening:
        """Return self: the map is too cheap to cache."""
        return self

    def outer_slopes(self, slopes: Tensor) -> Tensor:
        """Return derivatives by theta from those by x, of the same shape."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_det.expand(x.shape[: x.ndim - self.loc.ndim])


class Rescale(AbstractWhitening):
    r"""The bijection :math:`\theta = \mu + s x`, number by number, on events of any shape.

    Arguments:
        loc: mean, of the shape of an event.
        scale: standard deviations, of the same shape, or one number for all.

    Raises:
        ValueError: if a scale is not positive and finite.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError("scales must be positive and finite")
        self.loc, self.scale_tril = loc, scale
        self.domain = self.codomain = real_events(loc.ndim)
        self.log_det = scale.log().expand(loc.shape).sum()

    @full_precision
    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale_tril * x

    @full_precision
    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale_tril

    def outer_slopes(self, slopes: Tensor) -> Tensor:
        return slopes / self.scale_tril


def affine(loc: Tensor, scale: Tensor) -> AbstractWhitening:
    """Return the whitening of a Cholesky factor ``(D, D)``, of scales, or of one scale."""
    if loc.ndim == 1 and scale.ndim == 2:
        return Standardise(loc, scale)
    if scale.shape in (loc.shape, torch.Size()):
        return Rescale(loc, scale)
    raise ValueError(
        f"a scale must be a number, have the shape of an event, {tuple(loc.shape)}, or be the "
        f"Cholesky factor of vectors; got {tuple(scale.shape)}"
    )


class Standardise(AbstractWhitening):
    r"""The affine bijection :math:`\theta = \mu + L x` on vectors.

    Arguments:
        loc: mean with shape ``(D,)``.
        scale_tril: lower Cholesky factor with shape ``(D, D)``.

    Raises:
        ValueError: if ``scale_tril`` is no such factor, or has no inverse in its precision.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = loc, scale_tril
        eye = torch.eye(len(loc), dtype=torch.float64, device=loc.device)
        # Stored: a triangular solve per call costs more than the product at batch size one.
        inverse_tril = torch.linalg.solve_triangular(scale_tril.double(), eye, upper=False).to(loc)
        self.log_det = torch.diagonal(scale_tril).log().sum()
        _check_factor(scale_tril, inverse_tril)
        self._scaled, self._unscaled = RowProduct(scale_tril), RowProduct(inverse_tril)
        self._slopes = RowProduct(inverse_tril.mT)

    @full_precision
    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self._scaled(x)

    @full_precision
    def _inverse(self, y: Tensor) -> Tensor:
        return self._unscaled(y - self.loc)

    def outer_slopes(self, slopes: Tensor) -> Tensor:
        return self._slopes(slopes)


class StandardiseRows(AbstractWhitening):
    r"""The bijections :math:`\theta_i = \mu_i + L_i x_i`, one for each row of a batch.

    Arguments:
        loc: means with shape ``(*batch, D)``.
        scale_tril: lower Cholesky factors with shape ``(*batch, D, D)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = loc, scale_tril
        self.log_det = torch.diagonal(scale_tril, dim1=-2, dim2=-1).log().sum(-1)

    @full_precision
    def _call(self, x: Tensor) -> Tensor:
        # By products and sums: a matrix product of one column rounds as the batch is large.
        return self.loc + (self.scale_tril * x[..., None, :]).sum(-1)

    @full_precision
    def _inverse(self, y: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(y.shape, self.loc.shape)
        tril = self.scale_tril.expand(*shape, shape[-1])
        centred = (y - self.loc).expand(shape)
        return torch.linalg.solve_triangular(tril, centred[..., None], upper=False)[..., 0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_det.expand(torch.broadcast_shapes(x.shape[:-1], self.log_det.shape))


def _check_factor(scale_tril: Tensor, inverse_tril: Tensor) -> None:
    """Refuse what would be taken for a bijection and is none, or another one."""
    if not bool((torch.diagonal(scale_tril) > 0).all()):
        raise ValueError("`scale_tril` must have a positive diagonal")
    if bool(scale_tril.triu(1).any()):
        raise ValueError("`scale_tril` must be lower triangular, with zeros above the diagonal")
    if not bool(torch.isfinite(scale_tril).all() & torch.isfinite(inverse_tril).all()):
        raise ValueError("`scale_tril` and its inverse must be finite")


def whitening(
    values: Tensor, weights: Tensor | None, names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Return the mean and the lower Cholesky factor of the covariance, in float64.

    Of more than 512 columns, the standard deviations alone: their covariance has more numbers than
    samples can tell.

    Arguments:
        values: sample with shape ``(N, D)``.
        weights: weights with shape ``(N,)`` or None.
        names: names of the columns, for the error message.

    Raises:
        ValueError: if columns are linearly dependent.

    Warns:
        SampleWarning: if they are so but for rounding.
    """
    loc, scale = spread_of(values, weights)
    if len(loc) > _MOST_FULL:
        return loc, scale
    # Correlations first: parameters in physical units differ by many orders of magnitude.
    correlation = _correlation((values.double() - loc) / scale, weights)
    _check_correlation(correlation, names)
    return loc, scale[:, None] * torch.linalg.cholesky(correlation)


def check_dependence(values: Tensor, weights: Tensor | None, names: tuple[str, ...]) -> None:
    """Refuse columns that are linearly dependent, before a bijection hides it.

    The parts of a whole, each between zero and one, lie in a plane; their logits lie on a curved
    surface, whose covariance looks sound. Columns that a few rows dominate are left out: they are
    nearly dependent by those rows alone.

    Arguments and what is raised: as for ``whitening``.
    """
    loc, scale = spread_of(values, weights)
    unit = (values.double() - loc) / scale
    plain = unit.abs().amax(0) < _OUTLYING
    chosen = tuple(name for name, here in zip(names, plain.tolist()) if here)
    if len(chosen) > 1:
        _check_correlation(_correlation(unit[:, plain], weights), chosen)


def _correlation(unit: Tensor, weights: Tensor | None) -> Tensor:
    return unit.mT @ (_share(unit, weights)[:, None] * unit)


def _check_correlation(correlation: Tensor, names: tuple[str, ...]) -> None:
    smallest, directions = torch.linalg.eigh(correlation)
    if not smallest[0] > _WORST_CORRELATION:
        raise ValueError(
            f"columns {_involved(directions, names)} are linearly dependent, so that the sample "
            "has no density; drop one of them and compute it in the model"
        )
    if smallest[0] < _DOUBTFUL_CORRELATION:
        warnings.warn(
            f"columns {_involved(directions, names)} are linearly dependent but for "
            f"{smallest[0].sqrt().item():.1g} of their spread, as rounded parts of a whole are; "
            "drop one of them, unless that is what they are to be",
            SampleWarning,
            stacklevel=4,
        )


def spread_of(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of columns, each ``(D,)``, in float64.

    No square overflows or vanishes, whatever the scale; and what an offset has in common with the
    first row is not rounded away.

    Arguments:
        values: sample with shape ``(N, D)``.
        weights: weights with shape ``(N,)`` or None.
    """
    values, share = values.double(), _share(values, weights)
    unit = _power_of_two(values.abs().amax(0))
    scaled = values / unit
    apart = scaled - scaled[0]
    mean = share @ apart
    centred = apart - mean
    size = _power_of_two(centred.abs().amax(0))
    scale = (share @ (centred / size).square()).sqrt() * size
    return (scaled[0] + mean) * unit, scale * unit


def _share(values: Tensor, weights: Tensor | None) -> Tensor:
    share = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    return (share / share.sum()).to(values.device)


def _power_of_two(size: Tensor) -> Tensor:
    """Return a power of two near ``size``, to divide by without rounding; one for zero."""
    exponent = torch.frexp(size).exponent - 1
    return torch.where(size > 0, torch.ldexp(torch.ones_like(size), exponent), 1.0)


def _involved(directions: Tensor, names: tuple[str, ...]) -> list[str]:
    """Return the columns that make up the direction with the least variance."""
    return [name for name, part in zip(names, directions[:, 0].tolist()) if abs(part) > 0.1]
