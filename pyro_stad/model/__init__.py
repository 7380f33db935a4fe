"""A Pyro model, read: tensors in, log-densities out."""

from pyro_stad.model.joint import JointDensity
from pyro_stad.model.noise import LatentProblem
from pyro_stad.model.replay import Replay, replay

__all__ = ["JointDensity", "LatentProblem", "Replay", "replay"]
