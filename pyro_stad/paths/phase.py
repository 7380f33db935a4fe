r"""Phase-space Langevin diffusion: data are given momenta, which take up a part of the noise.

With momenta p in units of their own standard deviation, :math:`r = 1 / \sqrt M` and
:math:`\nu = \Gamma + 2 r` (critical damping), every pair (x, p) of a coordinate obeys

.. math::
    dz = F z\, dt + G\, dW, \qquad F = \frac\beta2
    \begin{pmatrix} -\Gamma & r \\ -r & -\nu \end{pmatrix}, \qquad
    G G^T = \beta \begin{pmatrix} \Gamma & 0 \\ 0 & \nu \end{pmatrix},

which leaves N(0, I) as it is. Momenta start from :math:`N(0, \kappa I)`. With :math:`q = r\beta t /
2` and :math:`e = \exp(-(\Gamma + \nu)\beta t / 4)` the transition is
:math:`\Phi = e \begin{pmatrix} 1 + q & q \\ -q & 1 - q \end{pmatrix}`, with columns
:math:`\phi_1, \phi_2`, and

.. math::
    z_t = \phi_1 x_0 + L \epsilon, \qquad
    L L^T = \Sigma = \bar\Sigma - \phi_1 \phi_1^T, \qquad
    \bar\Sigma = I - (1 - \kappa)\, \phi_2 \phi_2^T .

Here :math:`\bar\Sigma` is the covariance of z for data of variance one, and :math:`\Sigma` that
given the data, with the initial momentum integrated out, as in hybrid score matching.

**It is a Gaussian path.** Of z only one combination depends on the data: with
:math:`c = \bar\Sigma^{-1} \phi_1` and :math:`\cos^2\varphi = \phi_1^T c`,

.. math:: u = c^T z / \cos\varphi = \cos\varphi\, x_0 + \sin\varphi\, \epsilon_u,

and what of z is independent of u is noise, whatever the data. So
:math:`E[x_0 | z] = E[x_0 | u]`, which any field on any Gaussian path knows at the angle
:math:`\varphi`; with its angular velocity w the score is

.. math:: \nabla_z \log p_t(z) = -\bar\Sigma^{-1} z - \frac{w(\varphi, u)}{\sin\varphi}\, c .

Published networks read x and p, 2 D numbers, and have to learn that one half of them is noise. Here
the network of any prior draws in phase space, and ``path="psld"`` trains on the angles as this
clock spreads them.

References:
    Pandey and Mandt (2023), A Complete Recipe for Diffusion Generative Models; Dockhorn, Vahdat
    and Kreis (2022), Score-Based Generative Modeling with Critically-Damped Langevin Diffusion
    (the case that :math:`\Gamma = 0`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_between, check_positive
from pyro_stad.paths.base import AbstractPath
from pyro_stad.registry import storable

__all__ = ["PSLD", "PhaseLaw"]

_BISECTIONS = 60


class PhaseLaw(NamedTuple):
    r"""What is known of the pair (x, p) at one time; matrices by their entries, ``(..., 2, 2)``.

    Attributes:
        mean: :math:`\phi_1`, ``(..., 2)``, the mean of the pair over the data.
        covariance: :math:`\bar\Sigma`, of the pair for data of variance one.
        precision: its inverse.
        weights: c, ``(..., 2)``.
        angle: :math:`\varphi`.
    """

    mean: Tensor
    covariance: Tensor
    precision: Tensor
    weights: Tensor
    angle: Tensor


@storable("path", "psld")
@dataclass(frozen=True)
class PSLD(AbstractPath):
    r"""The path of what phase-space Langevin diffusion tells of the data.

    Arguments:
        gamma: :math:`\Gamma`, the friction of positions: 0 for critically damped Langevin
            diffusion, 0.01 to 0.02 as published.
        beta: the constant rate.
        inverse_mass: 1 / M.
        momentum_variance: :math:`\kappa`, of the first momenta, in units of their last.
        t_min, t_max: the ends. By default the data end has a hundredth of noise, as on other
            paths; with ``gamma=0`` that is so at ``t_min=5.8e-3``.
    """

    gamma: float = 0.02
    beta: float = 8.0
    inverse_mass: float = 4.0
    momentum_variance: float = 0.04
    t_min: float = 6.25e-4
    t_max: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta", "inverse_mass", "momentum_variance"):
            check_positive(getattr(self, name), name)
        check_between(self.gamma, "gamma")
        if not self.momentum_variance < 1:
            raise ValueError(
                f"`momentum_variance` must be smaller than 1; got {self.momentum_variance!r}"
            )
        super().__post_init__()

    @property
    def coupling(self) -> float:
        """Return r, by which positions and momenta drive each other."""
        return math.sqrt(self.inverse_mass)

    @property
    def friction(self) -> float:
        r"""Return :math:`\nu`, the friction of momenta at critical damping."""
        return self.gamma + 2 * self.coupling

    def law(self, t: Tensor) -> PhaseLaw:
        """Return the law of (x, p) at times ``t``, in float64."""
        first, second = self._columns(t.double())
        lost = 1 - self.momentum_variance
        eye = torch.eye(2, dtype=torch.float64, device=t.device)
        outer = second[..., :, None] * second[..., None, :]
        covariance = eye - lost * outer
        # The inverse of one less an outer product.
        left = 1 - lost * second.square().sum(-1)
        precision = eye + lost / left[..., None, None] * outer
        weights = (precision @ first[..., None])[..., 0]
        sin, cos = self._sine_and_cosine(first, second)
        angle = torch.atan2(sin, cos)
        return PhaseLaw(first, covariance, precision, weights, angle)

    def _columns(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the columns of the transition, :math:`\phi_1` and :math:`\phi_2`."""
        q = 0.5 * self.coupling * self.beta * t
        e = torch.exp(-0.25 * (self.gamma + self.friction) * self.beta * t)
        return (
            torch.stack([e * (1 + q), -e * q], -1),
            torch.stack([e * q, e * (1 - q)], -1),
        )

    def _sine_and_cosine(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return sine and cosine of the angle, each by determinants: one less the other cancels."""
        lost = 1 - self.momentum_variance
        left = 1 - lost * second.square().sum(-1)
        # det(I - k s s') = left, and less f f' it is left - f.f + k (f x s)^2.
        seen = first.square().sum(-1) - lost * _across(first, second).square()
        return ((left - seen) / left).sqrt(), (seen / left).sqrt()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second = self._columns(t.double())
        sin, cos = self._sine_and_cosine(first, second)
        rate = self._rate_of_square(first, second) / (2 * sin * cos)
        cos, sin, rate = cos.to(t), sin.to(t), rate.to(t)
        return cos, sin, -sin * rate, cos * rate

    def _rate_of_square(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the derivative of the squared sine: the columns move by F."""
        lost = 1 - self.momentum_variance
        drift = self.drift().to(first)
        left, across = 1 - lost * second.square().sum(-1), _across(first, second)
        left_rate = -2 * lost * (second * (second @ drift.mT)).sum(-1)
        above = left - first.square().sum(-1) + lost * across.square()
        above_rate = left_rate - 2 * (first * (first @ drift.mT)).sum(-1)
        above_rate = above_rate + 2 * lost * drift.trace() * across.square()
        return (above_rate * left - above * left_rate) / left.square()

    def drift(self) -> Tensor:
        """Return F, ``(2, 2)``, in float64."""
        entries = [[-self.gamma, self.coupling], [-self.coupling, -self.friction]]
        return 0.5 * self.beta * torch.tensor(entries, dtype=torch.float64, device="cpu")

    def diffusion(self) -> Tensor:
        """Return the diagonal of G G^T, ``(2,)``, in float64."""
        frictions = [self.gamma, self.friction]
        return self.beta * torch.tensor(frictions, dtype=torch.float64, device="cpu")

    def time(self, ratio: Tensor) -> Tensor:
        # The angle grows with time; it has no inverse in closed form.
        wanted = torch.atan(ratio.double())
        low, high = torch.zeros_like(wanted), torch.full_like(wanted, self.t_max)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = self.law(middle).angle < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high)).to(ratio)


def _across(first: Tensor, second: Tensor) -> Tensor:
    """Return the determinant of the transition, from its columns."""
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
