r"""Bayesian linear regression with a conjugate prior: the answer that the demonstration must find.

.. math::
    y = X\beta + \epsilon, \quad \epsilon \sim N(0, \sigma^2), \qquad
    \sigma^2 \sim IG(a, b), \quad \beta | \sigma^2 \sim N(m, \sigma^2 \Lambda^{-1}).

The posterior is of the same form, with :math:`\Lambda' = \Lambda + X^T X`,
:math:`m' = \Lambda'^{-1}(\Lambda m + X^T y)`, :math:`a' = a + n/2` and
:math:`b' = b + \tfrac12 (y^T y + m^T \Lambda m - m'^T \Lambda' m')`.

References:
    Gelman et al. (2013), Bayesian Data Analysis, chapter 14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._random import forked

__all__ = ["NormalInverseGamma"]


@dataclass(frozen=True)
class NormalInverseGamma:
    r"""A normal-inverse-gamma law of coefficients and residual variance, in float64.

    Attributes:
        mean: m with shape ``(P,)``.
        precision: :math:`\Lambda` with shape ``(P, P)``.
        shape, rate: a and b.
    """

    mean: Tensor
    precision: Tensor
    shape: float
    rate: float

    @staticmethod
    def weak(size: int) -> NormalInverseGamma:
        """Return the prior of the demonstration: unit-scale coefficients, ``a = b = 1``."""
        return NormalInverseGamma(
            torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64), 1.0, 1.0
        )

    def update(self, design: Tensor, response: Tensor) -> NormalInverseGamma:
        """Return the posterior given ``design``, shape ``(n, P)``, and ``response``, ``(n,)``."""
        precision = self.precision + design.mT @ design
        mean = torch.linalg.solve(precision, self.precision @ self.mean + design.mT @ response)
        before = self.mean @ self.precision @ self.mean
        after = mean @ precision @ mean
        rate = self.rate + 0.5 * float(response @ response + before - after)
        return NormalInverseGamma(mean, precision, self.shape + 0.5 * len(response), rate)

    def log_marginal(self, design: Tensor, response: Tensor) -> float:
        r"""Return the log-evidence of data, :math:`\log p(y)` under this law as the prior.

        .. math:: \log\frac{\Gamma(a')\, b^a}{\Gamma(a)\, b'^{a'}}
            + \tfrac12 \log\frac{|\Lambda|}{|\Lambda'|} - \tfrac n2 \log 2\pi
        """
        after = self.update(design, response)
        gamma = math.lgamma(after.shape) - math.lgamma(self.shape)
        rates = self.shape * math.log(self.rate) - after.shape * math.log(after.rate)
        volumes = 0.5 * (torch.logdet(self.precision) - torch.logdet(after.precision)).item()
        return gamma + rates + volumes - 0.5 * len(response) * math.log(2 * math.pi)

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return draws of ``coefficients``, ``(count, P)``, and ``log_sigma``, ``(count,)``."""
        # Gamma draws have no generator argument in torch; fork instead of touching the global one.
        seed = int(torch.randint(2**31, (), generator=generator))
        with forked(seed):
            law = torch.distributions.Gamma(
                torch.tensor(self.shape, dtype=torch.float64), self.rate
            )
            sigma = law.sample((count,)).rsqrt()
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        return {
            "coefficients": self.mean + sigma[:, None] * (noise @ factor.mT),
            "log_sigma": sigma.log(),
        }

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of coefficients and log sigma, ``(P + 1,)`` each."""
        shape = torch.tensor(self.shape, dtype=torch.float64)
        log_sigma = 0.5 * (torch.log(torch.tensor(self.rate)) - torch.digamma(shape))
        spread = 0.5 * torch.polygamma(1, shape).sqrt()
        variance = torch.diagonal(torch.linalg.inv(self.precision)) * self.rate / (shape - 1)
        return (
            torch.cat([self.mean, log_sigma.reshape(1)]),
            torch.cat([variance.sqrt(), spread.reshape(1)]),
        )
