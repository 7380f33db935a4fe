r"""The flow as a transform: standard normal noise to standardised data.

A ``torch`` transform like any other, so that Pyro's stock ``TransformReparam`` takes a prior built
on it apart: NUTS and SVI then work on the noise and never ask for a log-determinant.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad.likelihood import AbstractLikelihood

__all__ = ["FlowTransform", "check_likelihood"]


class FlowTransform(Transform):
    """The map from noise z to data x along the flow.

    Arguments:
        likelihood: the flow and its log-density.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, likelihood: AbstractLikelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Return self: a cache would hold the graph of a solve, and never hits inside NUTS."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        flat = self.likelihood.push(x.reshape(-1, x.shape[-1]))
        return flat.reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        flat = self.likelihood.pull(y.reshape(-1, y.shape[-1]))
        return flat.reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at noise ``x`` and data ``y``, by a solve from ``y``."""
        return self.inverse_and_log_det(y)[1]

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise of data ``y`` and the log-determinant of z to x, from one solve."""
        z, log_prob = self.likelihood.pull_and_log_prob(y.reshape(-1, y.shape[-1]))
        normal = -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return z.reshape(y.shape), (normal - log_prob).reshape(y.shape[:-1])


def check_likelihood(likelihood: Any, features: int) -> None:
    """Refuse what is not the density of ``features`` coordinates, which could be broadcast."""
    if not isinstance(likelihood, AbstractLikelihood):
        raise TypeError(
            f"`likelihood` must be FlowODE or SteinPath; got {type(likelihood).__name__}"
        )
    if likelihood.field.features != features:
        raise ValueError(
            f"`likelihood` has a field of {likelihood.field.features} features, the prior has "
            f"{features} coordinates"
        )
