"""Which way to a density is accurate enough, and how accurate it is."""

from pyro_stad.calibrate.audit import Audit, SteinResidual, audit
from pyro_stad.calibrate.choose import calibrate, choose_steps
from pyro_stad.calibrate.draws import GridTrial, choose_grid
from pyro_stad.calibrate.few import calibrate_few
from pyro_stad.calibrate.record import REFERENCES, Calibration, ErrorBound, Trial, default_tolerance
from pyro_stad.calibrate.samplers import SamplerTrial, Sampling, choose_sampler_of, energy_distance

__all__ = [
    "Audit",
    "Calibration",
    "ErrorBound",
    "GridTrial",
    "REFERENCES",
    "SamplerTrial",
    "Sampling",
    "SteinResidual",
    "Trial",
    "audit",
    "calibrate",
    "calibrate_few",
    "choose_grid",
    "choose_sampler_of",
    "choose_steps",
    "default_tolerance",
    "energy_distance",
]
