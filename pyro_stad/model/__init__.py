"""A Pyro model, read: tensors in, log-densities out."""

from pyro_stad.model.joint import JointDensity
from pyro_stad.model.noise import LatentProblem
from pyro_stad.model.replay import replay
from pyro_stad.model.replayed import Replay

__all__ = ["JointDensity", "LatentProblem", "Replay", "replay"]
