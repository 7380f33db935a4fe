"""From samples to a prior."""

from pyro_stad.fitting.fit import fit
from pyro_stad.fitting.settings import BUDGETS, FitSettings

__all__ = ["BUDGETS", "FitSettings", "fit"]
