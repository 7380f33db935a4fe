"""The samplers that are worth a try at a price: each, on every grid that may serve it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pyro_stad.drawing.base import AbstractSampler
from pyro_stad.drawing.deterministic import DDIM, ODE, DPMSolver
from pyro_stad.drawing.grids import GRIDS, Grid, grid_of
from pyro_stad.drawing.phase_baselines import SSCS, Conjugate, PhaseEulerMaruyama
from pyro_stad.drawing.phase_walk import AbstractPhaseSampler
from pyro_stad.drawing.splitting import Splitting
from pyro_stad.drawing.stochastic import EDMChurn, EulerMaruyama, PredictorCorrector

__all__ = ["candidates"]

# In the order in which one of several that draw alike is taken.
_EACH: tuple[AbstractSampler, ...] = (
    ODE(rule="heun"), ODE(rule="rk4"), ODE(rule="euler"), DPMSolver(), DDIM(), DDIM(eta=1.0),
    EDMChurn(), EulerMaruyama(), PredictorCorrector(), Splitting(scheme="OBAB"), Splitting(),
    Splitting(scheme="BAB"), Splitting(scheme="BA"), SSCS(), Conjugate(lam=1.0),
    PhaseEulerMaruyama(),
)  # fmt: skip


def candidates(calls: int, *, needs_score: bool = True) -> Iterator[AbstractSampler]:
    """Yield samplers that take at most so many network calls, each on several grids.

    Arguments:
        calls: network calls, one after the other, of a draw.
        needs_score: whether those that need a score can be used.
    """
    for sampler in _EACH:
        steps = sampler.steps_within(calls)
        if steps < 1 or (sampler.needs_score and not needs_score):
            continue
        if isinstance(sampler, AbstractPhaseSampler):
            for power in (1.0, 2.0):
                yield replace(sampler, grid=Grid(steps, power, sampler.path))
        else:
            for name in GRIDS:
                yield replace(sampler, grid=grid_of(name, steps))
