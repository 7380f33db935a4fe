"""Particles and chains, on their way from one law to another."""

from pyro_stad.samplers.bridged import BridgedRuns, bridge
from pyro_stad.samplers.ensemble import Ensemble
from pyro_stad.samplers.from_prior import PriorRuns, temper_draws
from pyro_stad.samplers.kernels import AbstractKernel, CrankNicolson, Hamiltonian, Move, State
from pyro_stad.samplers.problem import Problem
from pyro_stad.samplers.tempering import Runs, temper

__all__ = [
    "AbstractKernel",
    "BridgedRuns",
    "CrankNicolson",
    "Ensemble",
    "Hamiltonian",
    "Move",
    "PriorRuns",
    "Problem",
    "Runs",
    "State",
    "bridge",
    "temper",
    "temper_draws",
]
