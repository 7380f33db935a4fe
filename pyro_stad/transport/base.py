"""What carries noise to data: a draw of a prior is the image of a draw of N(0, I).

A transport knows nothing of densities. One that can't be gone back, such as a generator of one
step, has no ``pull`` and says so by its type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pyro_stad.ode import AbstractSolver

__all__ = ["AbstractInvertible", "AbstractTransport"]


class AbstractTransport(nn.Module, ABC):
    """A map from standard normal noise to whitened data, row by row."""

    @abstractmethod
    def push(self, z: Tensor) -> Tensor:
        """Carry standard normal ``z``, shape ``(B, *event_shape)``, to data of the same shape.

        Rows that could not be carried hold NaN.
        """

    def on_grid(self, solver: AbstractSolver) -> AbstractTransport | None:
        """Return the same transport on another time grid; None for one that has no grid."""
        return None

    @abstractmethod
    def sequential_calls(self) -> int | None:
        """Return the network calls, one after the other, of ``push``; None if they vary."""


class AbstractInvertible(AbstractTransport):
    """A transport that can be gone back."""

    @abstractmethod
    def pull(self, x: Tensor) -> Tensor:
        """Carry data ``x``, shape ``(B, *event_shape)``, back to noise of the same shape."""
