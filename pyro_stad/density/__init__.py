"""Learned densities as Pyro distributions."""

from pyro_stad.density.counts import Counts
from pyro_stad.density.fit import fit
from pyro_stad.density.flow import FlowTransform
from pyro_stad.density.goodness import Goodness, goodness
from pyro_stad.density.inside import find_cut, find_flow, to_cut, to_flow
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.report import FitReport, Stage
from pyro_stad.density.save import load
from pyro_stad.density.settings import BUDGETS, FitSettings
from pyro_stad.density.spread import Spread, joint_log_weights, shifts
from pyro_stad.density.tail import FLAGGED, alarm_level, noise_tail
from pyro_stad.density.truncated import TruncatedPrior
from pyro_stad.density.trust import Extrapolation, extrapolation, is_extrapolated
from pyro_stad.density.typical import typical_error

__all__ = [
    "BUDGETS",
    "FLAGGED",
    "Counts",
    "Extrapolation",
    "FitReport",
    "FitSettings",
    "FlowPrior",
    "FlowTransform",
    "Goodness",
    "Spread",
    "Stage",
    "TruncatedPrior",
    "alarm_level",
    "extrapolation",
    "find_cut",
    "find_flow",
    "fit",
    "goodness",
    "is_extrapolated",
    "joint_log_weights",
    "load",
    "noise_tail",
    "shifts",
    "to_cut",
    "to_flow",
    "typical_error",
]
