"""Learned priors in inference: the coordinates they are sampled in, and what corrects them."""

from pyro_stad.infer.combine import Combination, Overlap, combine
from pyro_stad.infer.combined import CombinedPosterior
from pyro_stad.infer.correct import CorrectedPosterior, correct
from pyro_stad.infer.reparam import FORMS, FlowReparam
from pyro_stad.infer.simulate import Simulations, simulate
from pyro_stad.infer.tension import Tension, tension

__all__ = [
    "FORMS",
    "Combination",
    "CombinedPosterior",
    "CorrectedPosterior",
    "FlowReparam",
    "Overlap",
    "Simulations",
    "Tension",
    "combine",
    "correct",
    "simulate",
    "tension",
]
