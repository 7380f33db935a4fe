"""The coordinates in which a model can be sampled: the noise of its priors, or its parameters.

In noise, N(0, I) is the prior: a flow is solved for every likelihood, and no density is asked for.
In parameters, unconstrained as in Pyro's own samplers, densities are, and a learned prior's costs
one pass of its distilled network. Which is faster depends on the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_stad.density import FlowPrior
from pyro_stad.model.joint import JointDensity, angles
from pyro_stad.model.noise import LatentProblem

__all__ = ["AbstractForm", "NoiseForm", "ParameterForm", "forms_of"]

_MANY = 100  # calls of a solver that takes as many as it needs


class AbstractForm(ABC):
    """A model's posterior as a density of rows of numbers.

    Arguments:
        problem: the model, as a likelihood of noise.

    Attributes:
        name: what it is called.
        price: network calls of a density, one after the other, and one for all else.
        size: how many numbers a row has.
        like: a tensor of their dtype and device.
    """

    name: ClassVar[str]
    size: int
    price: int

    def __init__(self, problem: LatentProblem) -> None:
        self.problem, self.like = problem, problem.like

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Return the log-density of rows ``(N, size)``, up to a constant: ``(N,)``."""

    def of_objects(self, which: Tensor, x: Tensor) -> Tensor:
        """Return the log-density of objects, of which there is one: ``(1, N)`` of ``(1, N, K)``."""
        return self.log_density(x[0])[None]

    @abstractmethod
    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Return the latent sites at rows ``(N, size)``, each ``(N, ...)``."""

    @abstractmethod
    def from_noise(self, u: Tensor) -> Tensor:
        """Return rows ``(N, size)`` of noise ``(N, D)``."""


class NoiseForm(AbstractForm):
    """In the noise of the priors."""

    name = "noise"

    def __init__(self, problem: LatentProblem) -> None:
        super().__init__(problem)
        self.size, self.price = problem.size, 1 + _calls(problem, lambda p: p.transport)

    def log_density(self, x: Tensor) -> Tensor:
        return self.problem.log_likelihood(x) - 0.5 * x.square().sum(-1)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.problem.values(x)

    def from_noise(self, u: Tensor) -> Tensor:
        return u


class ParameterForm(AbstractForm):
    """In unconstrained parameters."""

    name = "parameters"

    def __init__(self, problem: LatentProblem) -> None:
        super().__init__(problem)
        self.density = JointDensity(problem.model)
        self.size = self.from_noise(problem.like.new_zeros(1, problem.size)).shape[1]
        self.price = 1 + _calls(problem, lambda p: p.likelihood)

    def log_density(self, x: Tensor) -> Tensor:
        return self.density.log_joint(x)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.density.values(x)

    def from_noise(self, u: Tensor) -> Tensor:
        with torch.no_grad():
            return self.density.unconstrain(self.problem.values(u))


def _calls(problem: LatentProblem, part: Callable[[FlowPrior], Any]) -> int:
    """Return the network calls, one after the other, of a part of all learned priors."""
    each = [part(flow.prior).sequential_calls() for flow in problem.flows]
    return sum(_MANY if calls is None else calls for calls in each)


def forms_of(problem: LatentProblem) -> list[AbstractForm]:
    """Return the forms that a model has.

    An angle has no density on a line, and a generator of one step has none at all.
    """
    if angles(problem.model.latent) or problem.generators:
        return [NoiseForm(problem)]
    return [NoiseForm(problem), ParameterForm(problem)]
