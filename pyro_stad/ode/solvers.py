r"""Solvers: Runge-Kutta rules on fixed grids for inference, torchdiffeq's dopri5 as the reference.

A fixed grid evaluates every point at the same times whatever its batch mates are, so the result is
a smooth, deterministic function of the point alone, and it can be traced. An adaptive solver steps
on the joint error norm of the batch: one outlier moves its neighbours, and a trace of it is
silently wrong on new inputs. Hence adaptive solvers refuse to be traced, and the likelihoods use
them one-off, as references.

The loop over steps of a fixed grid is not torchdiffeq's: ``odeint`` writes its result in place,
which ``torch.vmap`` refuses, and compares times, which a trace can't follow.

References:
    Butcher (2016), Numerical Methods for Ordinary Differential Equations; Chen (2018),
    torchdiffeq; Dormand and Prince (1980), A Family of Embedded Runge-Kutta Formulae.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from pyro_stad._checks import check_count, check_positive
from pyro_stad.registry import registered, storable

__all__ = [
    "GRADING",
    "RK4",
    "SOLVERS",
    "TABLEAUS",
    "AbstractFixedGrid",
    "AbstractSolver",
    "Dopri5",
    "Midpoint",
    "Tableau",
    "runge_kutta_step",
    "time_like",
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
            state: initial state with shape ``(B, ...)``.
            start, end: times; ``end`` may lie before ``start``.

        Returns:
            The final state, of the same shape. Rows that could not be solved hold NaN; nothing
            is raised for them.
        """

    @abstractmethod
    def sequential_calls(self) -> int | None:
        """Return the field calls of one solve; None if they depend on the batch."""

    @abstractmethod
    def finer(self) -> AbstractSolver:
        """Return the same solver, more exact: what its error is measured against."""


class Tableau(NamedTuple):
    """An explicit Runge-Kutta rule, as Butcher writes it.

    Attributes:
        nodes: where in a step its stages are, c.
        matrix: what each stage takes of the slopes before it, a.
        weights: what the step takes of all slopes, b.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS: Mapping[str, Tableau] = MappingProxyType(
    {
        "euler": Tableau((0.0,), ((),), (1.0,)),
        "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
        "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
        "rk4": Tableau(
            (0.0, 1 / 3, 2 / 3, 1.0),
            ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
            (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        ),
    }
)


class AbstractFixedGrid(AbstractSolver):
    """An explicit Runge-Kutta rule on ``steps`` steps, denser towards the lower time.

    Class attributes:
        tableau: the rule.
    """

    is_adaptive = False
    tableau: ClassVar[Tableau]
    steps: int

    def __post_init__(self) -> None:
        check_count(self.steps, "steps", most=_MOST_STEPS)

    def sequential_calls(self) -> int:
        return self.steps * len(self.tableau.nodes)

    def finer(self) -> AbstractFixedGrid:
        return replace(self, steps=2 * self.steps)  # type: ignore[type-var]

    def knots(self, start: float, end: float) -> list[float]:
        """Return the times between steps, ``steps + 1`` of them."""
        low, high = min(start, end), max(start, end)
        places = (index / self.steps for index in range(self.steps + 1))
        knots = [low + (high - low) * place**GRADING for place in places]
        return knots if start < end else knots[::-1]

    def integrate(self, field: VectorField, state: Tensor, start: float, end: float) -> Tensor:
        # A queue of one: the states before the last are not kept.
        return deque(self._states(field, state, start, end), maxlen=1).pop()

    def trajectory(
        self, field: VectorField, state: Tensor, start: float, end: float
    ) -> tuple[Tensor, Tensor]:
        """Return the knots, ``(steps + 1,)``, and the states there, ``(steps + 1, *state)``."""
        states = [state, *self._states(field, state, start, end)]
        knots = [time_like(state, knot) for knot in self.knots(start, end)]
        return torch.stack(knots), torch.stack(states)

    def _states(
        self, field: VectorField, state: Tensor, start: float, end: float
    ) -> Iterator[Tensor]:
        """Yield the state after each step."""
        for low, high in pairwise(self.knots(start, end)):
            state = runge_kutta_step(self.tableau, field, state, low, high - low)
            yield state


def runge_kutta_step(
    rule: Tableau, field: VectorField, state: Tensor, start: float, step: float
) -> Tensor:
    """Return the state after a step of a rule from the time ``start``; a step may be negative."""
    slopes: list[Tensor] = []
    for node, row in zip(rule.nodes, rule.matrix):
        time = time_like(state, start + node * step)
        slopes.append(field(time, _moved(state, slopes, row, step)))
    return _moved(state, slopes, rule.weights, step)


def time_like(state: Tensor, time: float) -> Tensor:
    """Return a time as a tensor, of the state's dtype and device."""
    # Filled: a trace warns of every tensor that is made of numbers otherwise. And not by a method
    # of the state, which vmap would batch.
    return torch.full((), time, dtype=state.dtype, device=state.device)


def _moved(state: Tensor, slopes: list[Tensor], shares: tuple[float, ...], step: float) -> Tensor:
    """Return the state, moved along shares of the slopes."""
    for slope, share in zip(slopes, shares):
        if share:
            state = torch.add(state, slope, alpha=step * share)
    return state


@storable("solver", "midpoint")
@dataclass(frozen=True)
class Midpoint(AbstractFixedGrid):
    """The explicit midpoint rule on a fixed grid: order 2, two field calls a step."""

    steps: int = 32
    tableau = TABLEAUS["midpoint"]


@storable("solver", "rk4")
@dataclass(frozen=True)
class RK4(AbstractFixedGrid):
    """The fourth-order Runge-Kutta (3/8) rule on a fixed grid: four field calls a step."""

    steps: int = 16
    tableau = TABLEAUS["rk4"]


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

    def finer(self) -> Dopri5:
        return replace(self, rtol=0.1 * self.rtol, atol=0.1 * self.atol)

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
