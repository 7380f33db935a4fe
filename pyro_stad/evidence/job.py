"""What an estimator is asked: a problem, with what all estimators of one call share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers.kernels import AbstractKernel, CrankNicolson
from pyro_stad.samplers.tempering import Runs, temper

__all__ = ["EvidenceJob", "stream_of"]


def stream_of(like: Tensor, seed: int, purpose: str) -> torch.Generator:
    """Return the randomness of one purpose, from its beginning, on the device of ``like``.

    So an estimator's number does not depend on which others were asked before it. All are
    purposes of evidence: with the seed that users have simulated their data with, a stream
    without a name would make the very same numbers again.
    """
    return generator(seed, f"evidence, {purpose}", like.device)


@dataclass
class EvidenceJob:
    """An evidence to be estimated.

    Attributes:
        problem: likelihood of standard normal noise.
        seed: of everything random.
        progress: whether to show a bar.
        checkpoint: file that a killed run resumes from, or None.
    """

    problem: LatentProblem
    seed: int = 0
    progress: bool = True
    checkpoint: Path | None = None
    _tempered: dict[tuple[int, int, str], Runs] = field(default_factory=dict, repr=False)

    def generator(self, purpose: str) -> torch.Generator:
        """Return the randomness of one purpose, from its beginning, on the problem's device."""
        return stream_of(self.problem.like, self.seed, purpose)

    def runs(self, particles: int, repeats: int, kernel: AbstractKernel | None = None) -> Runs:
        """Return tempered runs, made once for all estimators that start from the same."""
        kernel = CrankNicolson() if kernel is None else kernel
        key = particles, repeats, repr(kernel)
        if key not in self._tempered:
            self._tempered[key] = temper(
                self.problem, particles, repeats, self.generator("tempering"), kernel=kernel,
                progress=self.progress, checkpoint=self.checkpoint,
            )  # fmt: skip
        return self._tempered[key]
