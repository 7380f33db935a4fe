r"""Solvers on torchdiffeq: fixed grids for inference, dopri5 as the reference.

A fixed grid evaluates every point at the same times whatever its batch mates are, so the result is
a smooth, deterministic function of the point alone, and it can be traced. An adaptive solver steps
on the joint error norm of the batch: one outlier moves its neighbours, and a trace of it is
silently wrong on new inputs. Hence adaptive solvers refuse to be traced, and the likelihoods use
them one-off, as references.

References:
    Chen (2018), torchdiffeq; Dormand and Prince (1980), A Family of Embedded Runge-Kutta Formulae.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl import fixed_grid

from pyro_stad._checks import check_count, check_positive
from pyro_stad.registry import registered, storable

__all__ = [
    "GRADING",
    "RK4",
    "SOLVERS",
    "AbstractFixedGrid",
    "AbstractSolver",
    "Dopri5",
    "Midpoint",
]

# Knots at low + (high - low) u^1.5, denser towards the data end, which is the lower end of time.
# There the field varies on the scale of the finest structure of the data; on mixtures in 8 and 32
# dimensions 64 graded steps have at most a fourteenth of the error of 64 even ones; a power of 2 is
# about as good, one of 3 is worse.
GRADING = 1.5

# Beyond these a solve takes hours: a slip, or a file that means harm.
_MOST_STEPS, _MOST_ADAPTIVE_STEPS = 100_000, 1_000_000

VectorField = Callable[[Tensor, Tensor], Tensor]


class AbstractSolver(ABC):
    """Integrates ``dx/dt = field(t, x)``, in either direction of time.

    Class attributes:
        is_adaptive: whether steps depend on the batch.
    """

    is_adaptive: ClassVar[bool]

    @abstractmethod
    def integrate(self, field: VectorField, state: Tensor, start: float, end: float) -> Tensor:
        """Return the state at time ``end``.

        Arguments:
            field: right-hand side ``(t, state) -> d state / dt``, with scalar ``t``.
            state: initial state with shape ``(B, S)``.
            start, end: times; ``end`` may lie before ``start``.

        Returns:
            The final state with shape ``(B, S)``. Rows that could not be solved hold NaN; nothing
            is raised for them.
        """

    @abstractmethod
    def sequential_calls(self) -> int | None:
        """Return the field calls of one solve; None if they depend on the batch."""


class AbstractFixedGrid(AbstractSolver):
    """A Runge-Kutta rule of torchdiffeq on ``steps`` steps, denser towards the lower time.

    The rule is torchdiffeq's, the loop over steps is not: ``odeint`` writes its result in place,
    which ``torch.vmap`` refuses, and compares times, which a trace can't follow.

    Class attributes:
        rule: torchdiffeq's solver, of which one step is used.
        stages: field calls a step.
    """

    is_adaptive = False
    rule: ClassVar[type[fixed_grid.FixedGridODESolver]]
    stages: ClassVar[int]
    steps: int

    def __post_init__(self) -> None:
        check_count(self.steps, "steps", most=_MOST_STEPS)

    def sequential_calls(self) -> int:
        return self.steps * self.stages

    def integrate(self, field: VectorField, state: Tensor, start: float, end: float) -> Tensor:
        # A queue of one: the states before the last are not kept.
        return deque(self._states(field, state, start, end), maxlen=1).pop()

    def trajectory(
        self, field: VectorField, state: Tensor, start: float, end: float
    ) -> tuple[Tensor, Tensor]:
        """Return the knots, ``(steps + 1,)``, and the states there, ``(steps + 1, B, S)``."""
        states = [state, *self._states(field, state, start, end)]
        return self._knots(state, start, end), torch.stack(states)

    def _knots(self, state: Tensor, start: float, end: float) -> Tensor:
        # Float64: in float32 the first steps would be rounded.
        places = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device=state.device)
        low, high = min(start, end), max(start, end)
        knots = (low + (high - low) * places**GRADING).to(state.dtype)
        return knots if start < end else knots.flip(0)

    def _states(
        self, field: VectorField, state: Tensor, start: float, end: float
    ) -> Iterator[Tensor]:
        """Yield the state after each step."""

        def unperturbed(t: Tensor, x: Tensor, perturb: object = None) -> Tensor:
            return field(t, x)

        rule = self.rule(unperturbed, state, atol=0.0)
        knots = self._knots(state, start, end).unbind()
        for t0, t1 in zip(knots, knots[1:]):
            change, _ = rule._step_func(unperturbed, t0, t1 - t0, t1, state)
            state = state + change
            yield state


@storable("solver", "midpoint")
@dataclass(frozen=True)
class Midpoint(AbstractFixedGrid):
    """The explicit midpoint rule on a fixed grid: order 2, two field calls a step."""

    steps: int = 32
    rule = fixed_grid.Midpoint
    stages = 2


@storable("solver", "rk4")
@dataclass(frozen=True)
class RK4(AbstractFixedGrid):
    """The fourth-order Runge-Kutta (3/8) rule on a fixed grid: four field calls a step."""

    steps: int = 16
    rule = fixed_grid.RK4
    stages = 4


@storable("solver", "dopri5")
@dataclass(frozen=True)
class Dopri5(AbstractSolver):
    """Dormand-Prince 5(4) with adaptive steps: a reference, not for use inside NUTS.

    Arguments:
        rtol, atol: tolerances on the joint error norm of the batch.
        max_steps: steps after which the batch is given up (its rows become NaN).
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    max_steps: int = 10_000
    is_adaptive = True

    def __post_init__(self) -> None:
        check_positive(self.rtol, "rtol")
        check_positive(self.atol, "atol")
        check_count(self.max_steps, "max_steps", most=_MOST_ADAPTIVE_STEPS)

    def sequential_calls(self) -> None:
        return None

    def integrate(self, field: VectorField, state: Tensor, start: float, end: float) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "an adaptive solver can't be traced: the trace would be silently wrong on new "
                "inputs; use a fixed grid, such as RK4(steps=16), with jit_compile=True"
            )
        ends = torch.tensor([start, end], dtype=state.dtype, device=state.device)
        try:
            return odeint(
                field,
                state,
                ends,
                rtol=self.rtol,
                atol=self.atol,
                method="dopri5",
                options={"max_num_steps": self.max_steps},
            )[-1]
        except AssertionError:
            # torchdiffeq asserts on step underflow, non-finite states and too many steps.
            # A product, so that the graph reaches the caller and its gradient can be zeroed.
            return state * torch.nan


SOLVERS: Mapping[str, type[AbstractSolver]] = registered("solver")
