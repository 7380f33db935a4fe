r"""Kernels: moves that leave a law as it is, many chains of many objects at a time.

The law is given by its density relative to N(0, I), in the coordinates z in which a normal law that
is near to it is standard. A kernel moves a state and says how often it did; how far its moves go is
the business of whoever runs it.

The preconditioned Crank-Nicolson move, :math:`z' = \sqrt{1 - s^2}\, z + s\, \xi`, leaves N(0, I) as
it is, in any dimension, so that it is taken with the chance of the relative density alone.

References:
    Cotter, Roberts, Stuart and White (2013), MCMC Methods for Functions: Modifying Old Algorithms
    to Make Them Faster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad.registry import storable

__all__ = ["AbstractKernel", "CrankNicolson", "State"]


class State(NamedTuple):
    """Where chains are.

    Attributes:
        z: their coordinates, ``(objects, ..., D)``.
        log_density: of the law there, relative to N(0, I), ``(objects, ...)``.
        kept: what was computed with it, each of the shape of one of the two.
    """

    z: Tensor
    log_density: Tensor
    kept: tuple[Tensor, ...] = ()

    def where(self, taken: Tensor, other: State) -> State:
        """Return this state where ``taken``, ``(objects, ...)``, and the other one elsewhere."""

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            mask = taken if new.ndim == taken.ndim else taken[..., None]
            return torch.where(mask, new, old)

        return State(
            chosen(self.z, other.z),
            chosen(self.log_density, other.log_density),
            tuple(map(chosen, self.kept, other.kept)),
        )


Law = Callable[[Tensor], State]


class AbstractKernel(ABC):
    """A move of all chains.

    Class attributes:
        acceptance: the share of moves to be taken, where its steps are as long as is best.
    """

    acceptance: float

    @abstractmethod
    def step(
        self, state: State, law: Law, scale: Tensor, generator: torch.Generator
    ) -> tuple[State, Tensor]:
        """Move once; return where chains are, and which of them have moved, ``(objects, ...)``.

        Arguments:
            state: where they are.
            law: the state at new coordinates.
            scale: how far moves go, in (0, 1], one for each object, ``(objects,)``.
            generator: source of randomness.
        """


@storable("kernel", "crank-nicolson")
@dataclass(frozen=True)
class CrankNicolson(AbstractKernel):
    """The preconditioned Crank-Nicolson move."""

    acceptance = 0.35

    def step(
        self, state: State, law: Law, scale: Tensor, generator: torch.Generator
    ) -> tuple[State, Tensor]:
        z = state.z
        options = {"generator": generator, "dtype": z.dtype, "device": z.device}
        s = scale.to(z).reshape(-1, *[1] * (z.ndim - 1))
        noise = torch.randn(z.shape, **options)  # type: ignore[call-overload]
        new = law((1 - s.square()).sqrt() * z + s * noise)
        chance = torch.rand(z.shape[:-1], **options)  # type: ignore[call-overload]
        taken = chance.log() < new.log_density - state.log_density
        return new.where(taken, state), taken
