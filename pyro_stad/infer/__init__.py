"""Learned priors in inference: the coordinates they are sampled in, and what corrects them."""

from pyro_stad.infer.amortized import (
    AmortizedGuide,
    FlowPosterior,
    LowRank,
    MeanField,
    WeighedPosteriors,
)
from pyro_stad.infer.combine import Combination, Overlap, combine
from pyro_stad.infer.combined import CombinedPosterior
from pyro_stad.infer.correct import CorrectedPosterior, correct
from pyro_stad.infer.emulator import PosteriorEmulator, distil_posterior
from pyro_stad.infer.flow_guide import FlowGuide
from pyro_stad.infer.pilot import Pilot, PilotRun, choose_form
from pyro_stad.infer.ranks import Ranks
from pyro_stad.infer.reparam import FORMS, FlowReparam
from pyro_stad.infer.sample_posterior import sample_posterior
from pyro_stad.infer.sample_posteriors import sample_posteriors
from pyro_stad.infer.sampled import SampledPosterior
from pyro_stad.infer.sampled_objects import SampledPosteriors
from pyro_stad.infer.simulate import Simulations, simulate
from pyro_stad.infer.tension import Tension, tension

__all__ = [
    "FORMS",
    "AmortizedGuide",
    "Combination",
    "CombinedPosterior",
    "CorrectedPosterior",
    "FlowGuide",
    "FlowPosterior",
    "FlowReparam",
    "LowRank",
    "MeanField",
    "Overlap",
    "Pilot",
    "PilotRun",
    "PosteriorEmulator",
    "Ranks",
    "SampledPosterior",
    "SampledPosteriors",
    "Simulations",
    "Tension",
    "WeighedPosteriors",
    "choose_form",
    "combine",
    "correct",
    "distil_posterior",
    "sample_posterior",
    "sample_posteriors",
    "simulate",
    "tension",
]
