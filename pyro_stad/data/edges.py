"""Rows on a bound: moved inside by less than the gap to their neighbour, and counted.

A density has no value on the edge of its support, where the bijection to the real line is infinite;
but a number that was printed with few digits, or rounded to the dtype of the prior, can lie there.
Such rows are spread over the gap between the edge and the nearest row inside. Half the smallest
number there is, the other thing that comes to mind, would be a hundred standard deviations away in
the logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_stad.data.bounds import Bounds, box

__all__ = ["off_the_edges"]

_LARGEST_SHARE = 0.01


def off_the_edges(
    values: Tensor,
    weights: Tensor | None,
    bounds: Bounds,
    names: tuple[str, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    """Return samples that lie inside their bounds in ``dtype``, and how many rows were moved.

    Arguments:
        values: float64 with shape ``(N, D)``, nowhere beyond the bounds.
        weights: weights with shape ``(N,)`` or None.
        bounds: one per coordinate; an angle has no edges.
        names: names of the columns.
        dtype: floating-point type of the prior.

    Raises:
        ValueError: if more than a hundredth of the samples lie on a bound; the column is named.
    """
    values, moved = values.clone(), torch.zeros(len(values), dtype=torch.bool)
    share = torch.ones(len(values), dtype=torch.float64) if weights is None else weights
    for column, pair in enumerate(box(bounds)):
        for edge, sign in zip(pair, (1.0, -1.0)):
            # Mirrored for the upper edge, so that inside is always above.
            inward, wall = sign * values[:, column], torch.tensor(sign * edge, dtype=torch.float64)
            on = inward.to(dtype) <= wall.to(dtype)
            if not on.any():
                continue
            if share[on].sum() > _LARGEST_SHARE * share.sum() * (1 + 1e-9):
                exact = int((inward == wall).sum())
                raise ValueError(_too_many(names[column], pair, exact, int(on.sum()), dtype))
            values[on, column] = sign * _spread(wall, inward[~on].min(), int(on.sum()), dtype)
            moved |= on
    return values, int(moved.sum())


def _spread(wall: Tensor, nearest: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return ``count`` places evenly between the wall and the nearest row inside."""
    places = wall + (nearest - wall) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    edge = wall.to(dtype)
    return places.clamp_min(torch.nextafter(edge, torch.full_like(edge, torch.inf)).double())


def _too_many(
    name: str, pair: tuple[float, float], exact: int, count: int, dtype: torch.dtype
) -> str:
    if exact < count:
        remedy = f"in {dtype}; " + (
            "pass dtype=torch.float64" if dtype != torch.float64 else "move the bound"
        )
    else:
        remedy = "and a density has no mass in a point; drop those rows, or widen the bound"
    return f"`bounds` of {name} are {tuple(pair)}, but {count} samples lie on them, {remedy}"
