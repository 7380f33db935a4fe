"""Integration: fixed grids and an adaptive reference behind one call."""

from pyro_stad.ode.solvers import (
    RK4,
    SOLVERS,
    AbstractFixedGrid,
    AbstractSolver,
    Dopri5,
    Midpoint,
)

__all__ = ["RK4", "SOLVERS", "AbstractFixedGrid", "AbstractSolver", "Dopri5", "Midpoint"]
