"""What an estimator is asked: a problem, with what all estimators of one call share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers import (
    AbstractKernel,
    BridgedRuns,
    CrankNicolson,
    Problem,
    Runs,
    bridge,
    temper,
)

__all__ = ["EvidenceJob", "asked", "spent", "stream_of", "tempered"]


def stream_of(like: Tensor, seed: int, purpose: str) -> torch.Generator:
    """Return the randomness of one purpose, from its beginning, on the device of ``like``.

    So an estimator's number does not depend on which others were asked before it. All are
    purposes of evidence: with the seed that users have simulated their data with, a stream
    without a name would make the very same numbers again.
    """
    return generator(seed, f"evidence, {purpose}", like.device)


def tempered(
    problem: Problem,
    generated: Problem | None,
    particles: int,
    repeats: int,
    generator: torch.Generator,
    kernel: AbstractKernel | None = None,
    *,
    progress: bool,
    checkpoint: Path | None,
) -> Runs:
    """Return tempered runs of a problem; most of the way by its generators, where it has some."""
    options: dict[str, Any] = {"progress": progress, "checkpoint": checkpoint}
    if generated is None:
        return temper(problem, particles, repeats, generator, kernel=kernel, **options)
    runs = temper(generated, particles, repeats, generator, kernel=kernel, **options)
    if checkpoint is not None:
        options["checkpoint"] = checkpoint.with_name(f"{checkpoint.name}.exact")
    return bridge(runs, problem, **options)


def spent(problem: LatentProblem, runs: Runs, index: int = 0) -> tuple[int, int | None]:
    """Return the likelihoods that the runs of an object took, and their network calls."""
    calls = int(runs.calls[index])
    networks = problem.network_calls(calls)
    if isinstance(runs, BridgedRuns) and problem.generated is not None:
        cheap = int(runs.cheap_calls[index])
        calls, networks = calls + cheap, _sum(networks, problem.generated.network_calls(cheap))
    return calls, networks


def asked(result: EvidenceResult, problem: LatentProblem, more: int) -> EvidenceResult:
    """Return the result with so many likelihoods more."""
    return replace(
        result,
        likelihood_calls=result.likelihood_calls + more,
        network_calls=_sum(result.network_calls, problem.network_calls(more)),
    )


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


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
            self._tempered[key] = tempered(
                self.problem, self.problem.generated, particles, repeats,
                self.generator("tempering"), kernel, progress=self.progress,
                checkpoint=self.checkpoint,
            )  # fmt: skip
        return self._tempered[key]
