"""Integration: fixed grids and an adaptive reference behind one call."""

from pyro_stad.ode.solvers import (
    GRADING,
    RK4,
    SOLVERS,
    TABLEAUS,
    AbstractFixedGrid,
    AbstractSolver,
    Dopri5,
    Midpoint,
    Tableau,
    runge_kutta_step,
    time_like,
)

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
