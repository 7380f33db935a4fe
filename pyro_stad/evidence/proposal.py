r"""Laws learned from particles, to draw from instead of the posterior.

- *student*: a multivariate t with five degrees of freedom, with the mean and covariance of the
  particles; every run has that of the *other* runs. A few milliseconds, and all that a posterior of
  one mode needs.
- *flow*: a flow prior fitted to the particles, by the exact trace. A minute, and several modes.

Of both, a tenth of the draws come from the prior.

References:
    Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pyro_stad.density import FlowPrior
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.fitting import fit
from pyro_stad.samplers.normal import Normal

__all__ = ["PRIOR_SHARE", "PROPOSALS", "Proposal", "normal_log_prob"]

PRIOR_SHARE = 0.1
_FREEDOM = 5.0


class Proposal(Protocol):
    """A law of noise, with or without the share of the prior."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return draws, of which a tenth are from the prior, ``(1, R, N, D)``."""
        ...

    def log_prob(self, u: Tensor) -> Tensor:
        """Return the log-density of what was learned alone, ``(1, R, N)``, in float64."""
        ...


class Student:
    """A t law for every run of every object, with the moments of the particles of its other runs.

    Arguments:
        start: particles with shape ``(B, R, N, D)``.
        job: not needed.
    """

    def __init__(self, start: Tensor, job: EvidenceJob | None = None) -> None:
        self.start = start
        even = torch.full(start.shape[:3], 1 / start.shape[2], dtype=torch.float64)
        self.normal = Normal.of_others(start, even.to(start.device))

    def draw(self, generator: torch.Generator) -> Tensor:
        shape, like = self.start.shape, self.start
        # A chi-square with five degrees of freedom: five squared normals.
        chi = _normal((*shape[:-1], int(_FREEDOM)), like, generator).square().sum(-1)
        noise = _normal(shape, like, generator)
        drawn = self.normal.from_unit(noise * (_FREEDOM / chi).sqrt()[..., None])
        return _defended(drawn, generator)

    def log_prob(self, u: Tensor) -> Tensor:
        size = u.shape[-1]
        squares = self.normal.to_unit(u).square().sum(-1).double()
        log_det = self.normal.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True).double()
        constant = (
            math.lgamma(0.5 * (_FREEDOM + size))
            - math.lgamma(0.5 * _FREEDOM)
            - 0.5 * size * math.log(_FREEDOM * math.pi)
        )
        return constant - log_det - 0.5 * (_FREEDOM + size) * torch.log1p(squares / _FREEDOM)


class Flow:
    """A flow fitted to the particles of all runs, with the density of its exact trace.

    Arguments:
        start: particles with shape ``(1, R, N, D)``.
        job: for the seed, and whether a bar is shown.
    """

    def __init__(self, start: Tensor, job: EvidenceJob) -> None:
        self.start = start
        with torch.enable_grad():
            fitted = fit(
                start.reshape(-1, start.shape[-1]), budget="quick", seed=job.seed,
                progress=job.progress, dtype=start.dtype,
            )  # fmt: skip
        self.prior: FlowPrior = fitted.exact()

    def draw(self, generator: torch.Generator) -> Tensor:
        drawn = _normal(self.start.shape, self.start, generator).flatten(0, 2)
        for transform in self.prior.transforms:
            drawn = transform(drawn)
        return _defended(drawn.reshape(self.start.shape), generator)

    def log_prob(self, u: Tensor) -> Tensor:
        return self.prior.log_prob(u).double()


PROPOSALS: dict[str, Callable[[Tensor, EvidenceJob], Proposal]] = {"student": Student, "flow": Flow}


def normal_log_prob(u: Tensor) -> Tensor:
    """Return the log-density of noise ``u``, shape ``(..., D)``, under the prior, in float64."""
    return -0.5 * (u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi)).double()


def _defended(drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a tenth of the draws by draws from the prior."""
    prior = torch.rand(drawn.shape[:-1], generator=generator, device=drawn.device) < PRIOR_SHARE
    return torch.where(prior[..., None], _normal(drawn.shape, drawn, generator), drawn)


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
