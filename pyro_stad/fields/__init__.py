"""The learned field: what a teacher is, the networks, the oracle, and foreign networks."""

from pyro_stad.fields.base import AbstractAngularField, AbstractField, AbstractTrunkField
from pyro_stad.fields.foreign import (
    ForeignField,
    from_denoiser,
    from_noise,
    from_score,
    from_velocity,
)
from pyro_stad.fields.free_form import FreeFormField
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.learned import PathField
from pyro_stad.fields.mixture import GaussianMixtureField
from pyro_stad.fields.networks.perceptron import Trunk

__all__ = [
    "AbstractAngularField",
    "AbstractField",
    "AbstractTrunkField",
    "ForeignField",
    "FreeFormField",
    "Gate",
    "GaussianMixtureField",
    "PathField",
    "Trunk",
    "from_denoiser",
    "from_noise",
    "from_score",
    "from_velocity",
]
