"""Posteriors of several experiments, by the names of their parameters, and what they share.

The mathematics is in :mod:`pyro_stad.infer.combine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.data import outer_transforms, to_line
from pyro_stad.data.bounds import has_angles
from pyro_stad.density import FlowPrior, draws_of
from pyro_stad.infer.shared import SharedPrior

__all__ = ["Experiments"]

_ROWS = 2000


@dataclass(frozen=True, eq=False)
class Experiments:
    """Posteriors of experiments, and the prior of what they share.

    Attributes:
        priors: the posteriors.
        common: the prior of the shared parameters.
        names: all parameters: those of the first, then the others' own ones in turn.
    """

    priors: tuple[FlowPrior, ...]
    common: SharedPrior
    names: tuple[str, ...]

    @classmethod
    def of(cls, priors: Sequence[FlowPrior], common: SharedPrior) -> Experiments:
        """Check that names go together.

        Raises:
            TypeError, ValueError: see ``combine``.
        """
        if len(priors) < 2:
            raise ValueError(f"at least two experiments are combined; got {len(priors)}")
        for index, prior in enumerate(priors):
            if not isinstance(prior, FlowPrior) or not prior.names:
                raise TypeError(
                    f"experiment {index} must be a FlowPrior of named parameters; got "
                    f"{type(prior).__name__}"
                )
            if prior.batch_shape:
                raise ValueError(f"experiment {index} must have no batch shape")
            if (prior.like.dtype, prior.like.device) != (
                priors[0].like.dtype,
                priors[0].like.device,
            ):
                raise ValueError(
                    f"experiment {index} is {prior.like.dtype} on {prior.like.device}, the first "
                    f"{priors[0].like.dtype} on {priors[0].like.device}; use prior.to(...)"
                )
            missing = [name for name in common.names if name not in prior.names]
            if missing:
                raise ValueError(
                    f"experiment {index} has no {missing}, which `shared_prior` has; it has "
                    f"{list(prior.names)}"
                )
        seen = list(priors[0].names)
        for index, prior in enumerate(priors[1:], start=1):
            own = [name for name in prior.names if name not in common.names]
            twice = [name for name in own if name in seen]
            if twice:
                raise ValueError(
                    f"experiment {index} has {twice} in common with another one, which "
                    "`shared_prior` has not: their prior would be counted twice. Put it there, or "
                    "rename what is another quantity"
                )
            seen += own
        return cls(tuple(priors), common, tuple(seen))

    @cached_property
    def _columns(self) -> list[list[int]]:
        return [[self.names.index(name) for name in prior.names] for prior in self.priors]

    @cached_property
    def proposals(self) -> list[tuple[str, Any]]:
        """The laws that propose what the first experiment has not, by the names of their sites."""
        found = []
        for index, prior in enumerate(self.priors[1:], start=1):
            own = [i for i, name in enumerate(prior.names) if name not in self.common.names]
            if own:
                found.append((f"own_{index}", _proposal(prior, own, index)))
        return found

    def sample(self) -> Tensor:
        """Sample all parameters in a model, ``(..., D)``, from what proposes them."""
        parts = [pyro.sample("first", self.priors[0])]
        return torch.cat([*parts, *(pyro.sample(name, law) for name, law in self.proposals)], -1)

    def from_noise(self, z: Tensor) -> Tensor:
        """Carry standard normal numbers ``(..., D)`` to what is proposed."""
        first = self.priors[0]
        sizes = [len(first.names), *(law.event_shape[0] for _, law in self.proposals)]
        parts = list(z.split(sizes, -1))
        for transform in first.transforms:
            parts[0] = transform(parts[0])
        for index, (_, law) in enumerate(self.proposals, start=1):
            normal = law.base_dist
            parts[index] = normal.loc + parts[index] @ normal.scale_tril.mT
            for transform in law.transforms:
                parts[index] = transform(parts[index])
        return torch.cat(parts, -1)

    def joined(self, draws: dict[str, Tensor]) -> Tensor:
        """Return draws of the sites as vectors of all parameters, ``(N, D)``."""
        return torch.cat([draws["first"], *(draws[name] for name, _ in self.proposals)], -1)

    def part(self, value: Tensor, index: int) -> Tensor:
        """Return the parameters of an experiment, of vectors of all: ``(..., D_i)``."""
        return value[..., self._columns[index]]

    def shared_of(self, value: Tensor, index: int) -> Tensor:
        """Return what is shared, of an experiment's own vectors: ``(..., S)``."""
        names = self.priors[index].names
        return value[..., [names.index(name) for name in self.common.names]]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the product, common prior counted once, at ``(..., D)``."""
        return self.priors[0].log_prob(self.part(value, 0)) + self._others(value)

    def tilt(self, value: Tensor) -> Tensor:
        """Return the log-density of the product over that of what proposes ``value``."""
        total = self._others(value)
        at = len(self.priors[0].names)
        for _, law in self.proposals:
            size = law.event_shape[0]
            total = total - law.log_prob(value[..., at : at + size])
            at += size
        return total

    def _others(self, value: Tensor) -> Tensor:
        common = self.common.log_prob(self.shared_of(self.part(value, 0), 0))
        there = torch.isfinite(common)
        total = -(len(self.priors) - 1) * torch.where(there, common, 0.0)
        for index, prior in enumerate(self.priors[1:], start=1):
            total = total + prior.log_prob(self.part(value, index))
        # Where there is no prior there is no posterior, whatever a flow says that has no wall.
        return torch.where(there, total, -torch.inf)


def _proposal(prior: FlowPrior, own: list[int], index: int) -> Any:
    """Return a law about an experiment's own draws of some of its parameters, twice as wide."""
    bounds = None if prior.bounds is None else tuple(prior.bounds[i] for i in own)
    if bounds is not None and has_angles(bounds):
        raise ValueError(
            f"experiment {index} has an angle of its own among {[prior.names[i] for i in own]}; "
            "put that experiment first"
        )
    maps = outer_transforms(bounds, prior.like[own])
    source = generator(index, "draws for a proposal", prior.like.device)
    line = to_line(draws_of(prior, _ROWS, source)[:, own], bounds)
    centred = line - line.mean(0)
    factor = torch.linalg.cholesky(4 * centred.mT @ centred / len(line))
    normal = dist.MultivariateNormal(line.mean(0), scale_tril=factor)
    return dist.TransformedDistribution(normal, maps)
