"""The flow given a context as a transform: noise to whitened data, for each member of a batch."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["GivenFlow"]


class GivenFlow(Transform):
    """The map from noise z to whitened data given a context.

    Arguments:
        law: a ``ConditionalLaw``.
        white: the context as networks see it, ``(*batch, C)``.
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, law: Any, white: Tensor) -> None:
        super().__init__()
        self.law, self.white = law, white

    def with_cache(self, cache_size: int = 1) -> GivenFlow:
        """Return self: see ``FlowTransform.with_cache``."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        rows, context = self._as_rows(x)
        return self.law.transport.given(context).push(rows).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        rows, context = self._as_rows(y)
        return self.law.transport.given(context).pull(rows).reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at noise ``x`` and data ``y``: shape ``(...)``."""
        rows, context = self._as_rows(y)
        log_prob = self.law.likelihood.given(context).log_prob(rows).reshape(y.shape[:-1])
        normal = -0.5 * x.square().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
        return normal - log_prob

    def _as_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        context = self.white.expand(*x.shape[:-1], self.white.shape[-1])
        return x.reshape(-1, x.shape[-1]), context.reshape(-1, self.white.shape[-1])
