"""Drawing from a field: samplers, with and without noise on the way, and their grids."""

from pyro_stad.drawing.base import SAMPLERS, AbstractSampler, sampler_of
from pyro_stad.drawing.candidates import candidates
from pyro_stad.drawing.deterministic import DDIM, ODE, DPMSolver
from pyro_stad.drawing.grids import GRIDS, AbstractGrid, Grid, Knots, grid_of
from pyro_stad.drawing.phase_baselines import SSCS, Conjugate, PhaseEulerMaruyama
from pyro_stad.drawing.phase_walk import AbstractPhaseSampler
from pyro_stad.drawing.splitting import Splitting
from pyro_stad.drawing.stochastic import EDMChurn, EulerMaruyama, PredictorCorrector

__all__ = [
    "DDIM",
    "GRIDS",
    "ODE",
    "SAMPLERS",
    "SSCS",
    "AbstractGrid",
    "AbstractPhaseSampler",
    "AbstractSampler",
    "Conjugate",
    "DPMSolver",
    "EDMChurn",
    "EulerMaruyama",
    "Grid",
    "Knots",
    "PhaseEulerMaruyama",
    "PredictorCorrector",
    "Splitting",
    "candidates",
    "grid_of",
    "sampler_of",
]
