r"""The range of numbers: whether the dtype of a prior can hold the columns that it learns.

A prior computes in its own dtype, and takes and gives points in it. A column with mean m can be
told apart there in steps of the spacing h of the floating-point numbers near m. Rounding to them
moves a whitened coordinate by an error of standard deviation :math:`h / (\sqrt{12}\, s)`, with s
the standard deviation of the column, or what the columns before it leave of that; and, with a score
of unit variance, the log-density by as much. It is to be a tenth of what the time grid may be off
by, 0.02 nat, hence :math:`s \geq 150\, h`. A Julian date that varies by minutes is not resolved in
float32, and would be learned as one point.

At the ends of the dtype, :math:`\mu + L x` or the inverse of L would not be finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_stad.data.margins import Margins
from pyro_stad.data.standardise import spread_of

__all__ = ["check_margins", "check_scale", "check_whitening"]

_STEPS = 150
# Draws and trajectories go further than the samples; and L has an inverse of the dtype.
_ROOM = 1e3


def check_scale(
    values: Tensor, weights: Tensor | None, names: tuple[str, ...], dtype: torch.dtype
) -> None:
    """Refuse columns of samples, ``(N, D)`` in float64, that ``dtype`` does not resolve.

    Raises:
        ValueError: for numbers too large or too small, or a spread below the spacing of ``dtype``
            around the mean; the column is named.
    """
    loc, scale = spread_of(values, weights)
    _check_ends(values.abs().amax(0), scale, names, dtype)
    _check_steps(loc, scale, scale, names, dtype)


def check_whitening(
    loc: Tensor, scale_tril: Tensor, names: tuple[str, ...], dtype: torch.dtype
) -> None:
    """Refuse a whitening, in float64, that ``dtype`` can't hold; the column is named.

    Arguments:
        loc: mean with shape ``(D,)``, of the unbounded coordinates.
        scale_tril: Cholesky factor of the covariance, ``(D, D)``, or scales, ``(D,)``.
        names: names of the columns.
        dtype: floating-point type of the prior.

    Raises:
        ValueError: as ``check_scale``.
    """
    if scale_tril.ndim == 1:
        _check_ends(loc.abs() + scale_tril, scale_tril, names, dtype)
        _check_steps(loc, scale_tril, scale_tril, names, dtype)
        return
    largest = scale_tril.abs().amax(1)
    # Divided first: squares overflow where scales do not.
    scale = (scale_tril / largest[:, None]).norm(dim=1) * largest
    _check_ends(loc.abs() + scale, scale, names, dtype)
    # Scales first: they may differ by more than a triangular solve survives.
    eye = torch.eye(len(loc), dtype=torch.float64)
    unit = torch.linalg.solve_triangular(scale_tril / scale[:, None], eye, upper=False)
    # A step of column j moves coordinate i by its share in row i of the inverse.
    _check_steps(loc, scale, scale / unit.abs().amax(0), names, dtype)


def check_margins(margins: Margins, names: tuple[str, ...], dtype: torch.dtype) -> None:
    """Refuse margins whose middles, however far their tails go, ``dtype`` does not resolve.

    Raises:
        ValueError: as ``check_scale``.
    """
    loc, scale = margins.splines.loc, margins.splines.scale
    _check_steps(loc, scale, scale, tuple(names[column] for column in margins.columns), dtype)


def _check_ends(largest: Tensor, scale: Tensor, names: tuple[str, ...], dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    for bad, shown, word in (
        (~(_ROOM * largest < info.max), largest, "large"),
        (scale < _ROOM * info.tiny, scale, "small"),
    ):
        if bad.any():
            column = int(bad.nonzero()[0])
            remedy = "measure it in another unit" + _or_double(dtype)
            raise ValueError(
                f"column {names[column]} is too {word} for {dtype}, about "
                f"{shown[column].item():.3g}; {remedy}"
            )


def _check_steps(
    loc: Tensor, scale: Tensor, own: Tensor, names: tuple[str, ...], dtype: torch.dtype
) -> None:
    """Compare the steps of ``dtype`` with the part of the scale that is a column's own."""
    near = (loc.abs() + scale).to(dtype)
    spacing = (torch.nextafter(near, torch.full_like(near, torch.inf)) - near).double()
    bad = own < _STEPS * spacing
    if bad.any():
        column = int(bad.nonzero()[0])
        raise ValueError(
            f"column {names[column]} lies around {loc[column].item():.10g} and varies by "
            f"{own[column].item():.3g} on its own, but {dtype} has steps of "
            f"{spacing[column].item():.3g} there; subtract a constant from it"
            f"{_or_double(dtype)}"
        )


def _or_double(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float64 else ", or pass dtype=torch.float64"
