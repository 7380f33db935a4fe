"""The coordinates in which a model can be sampled: the noise of its priors, or its parameters.

In noise, N(0, I) is the prior: a flow is solved for every likelihood, and no density is asked for.
In parameters, unconstrained as in Pyro's own samplers, densities are, and a learned prior's costs
one pass of its distilled network. Which is faster depends on the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_stad.density import find_flow, find_generator
from pyro_stad.model.joint import JointDensity, angles
from pyro_stad.model.noise import LatentProblem
from pyro_stad.model.vectorised import VectorisedModel

__all__ = ["AbstractForm", "NoiseForm", "ParameterForm", "has_parameters"]

_MANY = 100  # calls of a solver that takes as many as it needs


class AbstractForm(ABC):
    """A model's posterior as a density of rows of numbers.

    Attributes:
        name: what it is called.
        price: network calls of a density, one after the other, and one for all else.
        size: how many numbers a row has.
        like: a tensor of their dtype and device.
    """

    name: ClassVar[str]
    size: int
    like: Tensor
    price: int

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Return the log-density of rows ``(N, size)``, up to a constant: ``(N,)``."""

    def of_objects(self, which: Tensor, x: Tensor) -> Tensor:
        """Return the log-density of objects, of which there is one: ``(1, N)`` of ``(1, N, K)``."""
        return self.log_density(x[0])[None]

    @abstractmethod
    def mappable(self, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Return the log-density with other arguments, as ``torch.vmap`` can map it."""

    @abstractmethod
    def values(self, x: Tensor, args: tuple[Any, ...] | None = None) -> dict[str, Tensor]:
        """Return the latent sites at rows ``(N, size)``, each ``(N, ...)``."""


class NoiseForm(AbstractForm):
    """In the noise of the priors.

    Arguments:
        problem: the model, as a likelihood of noise.
    """

    name = "noise"

    def __init__(self, problem: LatentProblem) -> None:
        self.problem, self.size, self.like = problem, problem.size, problem.like
        self.price = 1 + sum(_calls(flow.prior.transport) for flow in problem.flows)

    def log_density(self, x: Tensor) -> Tensor:
        return self.problem.log_likelihood(x) - 0.5 * x.square().sum(-1)

    def mappable(self, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        fit = torch.nan_to_num(
            self.problem.unchecked(x, args), nan=-math.inf, posinf=-math.inf, neginf=-math.inf
        )
        return fit - 0.5 * x.square().sum(-1)

    def values(self, x: Tensor, args: tuple[Any, ...] | None = None) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.problem.values(x, args)


class ParameterForm(AbstractForm):
    """In unconstrained parameters.

    Arguments:
        density: the joint density of the model.
    """

    name = "parameters"

    def __init__(self, density: JointDensity) -> None:
        self.density, self.like = density, density.model.like
        first = {site["name"]: site["value"][None] for site in density.model.latent}
        self.size = self.from_values(first).shape[1]
        flows = (find_flow(site["fn"]) for site in density.model.latent)
        self.price = 1 + sum(_calls(flow.likelihood) for flow in flows if flow is not None)

    def log_density(self, x: Tensor) -> Tensor:
        return self.density.log_joint(x)

    def mappable(self, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        return self.density.log_joint(x, args)

    def values(self, x: Tensor, args: tuple[Any, ...] | None = None) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.density.values(x, args)

    def from_values(self, values: dict[str, Tensor], args: tuple[Any, ...] | None = None) -> Tensor:
        """Return rows ``(N, size)`` of latent sites, each ``(N, ...)``."""
        with torch.no_grad():
            return self.density.unconstrain(values, args)


def has_parameters(model: VectorisedModel) -> bool:
    """Whether a model has densities on the line: no angle, and no generator of one step."""
    one_step = any(find_generator(site["fn"]) is not None for site in model.latent)
    return not (one_step or angles(model.latent))


def _calls(part: Any) -> int:
    calls = part.sequential_calls()
    return _MANY if calls is None else calls
