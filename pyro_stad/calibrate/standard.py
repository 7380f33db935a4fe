r"""The standard that ways to a density are held against: exact log-densities at data and at draws.

Where an exact trace is too dear, as of images, it is *sampled*: at every call of the solve fresh
random probes share the coordinates out (:func:`~pyro_stad.divergence.stochastic.shared_probes`).
The velocity has no part in that, so that the way is the same, and the log-density is without bias,
with noise that averages out along it. Two such solves say how large the noise of their mean is, and
with it

.. math:: \mathrm{sd}(e)^2 = \mathrm{sd}(\hat e)^2 - \mathrm{sd}(\text{noise})^2 ,
    \qquad \log E\,e^{e} = \log E\,e^{\hat e} - \tfrac12\,\mathrm{sd}(\text{noise})^2 ,

the second for noise that is normal, as a sum over many calls is. What is taken off is known itself
to a share of :math:`\sqrt{2/n}` by n points: a spread less than what that leaves can't be told from
none, and counts as that much. And the mean of a few dozen weights falls short of the mean of all
where their logarithms vary by more than a nat: with noise of that size no mass is divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._joined import log_prob_at
from pyro_stad._weights import mean_weight
from pyro_stad.calibrate.record import Trial
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.divergence.stochastic import shared_probes
from pyro_stad.fields.base import AbstractField
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.flow_ode import FlowODE, exact_twin

__all__ = ["Sampled", "Standard", "reference"]

_LARGEST = 700.0  # what exp takes
_NOISY = 1.0  # nats of noise, beyond which a mass is not known


class Standard(NamedTuple):
    """Data and the flow's own draws, with their log-densities.

    Attributes:
        data, at_data, draws, at_draws: points and exact log-densities.
        noise: standard deviation of the noise of these, in nats, where the trace was sampled.
    """

    data: Tensor
    at_data: Tensor
    draws: Tensor
    at_draws: Tensor
    noise: float = 0.0

    def error(self, way: AbstractLikelihood) -> Tensor:
        """Return the errors of a way at the data, with the noise in them."""
        return log_prob_at(way, self.data) - self.at_data

    def spread(self, error: Tensor) -> float:
        """Return the standard deviation of errors without the noise."""
        return math.sqrt(max(error.var().item() - self.noise**2, 0.0))

    def at_most(self, spread: float) -> float:
        """Return what a standard deviation without the noise may be, as far as it can be told."""
        return math.hypot(spread, self.noise * (2 * (2 / len(self.data)) ** 0.5) ** 0.5)

    def mass(self, way: AbstractLikelihood) -> tuple[float, float]:
        """Return the logarithm of the mass of a way, and its relative error."""
        log_z, relative = mean_weight(log_prob_at(way, self.draws) - self.at_draws)
        return log_z - 0.5 * self.noise**2, relative

    def measured(self, way: AbstractLikelihood) -> tuple[AbstractLikelihood, Trial]:
        """Return a way with its mass divided out, and how accurate it is; it is not looked over."""
        log_z, relative = self.mass(way)
        # One, in units of the mass; a mass that is not finite says nothing.
        one = math.exp(-log_z) if -_LARGEST < log_z < math.inf else math.inf
        known = math.isfinite(log_z) and self.noise <= _NOISY
        if known and abs(1 - one) > 2 * relative:
            way = way.replace(log_mass=way.log_mass + log_z).freeze()
            log_z = 0.0
        error = self.error(way)
        bias, sd = error.mean().item(), self.spread(error)
        trial = Trial(
            repr(way),
            way.sequential_calls(),
            bias,
            sd,
            bias - log_z,
            math.hypot(error.std().item() / math.sqrt(len(error)), relative),
        )
        return way, trial


@dataclass(frozen=True)
class Sampled(AbstractDivergence):
    """The trace by probes that are others at every call: for a standard, not for a density.

    Arguments:
        products: Jacobian-vector products a call.
        generator: source of the probes.
    """

    is_exact = False
    is_stochastic = True
    products: int
    generator: torch.Generator

    def passes(self, features: int) -> int:
        return self.products

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        probes = shared_probes(self.products, x, self.generator)
        velocity, products = field.jacobian_products(t, x, probes)
        return velocity, (probes * products).flatten(2).sum((0, -1))


def reference(
    likelihood: AbstractLikelihood, x: Tensor, products: int | None, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return log-densities of the flow of ``likelihood`` at ``x``, ``(B,)``, and their noise.

    Arguments:
        likelihood: any way to the density of the flow.
        x: points, whitened.
        products: Jacobian-vector products a call, of each of two solves; None, or as many as there
            are dimensions, takes the exact trace, and there is no noise.
        generator: source of randomness.
    """
    with torch.no_grad():
        if products is None or products >= likelihood.field.features:
            return log_prob_at(exact_twin(likelihood), x), 0.0
        sampled = FlowODE.of(likelihood, divergence=Sampled(products, generator))
        one, other = (log_prob_at(sampled, x) for _ in range(2))
        return (one + other) / 2, ((one - other) / 2).square().mean().sqrt().item()
