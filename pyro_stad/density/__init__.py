"""Learned densities as Pyro distributions."""

from pyro_stad.density.alarm import FLAGGED, alarm_level, noise_tail
from pyro_stad.density.base import draws_of
from pyro_stad.density.conditional import ConditionalFlow
from pyro_stad.density.counts import Counts
from pyro_stad.density.exactly import exactly
from pyro_stad.density.given import GivenPrior
from pyro_stad.density.inside import (
    ONE_STEP,
    find_cut,
    find_flow,
    find_generator,
    to_cut,
    to_flow,
    unwrap,
)
from pyro_stad.density.load import load
from pyro_stad.density.one_solve import OneSolve
from pyro_stad.density.one_step import Distilled, OneStepGenerator
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.sampling import choose_sampler
from pyro_stad.density.transform import FlowTransform
from pyro_stad.density.truncated import TruncatedPrior
from pyro_stad.density.trust import Extrapolation, extrapolation, is_extrapolated
from pyro_stad.density.typical import typical_error
from pyro_stad.density.whitened import WhitenedPrior

__all__ = [
    "FLAGGED",
    "ONE_STEP",
    "ConditionalFlow",
    "Counts",
    "Distilled",
    "Extrapolation",
    "FlowPrior",
    "FlowTransform",
    "GivenPrior",
    "OneSolve",
    "OneStepGenerator",
    "TruncatedPrior",
    "WhitenedPrior",
    "alarm_level",
    "choose_sampler",
    "draws_of",
    "exactly",
    "extrapolation",
    "find_cut",
    "find_flow",
    "find_generator",
    "is_extrapolated",
    "load",
    "noise_tail",
    "to_cut",
    "to_flow",
    "typical_error",
    "unwrap",
]
