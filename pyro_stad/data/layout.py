"""Names of coordinates, and the variables that they make up.

A layout remembers the variables of a container and their shapes, so that ``unpack`` turns vectors
of the learned prior back into the same dictionary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product

from torch import Tensor

__all__ = ["Layout", "element_names"]


def element_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """Return names such as ``beta[0, 2]`` of the elements of a variable, in their order."""
    if not shape:
        return [name]
    indices = product(*(range(size) for size in shape))
    return [f"{name}[{', '.join(map(str, index))}]" for index in indices]


@dataclass(frozen=True)
class Layout:
    """Names of the coordinates, and the variables that they make up.

    Attributes:
        names: one name per coordinate, such as ``"beta[0]"``.
        variables: pairs of variable name and shape, in the order of the coordinates.
    """

    names: tuple[str, ...]
    variables: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Layout:
        """Return the layout of a table, where ``beta[0]`` and ``beta[1]`` make up ``beta``.

        Neighbours that are all the elements of an array in its order become a variable; any other
        name is a variable of its own.
        """
        variables: list[tuple[str, tuple[int, ...]]] = []
        groups = [(stem, list(group)) for stem, group in groupby(names, key=_stem)]
        for stem, members in groups:
            together = sum(stem == other for other, _ in groups) == 1
            shape = _shape_of(members) if together else None
            variables += [(n, ()) for n in members] if shape is None else [(stem, shape)]
        return cls(tuple(names), tuple(variables))

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into variables ``(..., *shape)``."""
        parts, start = {}, 0
        for name, shape in self.variables:
            size = math.prod(shape)
            parts[name] = value[..., start : start + size].reshape((*value.shape[:-1], *shape))
            start += size
        return parts

    def indices(self, name: str) -> range:
        """Return the coordinates that a coordinate's or a variable's ``name`` stands for.

        Raises:
            ValueError: if there is no such name.
        """
        if name in self.names:
            place = self.names.index(name)
            return range(place, place + 1)
        start = 0
        for variable, shape in self.variables:
            size = math.prod(shape)
            if variable == name:
                return range(start, start + size)
            start += size
        known = sorted({*self.names, *(variable for variable, _ in self.variables)})
        raise ValueError(f"there is no parameter {name!r}; the names are {known}")


def _stem(name: str) -> str:
    return name.partition("[")[0]


def _shape_of(names: list[str]) -> tuple[int, ...] | None:
    """Return the shape of the array whose elements bear ``names``, or None if there is none."""
    matches = [re.fullmatch(r"[^\[]+\[([^\]]+)\]", name) for name in names]
    labels = [tuple(match[1].split(", ")) for match in matches if match]
    if len(labels) != len(names) or len({len(label) for label in labels}) != 1:
        return None
    axes = [list(dict.fromkeys(axis)) for axis in zip(*labels)]
    return tuple(map(len, axes)) if list(product(*axes)) == labels else None
