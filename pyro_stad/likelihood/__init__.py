"""Ways to the log-density of a field's flow."""

from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.correction import Correction
from pyro_stad.likelihood.curves import CURVES, AbstractCurve, Coarse, Constant
from pyro_stad.likelihood.distilled import DistilledDensity
from pyro_stad.likelihood.flow_ode import FlowODE, exact_twin
from pyro_stad.likelihood.phase import MomentumGap, PhaseDensity
from pyro_stad.likelihood.score_gradient import ScoreGradient
from pyro_stad.likelihood.stein_path import SteinPath

__all__ = [
    "CURVES",
    "AbstractCurve",
    "AbstractLikelihood",
    "Coarse",
    "Constant",
    "Correction",
    "DistilledDensity",
    "FlowODE",
    "MomentumGap",
    "PhaseDensity",
    "ScoreGradient",
    "SteinPath",
    "exact_twin",
]
