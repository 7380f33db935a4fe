"""Where chains start: particles of tempered SMC, and what is in doubt about them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad.samplers import Runs

__all__ = ["Doubts", "some"]

STUCK = (
    "the particles that chains start from were stuck, or their halves found different evidences: "
    "whole modes may be missed; hold the posterior against log_evidence with many particles"
)
_NAT, _ERRORS = 1.0, 5.0  # by which two evidences differ that are not of one posterior
_FEW_JUMPS = 0.05


class Doubts(NamedTuple):
    """Why the two runs of an object may not have come to one posterior.

    Attributes:
        stuck: whether particles remembered where they were, as between modes, ``(B,)``.
        apart: whether their evidences are farther apart than a nat and five standard errors,
            ``(B,)``.
    """

    stuck: Tensor
    apart: Tensor

    @classmethod
    def of(cls, runs: Runs) -> Doubts:
        """Return those of runs that have arrived."""
        gap = (runs.log_z[:, 0] - runs.log_z[:, 1]).abs()
        error = runs.variance.sum(1).sqrt()
        return cls(runs.stuck, gap > (_ERRORS * error).clamp(min=_NAT))

    def of_objects(self, which: Tensor) -> Doubts:
        """Return those of some objects."""
        return Doubts(self.stuck[which], self.apart[which])

    def left(self, jumped: Tensor) -> Tensor:
        """Whether there is doubt when so many of the jumps were taken, ``(B,)``.

        Chains that jump are not held by what held the particles.
        """
        return self.apart | (self.stuck & (jumped < _FEW_JUMPS).to(self.stuck.device))


def some(particles: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Return ``count`` of particles ``(B, 2, N, K)`` by lot: copies of one lie side by side."""
    lot = torch.rand(particles.shape[:3], generator=source, device=particles.device)
    chosen = lot.argsort(2)[..., :count, None].expand(-1, -1, -1, particles.shape[3])
    return particles.gather(2, chosen)
