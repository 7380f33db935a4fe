"""Which way to a density is accurate enough, and how accurate it is."""

from pyro_stad.calibrate.audit import Audit, SteinResidual, audit
from pyro_stad.calibrate.choose import calibrate, choose_steps
from pyro_stad.calibrate.draws import GridTrial, choose_grid
from pyro_stad.calibrate.record import REFERENCES, Calibration, ErrorBound, Trial, default_tolerance

__all__ = [
    "Audit",
    "Calibration",
    "ErrorBound",
    "GridTrial",
    "REFERENCES",
    "SteinResidual",
    "Trial",
    "audit",
    "calibrate",
    "choose_grid",
    "choose_steps",
    "default_tolerance",
]
