"""The log-density of rows of which some may have none: outside, not finite, or not solved.

Those get -inf with a zero gradient, and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._checks import is_transformed
from pyro_stad._events import beside, event_sum
from pyro_stad.density.coordinates import Coordinates
from pyro_stad.density.counts import Counts
from pyro_stad.likelihood import AbstractLikelihood

__all__ = ["RowDensity"]


@dataclass(frozen=True, eq=False)
class RowDensity:
    """A density of rows of parameters.

    Arguments:
        likelihood: the log-density of whitened events.
        coordinates: how parameters become whitened events.
        counts: what was seen.
    """

    likelihood: AbstractLikelihood
    coordinates: Coordinates
    counts: Counts

    def __call__(self, theta: Tensor, refuse: Callable[[], None] | None = None) -> Tensor:
        """Return the log-densities of rows, shape ``(B, *event_shape)``: ``(B,)``.

        Arguments:
            theta: the rows.
            refuse: called where they are not all finite and inside, to say what is wrong.
        """
        if len(theta) == 0:
            # Not a constant: the graph must reach an empty input too.
            return event_sum(theta)
        coordinates = self.coordinates
        if is_transformed(theta) or is_transformed(coordinates.whitening.loc):
            inside = coordinates.inside(theta)
            log_prob = self._of_good(theta, inside)
            return torch.where(inside & torch.isfinite(log_prob), log_prob, -torch.inf)
        # Inside NUTS all is well nearly always, and a look at a sum is cheaper than masks.
        whole = _all_finite(theta) and (coordinates.is_open or coordinates.inside(theta).all())
        if whole:
            log_prob = coordinates.log_prob(self.likelihood, theta)
            if _all_finite(log_prob):
                self.counts.points += len(theta)
                return log_prob
        elif refuse is not None:
            refuse()
        return self._where_possible(theta)

    def _where_possible(self, theta: Tensor) -> Tensor:
        inside = self.coordinates.inside(theta)
        # Which rows can't be solved, is known only after a try.
        with torch.no_grad():
            log_prob = self._of_good(theta, inside)
            good = inside & torch.isfinite(log_prob)
        self.counts.points += len(theta)
        self.counts.nonfinite += int((~inside).sum())
        self.counts.failed += int((inside & ~good).sum())
        if torch.is_grad_enabled() and theta.requires_grad:
            log_prob = self._of_good(theta, good)
        return torch.where(good, log_prob, -torch.inf)

    def _of_good(self, theta: Tensor, good: Tensor) -> Tensor:
        """Return the log-densities of good rows, and of a stand-in for the others.

        It keeps NaN out of the graph, and so out of the gradient; and out of an adaptive solver.
        """
        rows = torch.where(beside(good, theta), theta, self.coordinates.stand_in)
        return self.coordinates.log_prob(self.likelihood, rows)


def _all_finite(values: Tensor) -> bool:
    """Whether all are certainly finite: one NaN or infinity, and the sum is not."""
    return math.isfinite(values.detach().sum().item())
