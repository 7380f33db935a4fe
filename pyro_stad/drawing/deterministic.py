r"""Samplers without noise on the way: rules for the probability-flow ODE.

It is :math:`dy/d\varphi = w` in own time and coordinates. Two of them are exact where the means of
data and noise stand still, which is where structure has been decided:

*DDIM*: with both means constant the point turns, :math:`y' = \cos\varphi'\,\hat x +
\sin\varphi'\,\hat\epsilon`. It may renew a part of its noise: with
:math:`\varsigma^2 = \eta^2 \frac{\sin^2\varphi'}{\sin^2\varphi}
\big(1 - \frac{\cos^2\varphi}{\cos^2\varphi'}\big)`, :math:`\eta = 1` is the ancestral sampling of
DDPM.

*DPM-Solver++* of order 2: in :math:`\lambda = \log\cot\varphi`, with :math:`h = \lambda' - \lambda`
and the ratio r of the last step to this one,

.. math:: y' = \frac{\sin\varphi'}{\sin\varphi} y + \cos\varphi'\,(1 - e^{-h})\,
    \big(\hat x + \tfrac{1}{2r} (\hat x - \hat x_{\mathrm{last}})\big).

References:
    Song, Meng and Ermon (2021), Denoising Diffusion Implicit Models; Lu et al. (2022),
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models; Ho et al.
    (2020), Denoising Diffusion Probabilistic Models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from pyro_stad._checks import check_between, check_choice
from pyro_stad.drawing.base import AbstractSampler
from pyro_stad.drawing.walk import Walk
from pyro_stad.ode import TABLEAUS, runge_kutta_step
from pyro_stad.registry import storable

__all__ = ["DDIM", "ODE", "DPMSolver"]


@storable("sampler", "ode")
@dataclass(frozen=True, repr=False)
class ODE(AbstractSampler):
    """An explicit Runge-Kutta rule.

    Arguments:
        rule: ``"euler"``, ``"heun"``, ``"midpoint"`` or ``"rk4"``: orders 1, 2, 2 and 4, and as
            many calls a step.
    """

    rule: str = "heun"

    needs_score: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.rule, "rule", TABLEAUS)

    @property
    def calls_per_step(self) -> int:
        return len(TABLEAUS[self.rule].nodes)

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        rule = TABLEAUS[self.rule]
        for start, end in pairwise(times):
            y = runge_kutta_step(rule, way.velocity, y, start, end - start)
            yield y


@storable("sampler", "ddim")
@dataclass(frozen=True, repr=False)
class DDIM(AbstractSampler):
    """The exponential integrator: a turn of the point, one call a step.

    Arguments:
        eta: share of the noise that is renewed at each step: 0 for none, 1 for DDPM's.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self.eta, "eta", 0, 1)

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        for before, after in pairwise(times):
            data, noise = way.parts(before, y)
            sin = math.sin(after)
            gained = 1 - (math.cos(before) / math.cos(after)) ** 2
            renewed = self.eta * sin / math.sin(before) * math.sqrt(gained)
            y = math.cos(after) * data + math.sqrt(sin**2 - renewed**2) * noise
            if renewed:
                y = y + renewed * way.normal(y)
            yield y


@storable("sampler", "dpm-solver")
@dataclass(frozen=True, repr=False)
class DPMSolver(AbstractSampler):
    """DPM-Solver++ of order 2, with the step before for a slope: one call a step."""

    usual_grid: ClassVar[str] = "log-snr"

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        last: Tensor | None = None
        last_step = math.nan
        for before, after in pairwise(times):
            data, _ = way.parts(before, y)
            step = math.log(math.tan(before) / math.tan(after))
            ahead = data if last is None else data + 0.5 * step / last_step * (data - last)
            y = math.sin(after) / math.sin(before) * y - math.cos(after) * math.expm1(-step) * ahead
            last, last_step = data, step
            yield y
