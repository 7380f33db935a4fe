"""Intake: checked samples made ready for a fit, and what there is to say of them.

Everything that could spoil a density in silence is looked at here, once: numbers that the dtype
does not resolve, rows that come again and again, neighbours in a chain that are alike, rows on a
bound, columns that are no continuous quantity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pyro_stad.data.bounds import Bounds, check_inside
from pyro_stad.data.edges import off_the_edges
from pyro_stad.data.effective import correlation_time, effective_rows, warn_if_few
from pyro_stad.data.grain import warn_of_grain
from pyro_stad.data.repeats import merge_repeats
from pyro_stad.data.samples import Samples
from pyro_stad.data.scale import check_scale
from pyro_stad.data.standardise import check_dependence
from pyro_stad.data.walkers import part_walkers

__all__ = ["Intake", "take_in"]


@dataclass(frozen=True)
class Intake:
    """Samples, ready for a fit.

    Attributes:
        samples: distinct rows, inside their bounds, with the weights of their repeats.
        rows: number of rows before repeats were merged.
        effective: independent rows of equal weight that they are worth.
        time: autocorrelation time, in distinct rows.
        moved: distinct rows that lay on a bound, and were moved inside.
    """

    samples: Samples
    rows: int
    effective: float
    time: float
    moved: int


def take_in(samples: Samples, bounds: Bounds | None, dtype: torch.dtype) -> Intake:
    """Return ``samples`` ready for a fit in ``dtype``.

    Raises:
        ValueError: for columns that ``dtype`` does not resolve, that are linearly dependent, or
            that leave their bounds; columns are named.

    Warns:
        SampleWarning: for few effective rows, and for columns that have no density.
    """
    samples = part_walkers(samples)
    names, distinct, moved = samples.layout.names, merge_repeats(samples), 0
    check_scale(distinct.values, distinct.weights, names, dtype)
    if bounds is not None:
        check_inside(samples.values, bounds, names)
        check_dependence(distinct.values, distinct.weights, names)
        values, moved = off_the_edges(distinct.values, distinct.weights, bounds, names, dtype)
        distinct = replace(distinct, values=values)
    warn_of_grain(distinct.values, distinct.weights, names)
    rows, time = len(samples.values), correlation_time(samples)
    effective = effective_rows(samples, distinct, time)
    warn_if_few(effective, len(names))
    return Intake(distinct, rows, effective, max(1.0, time * len(distinct.values) / rows), moved)
