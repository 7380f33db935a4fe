r"""Samplers that add noise on the way.

In own time the forward diffusion of every Gaussian path is the same,
:math:`dy = -\tan\varphi\, y\, d\varphi + \sqrt{2 \tan\varphi}\, dW`: what differs is the clock. Its
variance preserving time is :math:`b = -\log\cos\varphi`, half the integral of beta.

*Euler-Maruyama* takes the reverse diffusion in that time,
:math:`y' = y + \Delta b\,(y + 2 s) + \sqrt{2 \Delta b}\,\xi`, with the score s.

*EDM's stochastic Heun* works on :math:`X = y / \cos\varphi = x_0 + \sigma\epsilon`,
:math:`\sigma = \tan\varphi`. It raises the noise to :math:`\hat\sigma = \sigma (1 + \gamma)`, and
then takes a step of Heun's rule along :math:`dX/d\sigma = \hat\epsilon`.

*Predictor-corrector*: a step of Euler-Maruyama, and then steps of Langevin dynamics at its end,
:math:`y \mathrel{+}= \epsilon s + \sqrt{2 \epsilon}\,\xi` with :math:`\epsilon = 2 r^2
\sin^2\varphi`. Song et al. take the ratio of the norms of noise and score, averaged over the batch;
here it is what it is in the mean, :math:`\sin\varphi`, so that no draw depends on its batch mates.

References:
    Song et al. (2021), Score-Based Generative Modeling through Stochastic Differential Equations;
    Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from pyro_stad._checks import check_between, check_count, check_positive
from pyro_stad.drawing.base import AbstractSampler
from pyro_stad.drawing.walk import Walk
from pyro_stad.registry import storable

__all__ = ["EDMChurn", "EulerMaruyama", "PredictorCorrector"]

_MOST_CHURN = math.sqrt(2) - 1


def _maruyama(way: Walk, y: Tensor, before: float, after: float) -> Tensor:
    """Return the point after a step of the reverse diffusion: one call."""
    step = math.log(math.cos(after) / math.cos(before))
    _, noise = way.parts(before, y)
    mean = y + step * (y - 2 / math.sin(before) * noise)
    return mean + math.sqrt(2 * step) * way.normal(y)


@storable("sampler", "euler-maruyama")
@dataclass(frozen=True, repr=False)
class EulerMaruyama(AbstractSampler):
    """Euler-Maruyama on the reverse diffusion: one call a step."""

    is_stochastic: ClassVar[bool] = True
    usual_grid: ClassVar[str] = "uniform"

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        for before, after in pairwise(times):
            y = _maruyama(way, y, before, after)
            yield y


@storable("sampler", "edm")
@dataclass(frozen=True, repr=False)
class EDMChurn(AbstractSampler):
    """EDM's stochastic Heun rule: two calls a step.

    Arguments:
        churn: how much noise is added in all, in steps; 0 for none.
        lowest, highest: noises, in standard deviations of the data, between which it is added.
        inflation: by which factor the noise that is added is larger than it should be.
    """

    churn: float = 10.0
    lowest: float = 0.05
    highest: float = 50.0
    inflation: float = 1.0

    usual_grid: ClassVar[str] = "uniform"
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.inflation, "inflation")
        check_between(self.churn, "churn")
        check_between(self.highest, "highest")
        check_between(self.lowest, "lowest", 0, self.highest)

    @property
    def calls_per_step(self) -> int:
        return 2

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        for before, after in pairwise(times):
            y = self._step(way, y, before, after)
            yield y

    def _step(self, way: Walk, y: Tensor, before: float, after: float) -> Tensor:
        sigma, end = math.tan(before), math.tan(after)
        point, start = y / math.cos(before), sigma
        if self.churn and self.lowest <= sigma <= self.highest:
            start = sigma * (1 + min(self.churn / self.stops.steps, _MOST_CHURN))
            added = self.inflation * math.sqrt(start**2 - sigma**2)
            point = point + added * way.normal(y)
        slope = _slope(way, point, start)
        guess = point + (end - start) * slope
        point = point + 0.5 * (end - start) * (slope + _slope(way, guess, end))
        return math.cos(after) * point


def _slope(way: Walk, point: Tensor, sigma: float) -> Tensor:
    """Return the mean of the noise, the slope of ``point`` in sigma."""
    # A little more noise than the field knows is as good as the most that it knows.
    angle = min(math.atan(sigma), way.field.t_max)
    return way.parts(angle, math.cos(angle) * point)[1]


@storable("sampler", "predictor-corrector")
@dataclass(frozen=True, repr=False)
class PredictorCorrector(AbstractSampler):
    """Euler-Maruyama with Langevin steps at the end of each of its own.

    Arguments:
        corrections: Langevin steps, one call each.
        ratio: r, the signal-to-noise ratio of a Langevin step.
    """

    corrections: int = 1
    ratio: float = 0.16

    is_stochastic: ClassVar[bool] = True
    usual_grid: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.corrections, "corrections", most=1000)
        check_positive(self.ratio, "ratio")

    @property
    def calls_per_step(self) -> int:
        return 1 + self.corrections

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        for before, after in pairwise(times):
            y = _maruyama(way, y, before, after)
            for _ in range(self.corrections):
                y = self._corrected(way, y, after)
            yield y

    def _corrected(self, way: Walk, y: Tensor, angle: float) -> Tensor:
        _, noise = way.parts(angle, y)
        size = 2 * (self.ratio * math.sin(angle)) ** 2
        return y - size / math.sin(angle) * noise + math.sqrt(2 * size) * way.normal(y)
