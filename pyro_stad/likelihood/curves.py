r"""Curves from data to noise, along which the Stein path integrates.

A curve starts in the scaled data at ``t_min`` and says where it is, and how fast it moves, at given
times. Any curve gives the density (:mod:`pyro_stad.likelihood.stein_path`); a curve close to the
flow gives it with the least of the network's own inconsistency.

- ``Constant`` stays where it is. In the coordinates :math:`y = x_t / c(t)` whitened data keep their
  covariance on the way to noise, so that a data point stays within the bulk of every law between.
- ``Coarse`` follows the flow by a few midpoint steps, joined by cubic Hermite polynomials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractField
from pyro_stad.ode import Midpoint, time_like
from pyro_stad.registry import registered, storable

__all__ = ["CURVES", "AbstractCurve", "Coarse", "Constant", "Followed"]


# Each has nodes of its own, and those are at most as many.
_MOST_STEPS = 1024


class Followed(NamedTuple):
    """Curves at K times: points, and slopes (none: at rest), ``(B, K, ...)``; ends ``(B, ...)``."""

    points: Tensor
    slopes: Tensor | None
    end: Tensor


class AbstractCurve(ABC):
    """A family of curves, one for each starting point.

    Attributes:
        pieces: intervals on which the curve is smooth, of equal length in graded time.
    """

    pieces: int = 1

    @abstractmethod
    def follow(self, field: AbstractField, start: Tensor, times: Tensor) -> Followed:
        """Follow the curves of ``start``, ``(B, *event_shape)``, to ``times``, ``(K,)``."""

    @abstractmethod
    def sequential_calls(self) -> int:
        """Return the network calls, one after the other, that following takes."""


@storable("curve", "constant")
@dataclass(frozen=True)
class Constant(AbstractCurve):
    """The curve that stays in its starting point."""

    def follow(self, field: AbstractField, start: Tensor, times: Tensor) -> Followed:
        points = start[:, None].expand(-1, len(times), *start.shape[1:])
        return Followed(points, None, start)

    def sequential_calls(self) -> int:
        return 0


@storable("curve", "coarse")
@dataclass(frozen=True)
class Coarse(AbstractCurve):
    """A coarse solve of the flow by the midpoint rule, joined by cubic Hermite polynomials.

    Arguments:
        steps: number of midpoint steps.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        check_count(self.steps, "steps", most=_MOST_STEPS)

    @property
    def pieces(self) -> int:  # type: ignore[override]
        return self.steps

    def follow(self, field: AbstractField, start: Tensor, times: Tensor) -> Followed:
        knots, states, slopes = self._solve(field, start)
        left = (torch.searchsorted(knots, times, right=True) - 1).clamp(0, self.steps - 1)
        length = beside(knots[left + 1] - knots[left], states)
        s = beside(times - knots[left], states) / length
        # Cubic Hermite polynomials on each interval, and their derivatives.
        a, b = states[left], states[left + 1]
        da, db = length * slopes[left], length * slopes[left + 1]
        chord = b - a
        bow, skew = da - chord, chord - db
        points = a + s * (chord + (1 - s) * ((1 - s) * bow + s * skew))
        rise = chord + (1 - s) * (1 - 3 * s) * bow + s * (2 - 3 * s) * skew
        return Followed(points.transpose(0, 1), (rise / length).transpose(0, 1), states[-1])

    def _solve(self, field: AbstractField, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return knots ``(K,)``, states and slopes there, ``(K, B, ...)``, by the midpoint rule."""
        ends = Midpoint(self.steps).knots(field.t_min, field.t_max)
        knots = [time_like(start, end) for end in ends]
        states, slopes = [start], []
        for knot, (low, high) in zip(knots, pairwise(ends)):
            x, step = states[-1], high - low
            slopes.append(field.velocity(knot, x))
            middle = torch.add(x, slopes[-1], alpha=0.5 * step)
            rate = field.velocity(time_like(x, low + 0.5 * step), middle)
            states.append(torch.add(x, rate, alpha=step))
        slopes.append(field.velocity(knots[-1], states[-1]))
        return torch.stack(knots), torch.stack(states), torch.stack(slopes)

    def sequential_calls(self) -> int:
        return 2 * self.steps + 1


CURVES: Mapping[str, type[AbstractCurve]] = registered("curve")
