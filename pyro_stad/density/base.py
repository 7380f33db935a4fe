"""What a learned prior provides to those who cut, describe or calibrate it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad.calibrate import Sampling
from pyro_stad.data import Bounds, Layout, Margins
from pyro_stad.density.counts import Counts
from pyro_stad.density.trust import Trusted
from pyro_stad.files import StoredPrior
from pyro_stad.report import FitReport

__all__ = ["AbstractFlowPrior", "draws_of"]


class AbstractFlowPrior(Trusted, dist.TransformedDistribution, dist.TorchDistribution):
    """The parts of ``FlowPrior``, and what can be asked of it."""

    layout: Layout | None
    bounds: Bounds | None
    margins: Margins | None
    report: FitReport | None
    counts: Counts
    sampling: Sampling | None

    # What the prior provides.
    expand: Callable[..., Self]
    to: Callable[[torch.device | str | torch.dtype], Self]
    like_this: Callable[..., Self]
    unroll: Callable[[Tensor, torch.Generator], Tensor]
    wrap: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor], dict[str, Tensor]]
    drawn_white: Callable[..., Tensor]
    summary: Callable[[], str]
    stored: Callable[[], StoredPrior]

    @property
    def support(self) -> constraints.Constraint:
        """Where there is a density."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates; none for events that are no vectors."""
        return () if self.layout is None else self.layout.names

    @property
    def like(self) -> Tensor:
        """A tensor of the prior's dtype and device, one number for each coordinate."""
        return self.transforms[1].loc


def draws_of(
    prior: AbstractFlowPrior, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return draws ``(count, D)`` from a generator, whatever the batch shape of ``prior``."""
    like = prior.like
    x = torch.randn(count, len(like), generator=generator, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        if prior.sampling is None:
            x = prior.transforms[0](x)
        else:
            x = prior.drawn_white(prior.sampling.sampler, x, generator, progress=False)
        for transform in prior.transforms[1:]:
            x = transform(x)
    return x
