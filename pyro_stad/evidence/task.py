"""What an estimator is given: a problem, how much to spend on it, and what is shared."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers.tempering import Runs, temper

__all__ = ["Task", "generator_of"]


def generator_of(like: Tensor, seed: int) -> torch.Generator:
    """Return a source of randomness on the device of ``like``.

    Of a stream of its own: with the seed that users have simulated their data or draws with, it
    would make the very same numbers again.
    """
    return generator(seed, "evidence", like.device)


@dataclass
class Task:
    """An evidence to be estimated.

    Attributes:
        problem: likelihood of standard normal noise.
        particles: particles, draws or live points N of each run.
        repeats: runs R.
        seed: of everything random.
        progress: whether to show a bar.
        checkpoint: file that a killed run resumes from, or None.
        draws: posterior draws that the user has, or None.
        proposal: of importance sampling, a name in ``PROPOSALS``.
        correct: whether a distilled density is corrected to the exact trace.
    """

    problem: LatentProblem
    particles: int
    repeats: int
    seed: int
    progress: bool
    checkpoint: Path | None = None
    draws: Any = None
    proposal: str = "student"
    correct: bool = True

    @cached_property
    def generator(self) -> torch.Generator:
        """Source of randomness, on the problem's device."""
        return generator_of(self.problem.like, self.seed)

    @cached_property
    def runs(self) -> Runs:
        """Tempered runs, made once for all estimators that start from them."""
        return temper(
            self.problem,
            self.particles,
            self.repeats,
            self.generator,
            progress=self.progress,
            checkpoint=self.checkpoint,
        )
