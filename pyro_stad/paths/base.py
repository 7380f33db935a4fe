r"""How samples meet noise: Gaussian paths as a clock and a scale.

A Gaussian path mixes data :math:`x_0` with noise :math:`\epsilon \sim N(0, I)`,

.. math:: x_t = a(t)\, x_0 + s(t)\, \epsilon, \qquad t \in [t_{\min}, t_{\max}],

with data at :math:`t_{\min}` and noise at :math:`t_{\max}`. In polar form
:math:`(a, s) = c\,(\cos\varphi, \sin\varphi)`, the rescaled point :math:`y = x_t / c(t)` obeys

.. math::
    y = \cos\varphi\; x_0 + \sin\varphi\; \epsilon, \qquad
    \frac{dy}{d\varphi} = w(\varphi, y)
      = E[\cos\varphi\;\epsilon - \sin\varphi\; x_0 \mid y].

So *every* Gaussian path is the same curve in :math:`(\varphi, y)`: a path is only a clock
:math:`\varphi(t)` and a scale :math:`c(t)`. The angular velocity :math:`w` (the "v-prediction" of
Salimans and Ho, 2022) is what networks of this package predict; it is bounded at both ends, its
regression target has unit variance for standardised data at every angle, and the Gaussian baseline
of standardised data is exactly :math:`w = 0`. The velocity along the path is

.. math:: v(t, x) = (\dot c / c)\, x + c\,\dot\varphi\, w(\varphi, x / c),

and its divergence :math:`D\,\dot c / c + \dot\varphi\, \nabla_y\!\cdot w`.

References:
    Song et al. (2021), Score-Based Generative Modeling through Stochastic Differential Equations.
    Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AbstractPath", "Polar"]


# A quarter turn is pure noise, up to rounding.
_NEARLY_NOISE = 0.5 * math.pi + 1e-9


class Polar(NamedTuple):
    """Polar form of a path at times ``t``; every entry has the shape of ``t``."""

    scale: Tensor
    angle: Tensor
    log_scale_rate: Tensor
    angle_rate: Tensor


class AbstractPath(ABC):
    r"""A Gaussian path :math:`x_t = a(t) x_0 + s(t) \epsilon`.

    A leaf gives the coefficients, their derivatives, and the inverse clock; its
    ``t_min`` and ``t_max`` are the ends between which :math:`0 < s` and
    :math:`\dot\varphi > 0`.
    """

    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        """Refuse numbers that make no path; leaves are dataclasses of numbers.

        Raises:
            ValueError: if the path does not lead from data to noise.
        """
        for f in fields(self):  # type: ignore[arg-type]
            name, value = f.name, getattr(self, f.name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(f"`{name}` of a path must be a number from 0 on; got {value!r}")
        try:
            low, high = self.angles()
        except ArithmeticError:
            low = high = math.nan
        if not 0 < low < high < _NEARLY_NOISE:
            raise ValueError(
                f"`path` must lead from data to noise, by angles that increase within (0, pi/2]; "
                f"got {low} at the one end of {self} and {high} at the other"
            )

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""Return :math:`(a, s, \dot a, \dot s)` at ``t``, each with the shape of ``t``."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        r"""Return the time at which the noise-to-data ratio :math:`s / a` is ``ratio``."""

    def polar(self, t: Tensor) -> Polar:
        """Return scale, angle and their rates at ``t``."""
        a, s, da, ds = self.coefficients(t)
        squared = a * a + s * s
        return Polar(
            scale=squared.sqrt(),
            angle=torch.atan2(s, a),
            log_scale_rate=(a * da + s * ds) / squared,
            angle_rate=(a * ds - s * da) / squared,
        )

    def angles(self) -> tuple[float, float]:
        """Return the angles at ``t_min`` and ``t_max``, in radians."""
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device="cpu")
        low, high = self.polar(ends).angle.tolist()
        return low, high

    def time_at_angle(self, angle: Tensor) -> Tensor:
        """Return the times at which the path passes the angles ``angle``, clipped to its ends."""
        return self.time(torch.tan(angle)).clamp(self.t_min, self.t_max)
