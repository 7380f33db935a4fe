"""The law of a prior in its own whitened coordinates: the flow's density, without any map.

A prior in a model may be narrow, bent by bounds and correlated by nature; whitened, its middle and
its scales are those of N(0, I), which is what a sampler's step is made for.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad.density.prior import FlowPrior

__all__ = ["WhitenedPrior"]


class WhitenedPrior(dist.TorchDistribution):
    """What a prior's draws are before they are carried to its parameters.

    Arguments:
        prior: a prior of vectors; one given a context too.

    The image of its draws under the maps of the prior are draws of the prior; of an angle, they
    lie on the line, unrolled.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, prior: FlowPrior, *, validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> WhitenedPrior:
        """Return the same law with another batch shape; nothing is solved or copied."""
        new = WhitenedPrior(self.prior.expand(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of shape ``sample_shape + batch_shape + (D,)``."""
        noise = self.prior.base_dist.rsample(torch.Size(sample_shape))
        return self.prior.transforms[0](noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of whitened points, shape ``(..., D)``: ``(...)``."""
        found = self.prior.white_log_prob(value)
        return torch.where(torch.isfinite(found), found, -torch.inf)
