"""Learned densities as Pyro distributions."""

from pyro_stad.density.alarm import FLAGGED, alarm_level, noise_tail
from pyro_stad.density.base import draws_of
from pyro_stad.density.conditional import ConditionalFlow
from pyro_stad.density.conditional_one_step import ConditionalGenerator
from pyro_stad.density.counts import Counts
from pyro_stad.density.exactly import exactly
from pyro_stad.density.given import GivenPrior
from pyro_stad.density.inside import (
    NOISE_OF,
    find_cut,
    find_flow,
    find_generator,
    law_of,
    to_cut,
    to_flow,
    unwrap,
)
from pyro_stad.density.load import load
from pyro_stad.density.one_solve import OneSolve
from pyro_stad.density.one_step import Distilled, OneStepGenerator, drawn_by_flow
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.sampling import choose_sampler
from pyro_stad.density.transform import FlowTransform
from pyro_stad.density.truncated import TruncatedPrior
from pyro_stad.density.trust import Extrapolation, extrapolation, is_extrapolated
from pyro_stad.density.typical import typical_error
from pyro_stad.density.whitened import WhitenedPrior

__all__ = [
    "FLAGGED",
    "ConditionalFlow",
    "ConditionalGenerator",
    "Counts",
    "Distilled",
    "Extrapolation",
    "FlowPrior",
    "FlowTransform",
    "GivenPrior",
    "NOISE_OF",
    "OneSolve",
    "OneStepGenerator",
    "TruncatedPrior",
    "WhitenedPrior",
    "alarm_level",
    "choose_sampler",
    "draws_of",
    "drawn_by_flow",
    "exactly",
    "extrapolation",
    "find_cut",
    "find_flow",
    "find_generator",
    "is_extrapolated",
    "law_of",
    "load",
    "noise_tail",
    "to_cut",
    "to_flow",
    "typical_error",
    "unwrap",
]
