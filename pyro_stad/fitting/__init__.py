"""From samples to a prior."""

from pyro_stad.fitting.fit import fit
from pyro_stad.fitting.foreign import distil_divergence
from pyro_stad.fitting.one_step import ONE_STEP_METHODS, distil_one_step
from pyro_stad.fitting.settings import BUDGETS, FitSettings

__all__ = [
    "BUDGETS",
    "ONE_STEP_METHODS",
    "FitSettings",
    "distil_divergence",
    "distil_one_step",
    "fit",
]
