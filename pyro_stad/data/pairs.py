"""Pairs of a point and its context: read, checked, and laid side by side.

Points are looked at as samples are. A context may be anything: design points on a grid, classes as
zeros and ones, columns that depend on each other; it only has to be finite and to vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad._weights import effective_size
from pyro_stad.data.bounds import Bounds, box, check_inside, has_angles, parse_bounds
from pyro_stad.data.edges import off_the_edges
from pyro_stad.data.effective import warn_if_few
from pyro_stad.data.grain import warn_of_grain
from pyro_stad.data.layout import Layout
from pyro_stad.data.repeats import merge_repeats
from pyro_stad.data.samples import Samples, as_columns, as_samples
from pyro_stad.data.scale import check_scale
from pyro_stad.data.weights import check_weights

__all__ = ["Pairs"]

_FEWEST = 100


@dataclass(frozen=True, eq=False)
class Pairs:
    """Distinct pairs, inside their bounds.

    Attributes:
        values: points with their context to the right, ``(N, D + C)``, in float64.
        weights: with shape ``(N,)``, or None.
        layout, bounds: names and bounds of a point.
        context_layout, context_bounds: of a context.
        rows: pairs that came in.
        effective: pairs of equal weight that they are worth.
        moved: points that lay on a bound, and were moved inside.
    """

    values: Tensor
    weights: Tensor | None
    layout: Layout
    bounds: Bounds | None
    context_layout: Layout
    context_bounds: Bounds | None
    rows: int
    effective: float
    moved: int

    @property
    def width(self) -> int:
        """Dimension C of a context."""
        return len(self.context_layout.names)

    @property
    def points(self) -> Tensor:
        """The points, ``(N, D)``."""
        return self.values[:, : -self.width]

    @property
    def context(self) -> Tensor:
        """Their contexts, ``(N, C)``."""
        return self.values[:, -self.width :]

    @classmethod
    def of(
        cls,
        samples: Any,
        context: Any,
        *,
        names: Sequence[str] | None,
        weights: Any,
        log_weights: Any,
        var_names: Sequence[str] | None,
        bounds: Any,
        context_names: Sequence[str] | None,
        context_bounds: Any,
        dtype: torch.dtype,
    ) -> Pairs:
        """Read and check; arguments and what is raised as of ``pyro_stad.fit``."""
        points = as_samples(samples, names=names, var_names=var_names)
        given, given_layout = as_columns(context, context_names, "context")
        _check_rows(points, given)
        limits = parse_bounds(bounds, points.layout, points.values)
        given_limits = parse_bounds(context_bounds, given_layout, given)
        _refuse_angles(limits, "bounds")
        _refuse_angles(given_limits, "context_bounds")
        checked = check_weights(weights, log_weights, len(given), least=_FEWEST)
        names_of_both = (*points.layout.names, *given_layout.names)
        together = Samples(torch.cat([points.values, given], 1), checked, Layout(names_of_both, ()))
        distinct = merge_repeats(_weighted(together))
        values, kept, moved = distinct.values, distinct.weights, 0
        x, c = values[:, : -given.shape[1]], values[:, -given.shape[1] :]
        check_scale(x, kept, points.layout.names, dtype)
        _check_context(c, given_layout, given_limits)
        if limits is not None:
            check_inside(x, limits, points.layout.names)
            x, moved = off_the_edges(x, kept, limits, points.layout.names, dtype)
        warn_of_grain(x, kept, points.layout.names)
        effective = float(len(x)) if kept is None else effective_size(kept).item()
        warn_if_few(effective, x.shape[1] + c.shape[1])
        return cls(
            torch.cat([x, c], 1), kept, points.layout, limits, given_layout, given_limits,
            len(given), effective, moved,
        )  # fmt: skip


def _check_rows(points: Samples, given: Tensor) -> None:
    if points.weights is not None:
        raise ValueError(
            "`samples` hold weights of their own, which go with a context only as `weights`: pass "
            "values alone, and the weights beside them"
        )
    if len(points.values) != len(given):
        raise ValueError(
            f"`context` must have a row for each sample; got {len(given)} rows for "
            f"{len(points.values)} samples"
        )


def _refuse_angles(limits: Bounds | None, argument: str) -> None:
    if limits is not None and has_angles(limits):
        raise ValueError(
            f"`{argument}` of a conditional flow can't be periodic; give cosine and sine of the "
            "angle as two coordinates"
        )


def _weighted(samples: Samples) -> Samples:
    """Return the rows that have a weight."""
    if samples.weights is None:
        return samples
    here = samples.weights > 0
    return Samples(samples.values[here], samples.weights[here], samples.layout)


def _check_context(values: Tensor, layout: Layout, bounds: Bounds | None) -> None:
    constant = (values == values[0]).all(0)
    if constant.any():
        name = layout.names[int(constant.nonzero()[0])]
        raise ValueError(
            f"column {name} of `context` is constant, so that nothing can be learned of how "
            "samples depend on it; leave it out"
        )
    if bounds is not None:
        check_inside(values, bounds, layout.names, "context_bounds")
        on_it = [
            name
            for name, column, (low, high) in zip(layout.names, values.T, box(bounds))
            if bool(((column == low) | (column == high)).any())
        ]
        if on_it:
            raise ValueError(
                f"columns {on_it} of `context` have values on their bounds, where the map to the "
                "line is infinite; leave those bounds open"
            )
