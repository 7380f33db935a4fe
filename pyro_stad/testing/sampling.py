r"""What a sampler draws of normal data, without chance: the oracle of orders of convergence.

The field of normal data is linear, and so is a draw, in the noise that goes in and in all noise
that comes in on the way: :math:`x = \sum_j c_j \xi_j`. With the j-th noise set to one in the j-th
row of a batch and to zero in all others, the rows that come out are the :math:`c_j`, and the
variance of the draws is the sum of their squares, to rounding. Its distance from the variance of
the data, by the number of steps, shows the order of a sampler in the weak sense.
"""

from __future__ import annotations

import math
from unittest import mock

import torch
from torch import Tensor

from pyro_stad.drawing import AbstractPhaseSampler, AbstractSampler
from pyro_stad.drawing.walk import Walk
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.paths import VPCosine

__all__ = ["drawn_variance", "true_variance"]

# Wide enough for every sampler's ends.
_FIELD = VPCosine(t_min=1e-6, t_max=1 - 1e-6)


def drawn_variance(sampler: AbstractSampler, variance: float) -> float:
    """Return the variance of what a sampler draws of N(0, ``variance``), in one dimension."""
    one = torch.ones(1, 1, dtype=torch.float64)
    field = GaussianMixtureField(_FIELD, one[0], 0 * one, variance * one[None])
    # Positions and momenta, and each of them at every call at the most.
    count = 2 + 4 * sampler.stops.steps * max(2, sampler.calls_per_step)
    row = iter(range(1, count))

    def unit(walk: Walk, like: Tensor) -> Tensor:
        noise = torch.zeros_like(like)
        for place in range(like[0].numel()):
            noise[next(row)].view(-1)[place] = 1
        return noise

    z = torch.zeros(count, 1, dtype=torch.float64)
    z[0] = 1
    with mock.patch.object(Walk, "normal", unit), torch.no_grad():
        return sampler.draw(field, z).square().sum().item()


def true_variance(sampler: AbstractSampler, variance: float, low: float) -> float:
    """Return the variance of the data, with the noise that is left at the last angle, ``low``."""
    angle = sampler.path.angles()[0] if isinstance(sampler, AbstractPhaseSampler) else low
    return variance + math.tan(angle) ** 2
