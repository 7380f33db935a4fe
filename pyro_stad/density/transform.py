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
from pyro_stad.transport import AbstractInvertible

__all__ = ["FlowTransform", "check_likelihood"]


class FlowTransform(Transform):
    """The map from noise z to data x along the flow.

    Arguments:
        transport: the flow.
        likelihood: the density of x, by whatever way.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transport: AbstractInvertible, likelihood: AbstractLikelihood) -> None:
        super().__init__()
        self.transport, self.likelihood = transport, likelihood

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Return self: a cache would hold the graph of a solve, and never hits inside NUTS."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        flat = self.transport.push(x.reshape(-1, x.shape[-1]))
        return flat.reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        flat = self.transport.pull(y.reshape(-1, y.shape[-1]))
        return flat.reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at noise ``x`` and data ``y``: shape ``(...)``.

        It is what makes noise of the normal density ``y`` of that of the likelihood, which may be
        another estimate than the transport's own: then it is as wrong as they are apart.
        """
        flat = x.reshape(-1, x.shape[-1])
        log_prob = self.likelihood.log_prob(y.reshape(flat.shape))
        normal = -0.5 * flat.square().sum(-1) - 0.5 * flat.shape[-1] * math.log(2 * math.pi)
        return (normal - log_prob).reshape(x.shape[:-1])


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
