"""Names and bounds in the description of a file."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from pyro_stad._checks import check_count
from pyro_stad._config import decode
from pyro_stad.data import Angle, Bounds, Layout, box

__all__ = ["describe_bounds", "describe_layout", "read_bounds", "read_layout"]


def describe_layout(layout: Layout | None) -> dict[str, Any]:
    """Return the entries that names and variables have; None for events without."""
    return {"names": layout and layout.names, "variables": layout and layout.variables}


def read_layout(document: dict[str, Any]) -> Layout:
    """Return the names and variables, which have to agree."""
    names = decode(tuple[str, ...], document["names"], "names")
    variables = []
    for variable in decode(tuple[list, ...], document["variables"], "variables"):
        name, shape = variable
        sizes = decode(tuple[int, ...], shape, "variables")
        for size in sizes:
            check_count(size, "variables", least=0, most=len(names))
        variables.append((decode(str, name, "variables"), sizes))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`names` must be different names, one at the least; got {list(names)}")
    if sum(math.prod(sizes) for _, sizes in variables) != len(names):
        raise ValueError(f"`variables` must make up {len(names)} coordinates; got {variables}")
    return Layout(names, tuple(variables))


def describe_bounds(bounds: Bounds | None) -> list[Any] | None:
    """Return what a description says of bounds."""
    return None if bounds is None else [_describe_bound(bound) for bound in bounds]


def read_bounds(stored: Any, size: int) -> Bounds | None:
    """Return one pair per coordinate."""
    if stored is None:
        return None
    # Numbers are written as words here, in files of every age: JSON has no infinity.
    pairs = tuple(_build_bound(bound) for bound in stored)
    if len(pairs) != size or not all(low < high for low, high in box(pairs)):
        raise ValueError(f"`bounds` must be {size} pairs that increase; got {stored!r:.80}")
    return pairs


def _describe_bound(bound: tuple[float, float] | Angle) -> Any:
    if isinstance(bound, Angle):
        return {"name": "angle", **asdict(bound)}
    # JSON has no infinity.
    return [repr(side) for side in bound]


def _build_bound(config: Any) -> tuple[float, float] | Angle:
    if isinstance(config, dict):
        return Angle(*(float(config[key]) for key in ("low", "high", "centre", "overlap")))
    low, high = config
    return float(low), float(high)
