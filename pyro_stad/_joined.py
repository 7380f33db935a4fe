"""Rows of points with their context to the right, ``(N, D + C)``: how batches hold the two.

A point and its context are drawn, split and weighted together, so they are kept in one row. Those
who compute part them again, and give the field, or the way to a density, its rows of context. Of a
field without a context, and of what has been given one, rows are points of any shape.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["given", "joined", "log_prob_at", "own_draws", "parted", "repeat_rows"]

_Part = TypeVar("_Part")


def parted(rows: Tensor, part: Any) -> tuple[Tensor, Tensor | None]:
    """Return the points, and the context ``(N, C)`` that a field, or what is of one, still needs.

    That is None where it needs none.
    """
    field = getattr(part, "field", part)
    if not field.context_shape or getattr(part, "context", None) is not None:
        return rows, None
    return rows[:, : field.features], rows[:, field.features :]


def joined(points: Tensor, context: Tensor | None) -> Tensor:
    """Return points ``(N, D)`` with their context to the right, if there is one."""
    return points if context is None else torch.cat([points, context], 1)


def given(part: _Part, context: Tensor | None) -> _Part:
    """Return a field, a likelihood or a transport that has closed over rows of context."""
    if context is None:
        return part
    known: Any = part
    shape = getattr(known, "field", known).context_shape
    return known.given(context.unflatten(1, shape))


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """Return each row ``count`` times, side by side; one row that stands for all stays one."""
    if rows.stride(0) == 0:
        return rows[:1].expand(count * len(rows), *rows.shape[1:])
    return rows.repeat_interleave(count, 0)


def log_prob_at(likelihood: Any, rows: Tensor) -> Tensor:
    """Return the log-densities of points, given their context if there is one: ``(N,)``."""
    points, context = parted(rows, likelihood)
    return given(likelihood, context).log_prob(points)


def own_draws(transport: Any, noise: Tensor, context: Tensor | None) -> Tensor:
    """Return what a transport makes of noise ``(N, D)``, with rows of context in turn."""
    if context is not None:
        context = context[torch.arange(len(noise), device=noise.device) % len(context)]
    with torch.no_grad():
        return joined(given(transport, context).push(noise), context)
