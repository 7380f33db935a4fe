"""What a column tells of its margin: its bulk, its ends, and where its middle is.

Why these are asked for is in :mod:`pyro_stad.data.margin_fit`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, ndtri_exp

from pyro_stad.data.margin_tails import Array, Tail, Wall, fit_tail

__all__ = [
    "Bulk",
    "End",
    "Place",
    "Rows",
    "bulk_of",
    "end_of",
    "far_out",
    "in_order",
    "mean_and_error",
    "moments",
    "normal_log_prob",
    "place_of",
    "spread",
]

_LEAST_VALUES = 4  # in a tail
_WALL_SHARE, _TAIL_SHARE = 0.1, 0.05
_FEW, _LARGEST_SHARE = 30, 0.2  # rows in a tail of few samples, while it is no larger than this
_FARTHEST = 12.5  # score up to which the fitted tails rule
_FAR, _LOG_CHANCE = 4.5, math.log(1e-3)


class Rows(NamedTuple):
    """Samples of a coordinate in increasing order, with weights that add up to their worth."""

    u: Array
    weights: Array

    @property
    def worth(self) -> float:
        return float(self.weights.sum())

    def scores(self) -> Array:
        """Return the normal scores of the rows."""
        return ndtri((np.cumsum(self.weights) - 0.5 * self.weights) / self.worth)

    def take(self, chosen: NDArray[Any]) -> Rows:
        return Rows(self.u[chosen], self.weights[chosen])


class End(NamedTuple):
    """An edge of the bulk, the share of the law beyond it, and the tail there."""

    edge: float
    share: float
    tail: Tail

    @property
    def score(self) -> float:
        """The normal score of the edge, as a distance from the middle."""
        return -float(ndtri(self.share))

    @property
    def slope(self) -> float:
        """The derivative of the score at the edge."""
        density = math.exp(-0.5 * self.score**2) / math.sqrt(2 * math.pi)
        return self.share * self.tail.rate / density

    def beyond(self, d: Array) -> Array:
        """Return scores at distances ``d`` from the edge, as distances from the middle."""
        return -ndtri_exp(math.log(self.share) - self.tail.exponent(d))

    def reach(self) -> float:
        """Return the distance from the edge at which the score is as far as it is to go."""
        # The logarithm of a normal tail is about this.
        farthest = 0.5 * _FARTHEST**2 + math.log(_FARTHEST) + 1
        return self.tail.reach(farthest + math.log(self.share))


class Bulk(NamedTuple):
    """Sorted rows, of which those between two edges are the bulk."""

    rows: Rows
    left: End
    right: End


class Place(NamedTuple):
    """The coordinate ``s = asinh((u - loc) / scale)``."""

    loc: float
    scale: float

    def of(self, u: Array | float) -> Array:
        return np.arcsinh((np.asarray(u) - self.loc) / self.scale)


def mean_and_error(rows: Rows, gain: Array) -> tuple[float, float]:
    """Return the weighted mean of a gain, and its standard error."""
    share = rows.weights / rows.worth
    mean = float(share @ gain)
    return mean, math.sqrt(float(share @ (gain - mean) ** 2) / rows.worth)


def far_out(rows: Rows) -> bool:
    """Tell whether more rows are far out than a normal law has there, but for a small chance."""
    loc, scale = spread(rows)
    far = float(rows.weights[np.abs(rows.u - loc) > _FAR * scale].sum())
    allowed = math.erfc(_FAR / math.sqrt(2)) * rows.worth
    # That of as many events of a Poisson law, nearly.
    return far > allowed and far * math.log(allowed) - math.lgamma(far + 1) < _LOG_CHANCE


def in_order(rows: Rows) -> Rows:
    """Return rows in the order of their values."""
    return rows.take(rows.u.argsort(kind="stable"))


def spread(rows: Rows) -> tuple[float, float]:
    """Return the middle of rows, and the width that two standard deviations of a normal law have.

    By quantiles: a few rows very far out make the standard deviation so large that nothing is far.
    """
    rows = in_order(rows)
    low, high = np.interp((-2.0, 2.0), rows.scores(), rows.u)
    return float(high + low) / 2, float(high - low) / 4


def moments(rows: Rows) -> tuple[float, float]:
    """Return mean and standard deviation."""
    loc = rows.weights @ rows.u / rows.worth
    return float(loc), math.sqrt(rows.weights @ (rows.u - loc) ** 2 / rows.worth)


def normal_log_prob(train: Rows, u: Array) -> Array:
    """Return the log-density of a normal law with the moments of some rows."""
    loc, scale = moments(train)
    return -0.5 * ((u - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def place_of(rows: Rows, share: float) -> Place:
    """Return the coordinate around the shortest interval that holds ``share`` of sorted rows."""
    total = np.cumsum(rows.weights) / rows.worth
    count = max(8 / len(rows.u), share)
    first = np.arange(int(np.searchsorted(total, 1 - count)) + 1)
    last = np.searchsorted(total, total[first] + count).clip(max=len(total) - 1)
    width = rows.u[last] - rows.u[first]
    # Rows that are alike make up no interval.
    width = np.where(width > 0, width, np.inf)
    best = int(width.argmin())
    half = 0.5 * float(width[best])
    loc = float(rows.u[first[best]]) + half
    # Of a normal law, this is the standard deviation.
    return Place(loc, half / float(ndtri(0.5 + 0.5 * count)))


def bulk_of(rows: Rows, walls: tuple[bool, bool]) -> Bulk | None:
    """Return sorted rows parted into bulk and tails; None if they are too few values for it."""
    left = end_of(Rows(-rows.u[::-1], rows.weights[::-1]), wall=walls[0])
    right = end_of(rows, wall=walls[1])
    if left is None or right is None or -left.edge >= right.edge:
        return None
    return Bulk(rows, left._replace(edge=-left.edge), right)


def end_of(rows: Rows, *, wall: bool) -> End | None:
    """Return the right end of sorted rows; None if too few values lie beyond."""
    scores, found = rows.scores(), None
    # Of a wall there is more to be known: its density is nearly constant for longer.
    for least in (_WALL_SHARE, _TAIL_SHARE) if wall else (_TAIL_SHARE,):
        share = min(max(least, _FEW / rows.worth), _LARGEST_SHARE)
        edge = float(np.interp(-ndtri(share), scores, rows.u))
        beyond = rows.u > edge
        if len(np.unique(rows.u[beyond])) < _LEAST_VALUES:
            return None
        d = rows.u[beyond] - edge
        found = End(edge, share, fit_tail(d, rows.weights[beyond], wall=wall))
        if isinstance(found.tail, Wall):
            break
    return found
