"""The learned field: what a teacher is, the networks, the oracle, and foreign networks."""

from pyro_stad.teacher.analytic import GaussianMixtureField
from pyro_stad.teacher.base import (
    AbstractAngularField,
    AbstractField,
    AbstractTrunkField,
)
from pyro_stad.teacher.foreign import (
    ForeignField,
    from_denoiser,
    from_noise,
    from_score,
    from_velocity,
)
from pyro_stad.teacher.gate import Gate
from pyro_stad.teacher.learned import FreeFormField, PathField
from pyro_stad.teacher.network import Trunk

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
