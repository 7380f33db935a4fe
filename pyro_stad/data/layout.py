"""Names of coordinates, and the variables that they make up.

A layout remembers the variables of a container and their shapes, so that ``unpack`` turns vectors
of the learned prior back into the same dictionary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Names of the coordinates, and the variables that they make up.

    Attributes:
        names: one name per coordinate, such as ``"beta[0]"``.
        variables: pairs of variable name and shape, in the order of the coordinates.
    """

    names: tuple[str, ...]
    variables: tuple[tuple[str, tuple[int, ...]], ...]

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into variables ``(..., *shape)``."""
        parts, start = {}, 0
        for name, shape in self.variables:
            size = math.prod(shape)
            parts[name] = value[..., start : start + size].reshape(*value.shape[:-1], *shape)
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
