r"""Divergences: one call, ``divergence(field, t, x)``, and what it costs.

Along the flow :math:`dx/dt = v` the log-density obeys :math:`d\log p / dt = -\nabla\cdot v`. Each
leaf returns velocity and divergence *together*, since every method that computes one has the other
at hand, and says of itself whether it is exact, whether it is one draw of a random estimator, and
how many network passes it costs.

A stochastic divergence freezes its probes at construction. They are shared by all points and all
times: the density it defines is then a fixed, smooth function of x, as NUTS demands, at the price
of an error that is common to all points as well as one that differs between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyro_stad._random import signs
from pyro_stad.fields.base import AbstractField

__all__ = ["AbstractDivergence", "AbstractProbedDivergence"]


class AbstractDivergence(ABC):
    r"""The divergence :math:`\nabla\cdot v` of a field.

    Class attributes:
        is_exact: whether the value is the trace of the Jacobian up to rounding.
        is_stochastic: whether the value is one draw (frozen) of a random estimator.
    """

    is_exact: ClassVar[bool]
    is_stochastic: ClassVar[bool]

    @abstractmethod
    def passes(self, features: int) -> int:
        """Return the Jacobian-vector products per call in ``features`` dimensions."""

    @abstractmethod
    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return velocity ``(B, *event_shape)`` and divergence ``(B,)`` at ``t``."""

    def __call__(self, field: AbstractField, t: Tensor, x: Tensor) -> Tensor:
        """Return the divergence of ``field`` at ``(t, x)``, shape ``(B,)``."""
        return self.velocity_and_divergence(field, t, x)[1]


class AbstractProbedDivergence(AbstractDivergence):
    """A stochastic divergence with probes frozen by ``seed``."""

    is_exact = False
    is_stochastic = True
    num_probes: int
    seed: int

    def _signs(self, count: int, like: Tensor) -> Tensor:
        """Return ``count`` sign vectors ``(count, D)``; the same for every call and every point."""
        return signs((count, like[0].numel()), self._generator(0), like)

    def _sphere(self, count: int, like: Tensor) -> Tensor:
        """Return ``count`` vectors of norm sqrt(D), uniform on the sphere.

        For sketches: sign vectors in few dimensions are often parallel, and the range of a
        rank-deficient sketch jumps from point to point.
        """
        size = like[0].numel()
        draws = torch.randn(
            count, size, generator=self._generator(1), dtype=torch.float64, device="cpu"
        )
        return (size**0.5 * torch.nn.functional.normalize(draws, dim=-1)).to(like)

    def _generator(self, stream: int) -> torch.Generator:
        # Signs and sphere from different streams: the same bits would make them dependent.
        return torch.Generator().manual_seed((2 * self.seed + stream) % 2**64)
