"""Recognition: one network that reads a datum and returns the posterior of its latent variables."""

from pyro_stad.infer.amortized.guide import AmortizedGuide
from pyro_stad.infer.amortized.posteriors import (
    AbstractPosterior,
    FlowPosterior,
    LowRank,
    MeanField,
)
from pyro_stad.infer.amortized.weighing import WeighedPosteriors

__all__ = [
    "AbstractPosterior",
    "AmortizedGuide",
    "FlowPosterior",
    "LowRank",
    "MeanField",
    "WeighedPosteriors",
]
