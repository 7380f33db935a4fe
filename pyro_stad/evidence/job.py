"""What an estimator is asked: a problem, with what all estimators of one call share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers.kernels import AbstractKernel, CrankNicolson
from pyro_stad.samplers.tempering import Runs, temper

__all__ = ["EvidenceJob", "generator_of"]


def generator_of(like: Tensor, seed: int) -> torch.Generator:
    """Return a source of randomness on the device of ``like``.

    Of a stream of its own: with the seed that users have simulated their data or draws with, it
    would make the very same numbers again.
    """
    return generator(seed, "evidence", like.device)


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

    @cached_property
    def generator(self) -> torch.Generator:
        """Source of randomness, on the problem's device."""
        return generator_of(self.problem.like, self.seed)

    def runs(self, particles: int, repeats: int, kernel: AbstractKernel | None = None) -> Runs:
        """Return tempered runs, made once for all estimators that start from the same."""
        kernel = CrankNicolson() if kernel is None else kernel
        key = particles, repeats, repr(kernel)
        if key not in self._tempered:
            self._tempered[key] = temper(
                self.problem, particles, repeats, self.generator, kernel=kernel,
                progress=self.progress, checkpoint=self.checkpoint,
            )  # fmt: skip
        return self._tempered[key]
