r"""Tails of one coordinate: what lies beyond the last samples, from the last samples.

Beyond an edge that a share :math:`S_0` of the samples exceeds, with d the distance from it,

.. math:: -\log S = -\log S_0 + E(d), \qquad \log p = \log E'(d) - \log S ,

where E is one of two families with two parameters, or of one where there is a wall:

* :math:`E = \lambda d + \tfrac12 \lambda r d^2`, r >= 0: a hazard that grows, as that of a normal
  law does. The likelihood is largest at
  :math:`\lambda = n / (\sum d + \tfrac12 r \sum d^2)`.
* :math:`E = \log(1 + r d) / \xi`, the generalised Pareto law with tail index
  :math:`\xi`, largest at :math:`\xi = \overline{\log(1 + r d)}`. With r to zero both are
  exponential.
* :math:`E = d - \log(1 + \gamma (1 - e^{-d}))` towards a wall. There d is the logarithm of a
  distance :math:`t = e^{-d}`, and :math:`S/S_0 = t\,(1 + \gamma (1 - t))`: a density that is linear
  in t, and neither zero nor infinite at the wall. It is taken if the samples are no less likely
  under it than under the others, by a factor of :math:`e^2`; such a density is what a user means by
  a wall, and it is right to the end, where an exponent that is fitted is not.

So one parameter, r or gamma, is left to a grid. Few samples say little about it: weak penalties
draw the bend :math:`r / \lambda` towards that of a normal law at its five percent point, 0.2, and
gamma towards zero.

References:
    Pickands (1975), Statistical Inference Using Extreme Order Statistics, Annals of Statistics
    3(1); Grimshaw (1993), Computing Maximum Likelihood Estimates for the Generalized Pareto
    Distribution, Technometrics 35(2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Heavy", "Light", "Tail", "Wall", "fit_tail"]

Array = NDArray[np.float64]

_ALIKE = 2.0  # nats
_NORMAL_BEND, _BEND_SD = 0.2, 0.5
_HEAVIEST = 2.0  # tail index; a tail as u^-1/2 leaves single precision at five deviations
_INDICES = np.linspace(0.01, _HEAVIEST, 60)
_RATIOS = np.concatenate([[0.0], np.geomspace(0.02, 50.0, 60)])
_TILTS, _TILT_SD = np.linspace(-0.5, 0.5, 41), 0.1


@dataclass(frozen=True)
class Light:
    """A hazard that grows linearly: ``rate * (1 + ratio * d)``."""

    rate: float
    ratio: float

    def exponent(self, d: Array) -> Array:
        """Return E at distances ``d``."""
        return self.rate * d * (1 + 0.5 * self.ratio * d)

    def reach(self, exponent: float) -> float:
        """Return a distance at which E is ``exponent``."""
        scaled = exponent / self.rate
        return 2 * scaled / (1 + (1 + 2 * self.ratio * scaled) ** 0.5)

    def __str__(self) -> str:
        return "exponential" if self.ratio < 0.05 * self.rate else "normal"


@dataclass(frozen=True)
class Heavy:
    """A generalised Pareto law."""

    ratio: float
    index: float

    @property
    def rate(self) -> float:
        """The hazard at the edge."""
        return self.ratio / self.index

    def exponent(self, d: Array) -> Array:
        """Return E at distances ``d``."""
        return np.log1p(self.ratio * d) / self.index

    def reach(self, exponent: float) -> float:
        """Return a distance at which E is ``exponent``."""
        return float(np.expm1(self.index * exponent)) / self.ratio

    def __str__(self) -> str:
        return "exponential" if self.index < 0.05 else f"u^-{1 / self.index:.2g}"


@dataclass(frozen=True)
class Wall:
    """A density that is linear in the distance from a wall."""

    tilt: float

    @property
    def rate(self) -> float:
        """The hazard at the edge."""
        return 1 - self.tilt

    def exponent(self, d: Array) -> Array:
        """Return E at distances ``d``."""
        return d - np.log1p(-self.tilt * np.expm1(-d))

    def reach(self, exponent: float) -> float:
        """Return a distance at which E is ``exponent`` at the least."""
        return exponent + 1.0

    def __str__(self) -> str:
        return "wall"


Tail = Light | Heavy | Wall


def fit_tail(d: Array, weights: Array, *, wall: bool) -> Tail:
    """Return the tail of exceedances.

    Arguments:
        d: positive distances from the edge, with shape ``(n,)``.
        weights: their weights, which add up to the number of rows that they are worth.
        wall: whether the coordinate ends in a wall on this side.
    """
    count, unit = weights.sum(), float(np.median(d))
    ratios = _RATIOS / unit
    rates = count / (weights @ d + 0.5 * ratios * (weights @ d**2))
    logs = np.log1p(ratios[:, None] * d) @ weights
    light = count * (np.log(rates) - 1) + logs
    # Of a generalised Pareto law with index xi, r times the median is 2^xi - 1.
    slopes = np.expm1(_INDICES * np.log(2)) / unit
    indices = np.log1p(slopes[:, None] * d) @ weights / count
    heavy = count * (np.log(slopes / indices) - indices - 1)
    heavy = np.where(indices <= _HEAVIEST, heavy, -np.inf)
    costs = _cost(ratios / rates), _cost(-indices)
    best_light, best_heavy = (light - costs[0]).argmax(), (heavy - costs[1]).argmax()
    if wall:
        best = _wall(d, weights)
        if best[0] >= max(light.max(), heavy.max()) - _ALIKE:
            return best[1]
    if (light - costs[0])[best_light] >= (heavy - costs[1])[best_heavy]:
        return Light(float(rates[best_light]), float(ratios[best_light]))
    return Heavy(float(slopes[best_heavy]), float(indices[best_heavy]))


def _wall(d: Array, weights: Array) -> tuple[float, Wall]:
    """Return the best tail towards a wall, and its log-likelihood."""
    t = np.exp(-d)
    found = np.log(1 + _TILTS[:, None] * (1 - 2 * t)) @ weights - weights @ d
    best = int((found - 0.5 * (_TILTS / _TILT_SD) ** 2).argmax())
    return float(found[best]), Wall(float(_TILTS[best]))


def _cost(bend: Array) -> Array:
    return 0.5 * ((np.minimum(bend, 1.0) - _NORMAL_BEND) / _BEND_SD) ** 2
