r"""The flow as a transform: standard normal noise to standardised data.

A ``torch`` transform like any other, so that Pyro's stock ``TransformReparam`` takes a prior built
on it apart: NUTS and SVI then work on the noise and never ask for a log-determinant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_stad._events import event_sum
from pyro_stad.data.standardise import real_events
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.transport import AbstractInvertible

__all__ = ["FlowTransform", "check_likelihood", "check_transport"]


class FlowTransform(Transform):
    """The map from noise z to data x along the flow.

    Arguments:
        transport: the flow.
        likelihood: the density of x, by whatever way.
    """

    bijective = True

    def __init__(self, transport: AbstractInvertible, likelihood: AbstractLikelihood) -> None:
        super().__init__()
        self.transport, self.likelihood = transport, likelihood
        self._dims = len(likelihood.field.event_shape)
        self.domain = self.codomain = real_events(self._dims)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Return self: a cache would hold the graph of a solve, and never hits inside NUTS."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        return self.transport.push(self._rows(x)).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transport.pull(self._rows(y)).reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at noise ``x`` and data ``y``: shape ``(...)``.

        It is what makes noise of the normal density ``y`` of that of the likelihood, which may be
        another estimate than the transport's own: then it is as wrong as they are apart.
        """
        z, log_prob = self._rows(x), self.likelihood.log_prob(self._rows(y))
        size = self.likelihood.field.features
        normal = -0.5 * event_sum(z.square()) - 0.5 * size * math.log(2 * math.pi)
        return (normal - log_prob).reshape(x.shape[: x.ndim - self._dims])

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *x.shape[x.ndim - self._dims :])


def check_likelihood(likelihood: Any, event_shape: torch.Size) -> None:
    """Refuse what is not the density of such events, which could be broadcast."""
    if not isinstance(likelihood, AbstractLikelihood):
        raise TypeError(
            f"`likelihood` must be a likelihood, such as FlowODE; got {type(likelihood).__name__}"
        )
    if likelihood.context is not None or likelihood.field.context_shape:
        raise ValueError(
            "`likelihood` depends on a context, of which a prior knows nothing: its density given "
            "one is likelihood.given(context).log_prob(x)"
        )
    if likelihood.field.event_shape != event_shape:
        raise ValueError(
            f"`likelihood` has a field of events of shape {tuple(likelihood.field.event_shape)}, "
            f"the prior has events of shape {tuple(event_shape)}"
        )


def check_transport(transport: Any) -> None:
    """Refuse what can't be gone back: noise of data is asked for by alarms and by Pyro."""
    if not isinstance(transport, AbstractInvertible):
        raise TypeError(
            f"`transport` must have a way back (push and pull), as a Flow has; got "
            f"{type(transport).__name__}"
        )
