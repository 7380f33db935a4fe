"""How samples meet noise: Gaussian paths, and conversions between the faces of a field."""

from pyro_stad.paths import convert
from pyro_stad.paths.base import AbstractPath, Polar
from pyro_stad.paths.phase import PSLD, PhaseLaw
from pyro_stad.paths.schedules import (
    EDM,
    PATHS,
    OptimalTransport,
    SubVP,
    VarianceExploding,
    VPCosine,
    VPLinear,
)

__all__ = [
    "EDM",
    "PATHS",
    "PSLD",
    "AbstractPath",
    "OptimalTransport",
    "PhaseLaw",
    "Polar",
    "SubVP",
    "VPCosine",
    "VPLinear",
    "VarianceExploding",
    "convert",
]
