"""The divergence of a field: exact, estimated, or distilled."""

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.divergence.exact import Exact
from pyro_stad.divergence.image_head import ImageHead, SeparateImageNetwork
from pyro_stad.divergence.projected import Projected
from pyro_stad.divergence.stein import (
    AbstractDivergenceNetwork,
    SeparateNetwork,
    Stein,
    TrunkHead,
)
from pyro_stad.divergence.stochastic import Hutchinson, HutchPlusPlus, XTrace

__all__ = [
    "AbstractDivergence",
    "AbstractDivergenceNetwork",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "ImageHead",
    "Projected",
    "SeparateImageNetwork",
    "SeparateNetwork",
    "Stein",
    "TrunkHead",
    "XTrace",
]
