r"""The named paths: variance preserving, sub-VP, variance exploding, EDM, optimal transport.

Each leaf is its pair :math:`(a, s)`, the derivatives, and the inverse of the ratio
:math:`r = s / a`. The default ``t_min`` puts the data end at :math:`r = 0.01`, one percent of the
standard deviation of standardised data (EDM: its published 0.002), so that all paths describe the
same, slightly smoothed, density.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad.paths.base import AbstractPath
from pyro_stad.registry import registered, storable

__all__ = [
    "EDM",
    "PATHS",
    "OptimalTransport",
    "SubVP",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
]


def _linear_beta_integral(t: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the integral of beta from 0 to ``t``, and beta at ``t``."""
    return low * t + 0.5 * (high - low) * t * t, low + (high - low) * t


def _linear_beta_time(integral: Tensor, low: float, high: float) -> Tensor:
    """Return the time at which the integral of beta reaches ``integral``."""
    # The stable root: no cancellation for small integrals.
    return 2 * integral / (low + torch.sqrt(low * low + 2 * (high - low) * integral))


@storable("path", "vp")
@dataclass(frozen=True)
class VPLinear(AbstractPath):
    """Variance preserving with linear beta: :math:`a = e^{-B/2}, s^2 = 1 - e^{-B}`.

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models; Song et al. (2021).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 9.2e-4
    t_max: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        integral, beta = _linear_beta_integral(t, self.beta_min, self.beta_max)
        a = torch.exp(-0.5 * integral)
        s = torch.sqrt(-torch.expm1(-integral))
        return a, s, -0.5 * beta * a, 0.5 * beta * a * a / s

    def time(self, ratio: Tensor) -> Tensor:
        return _linear_beta_time(torch.log1p(ratio * ratio), self.beta_min, self.beta_max)


@storable("path", "cosine")
@dataclass(frozen=True)
class VPCosine(AbstractPath):
    r"""Variance preserving with a cosine: :math:`a = \cos(\pi t / 2), s = \sin(\pi t / 2)`.

    Time *is* the angle here. It stops short of pure noise, where the faces that divide by
    :math:`a` end.

    References:
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models.
    """

    t_min: float = 0.0064
    t_max: float = 0.9999

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        angle = 0.5 * math.pi * t
        a, s = torch.cos(angle), torch.sin(angle)
        return a, s, -0.5 * math.pi * s, 0.5 * math.pi * a

    def time(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio) * (2 / math.pi)


@storable("path", "subvp")
@dataclass(frozen=True)
class SubVP(AbstractPath):
    """Sub-variance preserving: :math:`a = e^{-B/2}, s = 1 - a^2`.

    References:
        Song et al. (2021), Score-Based Generative Modeling through Stochastic Differential
        Equations.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 0.027
    t_max: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        integral, beta = _linear_beta_integral(t, self.beta_min, self.beta_max)
        a = torch.exp(-0.5 * integral)
        return a, -torch.expm1(-integral), -0.5 * beta * a, beta * a * a

    def time(self, ratio: Tensor) -> Tensor:
        # a^2 + r a - 1 = 0, in the form that survives large ratios.
        a = 2 / (ratio + torch.sqrt(ratio * ratio + 4))
        return _linear_beta_time(-2 * torch.log(a), self.beta_min, self.beta_max)


@storable("path", "ve")
@dataclass(frozen=True)
class VarianceExploding(AbstractPath):
    """Variance exploding: :math:`a = 1`, geometric :math:`s`.

    ``sigma_max`` is 100, twice that of image work, to bring the law at ``t_max`` nearer its
    Gaussian; what the difference is worth has not been measured.

    References:
        Song and Ermon (2019), Generative Modeling by Estimating Gradients of the Data Distribution.
    """

    sigma_min: float = 0.01
    sigma_max: float = 100.0
    t_min: float = 0.0
    t_max: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        growth = math.log(self.sigma_max / self.sigma_min)
        s = self.sigma_min * torch.exp(growth * t)
        return torch.ones_like(t), s, torch.zeros_like(t), growth * s

    def time(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@storable("path", "edm")
@dataclass(frozen=True)
class EDM(AbstractPath):
    r"""Karras et al.: :math:`a = 1`, :math:`s^{1/\rho}` linear in time.

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    t_min: float = 0.0
    t_max: float = 1.0

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        low, high = self._roots()
        root = low + t * (high - low)
        rate = self.rho * root ** (self.rho - 1) * (high - low)
        return torch.ones_like(t), root**self.rho, torch.zeros_like(t), rate

    def time(self, ratio: Tensor) -> Tensor:
        low, high = self._roots()
        return (ratio ** (1 / self.rho) - low) / (high - low)


@storable("path", "ot")
@dataclass(frozen=True)
class OptimalTransport(AbstractPath):
    """Conditional optimal transport, as in flow matching: :math:`a = 1 - t, s = t`.

    Note that time runs from data to noise here, as everywhere in this package.

    References:
        Lipman et al. (2023), Flow Matching for Generative Modeling.
    """

    t_min: float = 0.0099
    t_max: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return 1 - t, t, -one, one

    def time(self, ratio: Tensor) -> Tensor:
        # 1 / (1 + 1/r), finite for the infinite ratio at t = 1.
        return 1 / (1 + 1 / ratio)


PATHS: Mapping[str, type[AbstractPath]] = registered("path")
