r"""Kernels: moves that leave a law as it is, many chains of many objects at a time.

The law is given by its density relative to N(0, I), in the coordinates z in which a normal law that
is near to it is standard. A kernel moves a state and says how often it did; how far its moves go is
the business of whoever runs it.

The preconditioned Crank-Nicolson move, :math:`z' = \sqrt{1 - s^2}\, z + s\, \xi`, leaves N(0, I) as
it is, in any dimension, so that it is taken with the chance of the relative density alone.

Hamiltonian dynamics are split in the same spirit: with r the relative log-density, a kick
:math:`p \mathrel{+}= \tfrac h2 \nabla r`, the exact motion under N(0, I), which turns (z, p) by the
angle h, and a kick again. Where r is flat nothing is refused at any step, and after a quarter turn
z is forgotten; so a quarter turn it is, but for a random factor, against motions that come back to
where they began.

References:
    Cotter, Roberts, Stuart and White (2013), MCMC Methods for Functions: Modifying Old Algorithms
    to Make Them Faster; Beskos, Pinski, Sanz-Serna and Stuart (2011), Hybrid Monte Carlo on Hilbert
    Spaces; Shahbaba, Lan, Johnson and Neal (2014), Split Hamiltonian Monte Carlo.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_positive
from pyro_stad.registry import storable

__all__ = [
    "AbstractKernel",
    "CrankNicolson",
    "Hamiltonian",
    "Law",
    "Move",
    "State",
    "with_gradient",
]


class State(NamedTuple):
    """Where chains are.

    Attributes:
        z: their coordinates, ``(objects, ..., D)``.
        log_density: of the law there, relative to N(0, I), ``(objects, ...)``.
        kept: what was computed with it, each of the shape of one of the two.
        gradient: of the log-density, of the shape of z, if it was asked for.
    """

    z: Tensor
    log_density: Tensor
    kept: tuple[Tensor, ...] = ()
    gradient: Tensor | None = None

    def of_objects(self, which: Tensor) -> State:
        """Return the chains of some objects."""
        gradient = None if self.gradient is None else self.gradient[which]
        kept = tuple(value[which] for value in self.kept)
        return State(self.z[which], self.log_density[which], kept, gradient)

    def with_objects(self, which: Tensor, other: State) -> State:
        """Return this state, with the chains of some objects from another one."""

        def placed(old: Tensor, new: Tensor) -> Tensor:
            old = old.clone()
            old[which] = new
            return old

        return State(
            placed(self.z, other.z),
            placed(self.log_density, other.log_density),
            tuple(map(placed, self.kept, other.kept)),
            placed(cast(Tensor, self.gradient), cast(Tensor, other.gradient)),
        )

    def where(self, taken: Tensor, other: State) -> State:
        """Return this state where ``taken``, ``(objects, ...)``, and the other one elsewhere."""

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            mask = taken if new.ndim == taken.ndim else taken[..., None]
            return torch.where(mask, new, old)

        return State(
            chosen(self.z, other.z),
            chosen(self.log_density, other.log_density),
            tuple(map(chosen, self.kept, other.kept)),
            None
            if self.gradient is None or other.gradient is None
            else chosen(self.gradient, other.gradient),
        )


class Law(Protocol):
    """A law: the state at new coordinates.

    Arguments:
        z: coordinates, ``(b, ..., D)``.
        which: whose they are, a mask of all objects; None for all of them.
    """

    def __call__(self, z: Tensor, which: Tensor | None = None) -> State: ...


class Move(NamedTuple):
    """What a move has done.

    Attributes:
        state: where chains are.
        taken: which of them have moved, ``(objects, ...)``.
        energy: of each before it, in its coordinates: minus the logarithm of the density, and the
            kinetic energy, if there are momenta.
        gained: the logarithm of the chance with which it was taken, or more.
    """

    state: State
    taken: Tensor
    energy: Tensor
    gained: Tensor


class AbstractKernel(ABC):
    """A move of all chains.

    Class attributes:
        acceptance: the share of moves to be taken, where its steps are as long as is best.
        longest: the longest step that it takes.
    """

    acceptance: float
    longest: float = 1.0

    @abstractmethod
    def step(self, state: State, law: Law, scale: Tensor, generator: torch.Generator) -> Move:
        """Move once.

        Arguments:
            state: where they are.
            law: the state at new coordinates.
            scale: how far moves go, up to ``longest``, one for each object, ``(objects,)``.
            generator: source of randomness.
        """


@storable("kernel", "crank-nicolson")
@dataclass(frozen=True)
class CrankNicolson(AbstractKernel):
    """The preconditioned Crank-Nicolson move."""

    acceptance = 0.35

    def step(self, state: State, law: Law, scale: Tensor, generator: torch.Generator) -> Move:
        z = state.z
        options = {"generator": generator, "dtype": z.dtype, "device": z.device}
        s = scale.to(z).reshape(-1, *[1] * (z.ndim - 1))
        noise = torch.randn(z.shape, **options)  # type: ignore[call-overload]
        new = law((1 - s.square()).sqrt() * z + s * noise)
        chance = torch.rand(z.shape[:-1], **options)  # type: ignore[call-overload]
        gained = new.log_density - state.log_density
        taken = chance.log() < gained
        energy = 0.5 * z.square().sum(-1) - state.log_density
        return Move(new.where(taken, state), taken, energy, gained)


@storable("kernel", "hamiltonian")
@dataclass(frozen=True)
class Hamiltonian(AbstractKernel):
    """Hamiltonian dynamics over a quarter turn, split so that N(0, I) is moved exactly.

    Arguments:
        turns: how far a move goes, in quarter turns.
        most_steps: gradients of a move, at the most.
    """

    turns: float = 1.0
    most_steps: int = 64
    acceptance = 0.8
    longest = 0.5 * math.pi

    def __post_init__(self) -> None:
        check_positive(self.turns, "turns")
        check_count(self.most_steps, "most_steps")

    def step(self, state: State, law: Law, scale: Tensor, generator: torch.Generator) -> Move:
        start = state if state.gradient is not None else with_gradient(law, state.z)
        start = start._replace(kept=state.kept)
        options = {"generator": generator, "dtype": state.z.dtype, "device": state.z.device}
        p = torch.randn(state.z.shape, **options)  # type: ignore[call-overload]
        factor = 0.5 + torch.rand((), **options).item()  # type: ignore[call-overload]
        angle = 0.5 * math.pi * self.turns * factor
        counts = (angle / scale.to(state.z)).ceil().clamp(max=self.most_steps)
        steps = torch.minimum(angle / counts, scale.to(counts))
        new, moved = self._carried(start, p, law, steps, counts)
        energy = 0.5 * _squares(p, start.z) - start.log_density
        gained = new.log_density - 0.5 * _squares(moved, new.z) + energy
        chance = torch.rand(state.z.shape[:-1], **options)  # type: ignore[call-overload]
        taken = chance.log() < gained
        return Move(new.where(taken, start), taken, energy, gained)

    def _carried(
        self, state: State, p: Tensor, law: Law, steps: Tensor, counts: Tensor
    ) -> tuple[State, Tensor]:
        """Move every object by as many steps as it takes; who has arrived is not asked again."""
        for index in range(int(counts.max())):
            on = index < counts
            if on.all():
                state, p = _stepped(state, p, law, steps, None)
                continue
            part, momenta = _stepped(state.of_objects(on), p[on], law, steps[on], on)
            state, p = state.with_objects(on, part), p.clone()
            p[on] = momenta
        return state, p


def _stepped(
    state: State, p: Tensor, law: Law, steps: Tensor, which: Tensor | None
) -> tuple[State, Tensor]:
    """Return the state and momenta of objects ``which`` after a step of each."""
    step = steps.reshape(-1, *[1] * (p.ndim - 1))
    p = p + 0.5 * step * cast(Tensor, state.gradient)
    z, p = step.cos() * state.z + step.sin() * p, step.cos() * p - step.sin() * state.z
    state = with_gradient(law, z, which)
    return state, p + 0.5 * step * cast(Tensor, state.gradient)


def with_gradient(law: Law, z: Tensor, which: Tensor | None = None) -> State:
    """Return the state at ``z`` with its gradient, which is zero where there is none."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        state = law(at, which)
        (gradient,) = torch.autograd.grad(state.log_density.sum(), at)
    kept = tuple(value.detach() for value in state.kept)
    gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
    return State(z, state.log_density.detach(), kept, gradient)


def _squares(p: Tensor, z: Tensor) -> Tensor:
    return p.square().sum(-1) + z.square().sum(-1)
