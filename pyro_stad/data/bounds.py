r"""Bounded parameters: a support, and the bijection of torch between it and the real line.

The support is made of stock constraints (``interval``, ``greater_than_eq``, ``less_than``,
``real``), concatenated over runs of coordinates of the same kind, so that ``biject_to`` gives the
same bijection to this package and to Pyro's NUTS, and nothing has to be registered at import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad.data.layout import Layout

__all__ = ["Bounds", "Periodic", "check_inside", "parse_bounds", "support_of"]

Bounds = tuple[tuple[float, float], ...]


class Periodic(NamedTuple):
    """The ends of one period of an angle: ``low`` and ``high`` are the same point."""

    low: float
    high: float


def parse_bounds(bounds: Any, layout: Layout) -> Bounds | None:
    """Read bounds into one ``(low, high)`` pair per coordinate; None if there are none.

    Arguments:
        bounds: a mapping of coordinate or variable names to pairs, or one pair per coordinate, in a
            sequence or an array; None in a pair, or an infinite number, leaves that side open.
        layout: the names.

    Raises:
        ValueError: for an unknown name, a wrong count, or a pair that is not increasing.
    """
    if bounds is None:
        return None
    if isinstance(bounds, (Tensor, np.ndarray)):
        bounds = bounds.tolist()
    pairs: list[Any] = [(None, None)] * len(layout.names)
    if isinstance(bounds, Mapping):
        for name, pair in bounds.items():
            for index in layout.indices(name):
                pairs[index] = pair
    elif isinstance(bounds, Sequence) and len(bounds) == len(pairs):
        pairs = list(bounds)
    else:
        raise ValueError(
            f"`bounds` must be a mapping of names to (low, high), or {len(pairs)} pairs; "
            f"got {bounds!r}"
        )
    parsed = tuple(_parse_pair(pair, name) for pair, name in zip(pairs, layout.names))
    return parsed if any(map(math.isfinite, sum(parsed, ()))) else None


def _parse_pair(pair: Any, name: str) -> tuple[float, float]:
    try:
        low, high = (-math.inf, math.inf) if pair is None else pair
        low = -math.inf if low is None else float(low)
        high = math.inf if high is None else float(high)
    except (TypeError, ValueError):
        raise ValueError(f"`bounds` of {name} must be a pair (low, high); got {pair!r}") from None
    if not low < high:
        raise ValueError(f"`bounds` of {name} must increase; got ({low}, {high})")
    return low, high


def check_inside(values: Tensor, bounds: Bounds, names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming the first column that leaves its bounds."""
    low, high = (torch.tensor(side, dtype=values.dtype) for side in zip(*bounds))
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        row, column = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"`bounds` of {names[column]} are {bounds[column]}, but {int(outside[:, column].sum())}"
            f" samples are not inside; the first is row {row}: {values[row, column].item()}"
        )


def support_of(bounds: Bounds | None, like: Tensor) -> constraints.Constraint:
    """Return the support with tensors of the dtype and device of ``like``."""
    if bounds is None:
        return constraints.real_vector
    runs = [(kind, list(pairs)) for kind, pairs in groupby(bounds, key=_kind)]
    pieces = [_constraint(kind, pairs, like) for kind, pairs in runs]
    lengths = [len(pairs) for _, pairs in runs]
    return constraints.independent(constraints.cat(pieces, dim=-1, lengths=lengths), 1)


def _kind(pair: tuple[float, float]) -> tuple[bool, bool]:
    return math.isfinite(pair[0]), math.isfinite(pair[1])


def _constraint(
    kind: tuple[bool, bool], pairs: list[tuple[float, float]], like: Tensor
) -> constraints.Constraint:
    # Float64 first: the default dtype would round a bound before the prior does.
    low, high = (torch.tensor(s, dtype=torch.float64, device="cpu").to(like) for s in zip(*pairs))
    if kind == (True, True):
        return constraints.interval(low, high)
    if kind == (True, False):
        return constraints.greater_than_eq(low)
    if kind == (False, True):
        return constraints.less_than(high)
    return constraints.real
