r"""Bounded parameters: a support, and the bijection of torch between it and the real line.

The support is made of stock constraints (``interval``, ``greater_than_eq``, ``less_than``,
``real``), concatenated over runs of coordinates of the same kind, so that ``biject_to`` gives the
same bijection to this package and to Pyro's NUTS, and nothing has to be registered at import.

An angle (:mod:`pyro_stad.data.angles`) is unbounded in this sense, as it is in torch's von Mises
law: its density is periodic on the line, and draws lie in one period.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from pyro_stad.data.angles import Angle, Periodic, Wrap
from pyro_stad.data.layout import Layout
from pyro_stad.data.standardise import real_events

__all__ = [
    "Bounds",
    "Periodic",
    "box",
    "check_inside",
    "has_angles",
    "open_box",
    "outer_transforms",
    "parse_bounds",
    "support_of",
    "to_line",
    "wind",
]

# Periodic is a pair too, but of no walls.
Bounds = tuple[tuple[float, float] | Angle, ...]
_OPEN = (-math.inf, math.inf)


def parse_bounds(bounds: Any, layout: Layout, values: Tensor | None = None) -> Bounds | None:
    """Read bounds into one ``(low, high)`` pair per coordinate; None if there are none.

    Arguments:
        bounds: a mapping of coordinate or variable names to pairs, or one pair per coordinate, in a
            sequence or an array; None in a pair, or an infinite number, leaves that side open. An
            angle is ``"periodic"``, of period two pi, or the number that is its period, or
            ``Periodic(low, high)``.
        layout: the names.
        values: samples with shape ``(N, D)``, which decide where an angle is reported of which
            only the period is given: from zero on if none is negative, else about zero.

    Raises:
        ValueError: for an unknown name, a wrong count, a pair that is not increasing, or a period
            that is not positive.
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
    least = [0.0] * len(pairs) if values is None else values.amin(0).tolist()
    parsed = tuple(map(_parse_one, pairs, layout.names, least))
    return None if all(pair == _OPEN for pair in parsed) else parsed


def _parse_one(given: Any, name: str, least: float) -> tuple[float, float]:
    if isinstance(given, str) and given == "periodic":
        given = 2 * math.pi
    if isinstance(given, Periodic):
        low, high = _parse_pair(tuple(given), name)
    elif isinstance(given, Real) and not isinstance(given, bool):
        period = float(given)
        low, high = (0.0, period) if least >= 0 else (-0.5 * period, 0.5 * period)
    else:
        return _parse_pair(given, name)
    if not 0 < high - low < math.inf:
        raise ValueError(f"`bounds` of {name} must have a finite, positive period; got {given!r}")
    return Periodic(low, high)


def _parse_pair(pair: Any, name: str) -> tuple[float, float]:
    try:
        low, high = (-math.inf, math.inf) if pair is None else pair
        low = -math.inf if low is None else float(low)
        high = math.inf if high is None else float(high)
    except (TypeError, ValueError):
        raise ValueError(
            f"`bounds` of {name} must be a pair (low, high), 'periodic' or a period; got {pair!r}"
        ) from None
    if not low < high:
        raise ValueError(f"`bounds` of {name} must increase; got ({low}, {high})")
    return low, high


def check_inside(
    values: Tensor, bounds: Bounds, names: tuple[str, ...], argument: str = "bounds"
) -> None:
    """Raise ``ValueError`` naming the first column that leaves its bounds."""
    low, high = (torch.tensor(side, dtype=values.dtype) for side in zip(*box(bounds)))
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        row, column = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"`{argument}` of {names[column]} are {bounds[column]}, but "
            f"{int(outside[:, column].sum())} samples are not inside; the first is row {row}: "
            f"{values[row, column].item()}"
        )


def box(bounds: Bounds) -> tuple[tuple[float, float], ...]:
    """Return the walls of every coordinate; an angle has none."""
    return tuple(_OPEN if isinstance(b, (Angle, Periodic)) else b for b in bounds)


def has_angles(bounds: Bounds) -> bool:
    """Return whether a coordinate is an angle."""
    return any(isinstance(b, (Angle, Periodic)) for b in bounds)


def open_box(bounds: Bounds | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends between which numbers of the dtype of ``like``, ``(D,)``, have a density."""
    if bounds is None:
        everything = torch.full_like(like, math.inf)
        return -everything, everything
    sides = box(bounds)
    # Float64 first: the default dtype would round a bound before the prior does.
    low, high = (
        torch.tensor(side, dtype=torch.float64, device="cpu").to(like) for side in zip(*sides)
    )
    # Next to zero, numbers lose their digits and one over them is infinite, and a gradient too.
    below_normal = torch.nextafter(*like.new_tensor([torch.finfo(like.dtype).tiny, 0.0]))
    low = torch.where(low == 0, below_normal, low)
    return low, torch.where(high == 0, -below_normal, high)


def wind(bounds: Bounds, values: Tensor | None, weights: Tensor | None) -> Bounds:
    """Return bounds in which every angle knows how it is unrolled.

    Arguments:
        bounds: as ``parse_bounds`` gives them.
        values: samples with shape ``(N, D)``, or None to put seams at the ends of the periods.
        weights: their weights with shape ``(N,)``, or None.
    """
    return tuple(
        (Angle.plain(b) if values is None else Angle.of_samples(b, values[:, i], weights))
        if isinstance(b, Periodic)
        else b
        for i, b in enumerate(bounds)
    )


def outer_transforms(bounds: Bounds | None, like: Tensor) -> list[Transform]:
    """Return what leads from unbounded, unrolled coordinates to the parameters, in that order."""
    transforms: list[Transform] = []
    if bounds is None:
        return transforms
    angles = tuple(b if isinstance(b, Angle) else None for b in bounds)
    if any(angles):
        transforms.append(Wrap(angles, like))
    support = support_of(bounds, like)
    if support is not constraints.real_vector:
        transforms.append(biject_to(support))
    return transforms


def to_line(values: Tensor, bounds: Bounds | None) -> Tensor:
    """Carry parameters ``(N, D)`` to coordinates without walls; an angle to its principal image."""
    for transform in reversed(outer_transforms(bounds, values[0])):
        values = transform.inv(values)
    return values


def support_of(bounds: Bounds | None, like: Tensor) -> constraints.Constraint:
    """Return the support with tensors of the dtype and device of ``like``."""
    if bounds is None or all(pair == _OPEN for pair in box(bounds)):
        return real_events(like.ndim)
    runs = [(kind, list(pairs)) for kind, pairs in groupby(box(bounds), key=_kind)]
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
