"""The log-density of a field's flow, and its error."""

from pyro_stad.likelihood.audit import Audit, SteinResidual, audit
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.calibrate import REFERENCES, calibrate, choose_steps
from pyro_stad.likelihood.calibration import Calibration, ErrorBound, Trial, default_tolerance
from pyro_stad.likelihood.curves import CURVES, AbstractCurve, Coarse, Constant
from pyro_stad.likelihood.distil_density import distil_density
from pyro_stad.likelihood.distilled import Correction, DistilledDensity
from pyro_stad.likelihood.draws import GridTrial, choose_grid
from pyro_stad.likelihood.flow_ode import FlowODE, exact_twin
from pyro_stad.likelihood.score_gradient import ScoreGradient
from pyro_stad.likelihood.standard import between
from pyro_stad.likelihood.stein_path import SteinPath

__all__ = [
    "CURVES",
    "REFERENCES",
    "AbstractCurve",
    "AbstractLikelihood",
    "Audit",
    "Calibration",
    "Coarse",
    "Constant",
    "Correction",
    "DistilledDensity",
    "ErrorBound",
    "FlowODE",
    "GridTrial",
    "ScoreGradient",
    "SteinPath",
    "SteinResidual",
    "Trial",
    "audit",
    "between",
    "calibrate",
    "choose_grid",
    "choose_steps",
    "default_tolerance",
    "distil_density",
    "exact_twin",
]
