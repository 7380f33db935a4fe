r"""The contexts of a conditional flow: names, bounds, standardisation, and which were seen.

A network says something of any context. Whether it has seen contexts like one is told by the
distance to the nearest of those kept, :math:`d(c)`, against the distances from others of the
training to theirs, which are as far from them as any context of the same law is:

.. math:: p(c) = \frac{1 + \#\{i : d_i \geq d(c)\}}{n + 1}.

For a context of that law p is uniform, whatever the law.

References:
    Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_stad.data.bounds import Bounds, box, open_box, outer_transforms, to_line
from pyro_stad.data.layout import Layout

__all__ = ["Contexts"]

_KEPT = 4096  # contexts that are kept, and as many others whose distances are
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Contexts:
    """What a conditional flow knows of its contexts.

    Attributes:
        layout: names of the C coordinates of a context.
        bounds: of the coordinates, or None.
        loc, scale: mean and standard deviation of the unbounded coordinates, each ``(C,)``.
        seen: standardised contexts of the training, ``(M, C)``.
        distances: from others of them to the nearest of these, in increasing order, ``(n,)``.
    """

    layout: Layout
    bounds: Bounds | None
    loc: Tensor
    scale: Tensor
    seen: Tensor
    distances: Tensor

    @classmethod
    def of(
        cls, values: Tensor, layout: Layout, bounds: Bounds | None, generator: torch.Generator
    ) -> Contexts:
        """Return what is known of contexts ``(N, C)``, in float64."""
        on_line = to_line(values, bounds)
        loc, scale = on_line.mean(0), on_line.std(0)
        white = (on_line - loc) / scale
        order = torch.randperm(len(white), generator=generator)[: 2 * _KEPT]
        seen, others = white[order[::2]], white[order[1::2]]
        distances = _nearest(others, seen).sort().values
        return cls(layout, bounds, loc, scale, seen, distances)

    @cached_property
    def _maps(self) -> list[Any]:
        return outer_transforms(self.bounds, self.loc)

    def standardise(self, context: Tensor) -> Tensor:
        """Return contexts ``(..., C)`` as networks see them.

        One on a bound, as rounding may put it there, is taken to be just inside.
        """
        if self.bounds is not None:
            low, high = open_box(self.bounds, self.loc)
            inner = torch.nextafter(low, high), torch.nextafter(high, low)
            context = torch.minimum(torch.maximum(context, inner[0]), inner[1])
        for transform in reversed(self._maps):
            context = transform.inv(context)
        return (context - self.loc) / self.scale

    def inside(self, context: Tensor) -> Tensor:
        """Return which contexts ``(..., C)`` are finite and within their bounds: ``(...)``."""
        walls = box(self.bounds) if self.bounds is not None else [(-math.inf, math.inf)]
        low, high = (context.new_tensor(side) for side in zip(*walls))
        return ((context >= low) & (context <= high) & torch.isfinite(context)).all(-1)

    def share(self, white: Tensor) -> Tensor:
        """Return the share of contexts that are farther from those seen: ``(B,)`` of ``(B, C)``."""
        found = torch.searchsorted(self.distances, _nearest(white, self.seen).contiguous())
        return (1 + len(self.distances) - found).to(white) / (len(self.distances) + 1)

    def to(self, target: Any) -> Contexts:
        """Return the same on another device or in another dtype."""
        names = ("loc", "scale", "seen", "distances")
        return replace(self, **{name: getattr(self, name).to(target) for name in names})


def _nearest(x: Tensor, seen: Tensor) -> Tensor:
    """Return the distances of rows to the nearest of those seen."""
    rows = [torch.cdist(part, seen).amin(1) for part in x.split(_ROWS)]
    return torch.cat(rows) if rows else x.new_zeros(0)
