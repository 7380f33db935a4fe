"""Velocity fields: learned ones, foreign networks, and the oracles in closed form."""

from pyro_stad.fields.base import AbstractAngularField, AbstractField, AbstractTrunkField
from pyro_stad.fields.conditional import ConditionalPathField
from pyro_stad.fields.conditional_gaussian import ConditionalGaussianField
from pyro_stad.fields.foreign import (
    ForeignField,
    from_denoiser,
    from_noise,
    from_score,
    from_velocity,
)
from pyro_stad.fields.free_form import FreeFormField
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.image import ImageField
from pyro_stad.fields.learned import PathField
from pyro_stad.fields.mixture import GaussianMixtureField
from pyro_stad.fields.networks.perceptron import Trunk
from pyro_stad.fields.phase import PhaseField

__all__ = [
    "AbstractAngularField",
    "AbstractField",
    "AbstractTrunkField",
    "ConditionalGaussianField",
    "ConditionalPathField",
    "ForeignField",
    "FreeFormField",
    "Gate",
    "GaussianMixtureField",
    "ImageField",
    "PathField",
    "PhaseField",
    "Trunk",
    "from_denoiser",
    "from_noise",
    "from_score",
    "from_velocity",
]
