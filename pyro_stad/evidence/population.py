"""Many objects, one model: their evidences side by side.

The model is written for one object. Its likelihood is mapped over the objects, so that particles of
hundreds of them are one batch, and :mod:`pyro_stad.samplers.tempering` gives each its own
temperatures. Parts of some hundred objects know nothing of each other, and can be worked on by any
executor (:mod:`pyro_stad._workers`).
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._progress import progress_bar
from pyro_stad._workers import check_executor, worked
from pyro_stad.errors import EvidenceWarning
from pyro_stad.evidence.importance import Estimate, held_against, of_particles
from pyro_stad.evidence.job import asked, stream_of, tempered
from pyro_stad.evidence.posterior import cautions, disagreement, posterior_of, with_support
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.smc import STUCK, of_runs
from pyro_stad.evidence.support import SupportNoise
from pyro_stad.model.mapped import mapped, objects_in
from pyro_stad.model.noise import LatentProblem

__all__ = ["Population", "log_evidences"]


@own_context()
def log_evidences(
    model: Callable[..., Any],
    *args: Tensor,
    particles: int = 500,
    repeats: int = 4,
    correct: bool = True,
    part: int = 256,
    checkpoint: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[EvidenceResult]:
    """Estimate the log-evidence of a model for each of many objects, by tempered SMC at once.

    Each is held against importance sampling from its particles; the surer of the two is taken.

    Arguments:
        model: a model of one object, as ``log_evidence`` takes it, all of whose operations
            ``torch.func.vmap`` can map.
        args: what it is called with, tensors of which every object has one row, ``(B, ...)``.
        particles, repeats, correct, seed, progress: as for ``log_evidence``.
        part: objects that are worked on at a time.
        checkpoint: file that is written as the objects go, and resumed from; parts after the first
            have files of their own beside it, whose names go on with that of their first object.
            Workers write them, and have to see the same disk.
        executor: who works on the parts; as for ``sample_posteriors``.

    Returns:
        The estimates, in the order of the objects. The share that a flow prior extrapolates is in
        each, and in its warnings; nothing is refused.

    Raises:
        TypeError: if the model is not callable, or an argument not a tensor.
        ValueError: as ``log_evidence``; or for tensors of different length, or a model that can't
            be mapped.

    Warns:
        EvidenceWarning: if objects have two estimates that disagree by more than three standard
            errors, or more of their posterior than may be where a prior is extrapolated, or one
            percent where its ``icdf`` is not resolved, or samples that do not agree; they are
            named.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> found = log_evidences(model, torch.tensor([0.0, 1.0, 2.0]), progress=False)
        >>> [found[i].log_z > found[i + 1].log_z for i in range(2)]
        [True, True]
    """
    check_count(particles, "particles", least=100)
    check_count(repeats, "repeats", least=2)
    seed = check_seed(seed)
    check_count(part, "part")
    check_executor(executor)
    count = objects_in(args)
    # Of workers in other folders too, if they see the same disk.
    file = None if checkpoint is None else Path(checkpoint).resolve()
    # The bar of one part is that of its temperatures; of many, that of objects.
    alone = count <= part and executor is None
    shared = _Shared(model, particles, repeats, correct, seed, alone and progress)
    jobs = {
        start: _Job(tuple(a[start : start + part].clone() for a in args), start, _own(file, start))
        for start in range(0, count, part)
    }
    found: dict[int, list[EvidenceResult]] = {}
    with progress_bar("objects", count, shown=progress and not alone) as bar:
        with closing(worked(_of_part, shared, jobs, executor)) as work:
            for start, results in work:
                found[start] = results
                bar.update(len(results))
    results = [result for start in jobs for result in found[start]]
    _warn(results)
    return results


class _Shared(NamedTuple):
    """What all parts have in common; see ``log_evidences``."""

    model: Callable[..., Any]
    particles: int
    repeats: int
    correct: bool
    seed: int
    progress: bool


class _Job(NamedTuple):
    """A part: the rows of its objects, where it starts among all, and its file."""

    rows: tuple[Tensor, ...]
    start: int
    file: Path | None


def _own(file: Path | None, start: int) -> Path | None:
    """Return the file of the part that starts with an object."""
    return file if file is None or start == 0 else file.with_name(f"{file.name}.{start}")


@own_context()
def _of_part(shared: _Shared, job: _Job) -> list[EvidenceResult]:
    """Return the evidences of a part: what a worker does."""
    try:
        return _estimated(shared, job)
    except ValueError as error:
        if job.start == 0:
            raise
        raise ValueError(
            f"of the objects from {job.start} on, counted from there: {error}"
        ) from error


def _estimated(shared: _Shared, job: _Job) -> list[EvidenceResult]:
    particles, repeats = shared.particles, shared.repeats
    population = Population(shared.model, job.rows)
    if shared.correct:
        population = population.exactly()

    def stream(purpose: str) -> torch.Generator:
        of_part = purpose if job.start == 0 else f"{purpose}, objects from {job.start}"
        return stream_of(population.like, shared.seed, of_part)

    runs = tempered(
        population, population.generated, particles, repeats, stream("tempering"),
        progress=shared.progress, checkpoint=job.file,
    )  # fmt: skip
    common, found = population.problems[0].warnings(), []
    confirmed = of_particles(population, runs, stream("confirmation"))
    noise = SupportNoise.of(population.problems[0], shared.seed, 4 * particles)
    for index, (problem, check) in enumerate(zip(population.problems, confirmed)):
        posterior = posterior_of(problem, runs.u[index].flatten(0, 1))
        result = EvidenceResult(
            **of_runs(problem, runs, index),
            method="smc",
            data=population.data[index],
            warnings=((STUCK,) if runs.stuck[index] else ()) + common + posterior.pop("warnings"),
            **posterior,
        )
        result = asked(_surer(result, check), problem, particles * repeats)
        found.append(with_support(result, problem, noise))
    return found


def _surer(result: EvidenceResult, check: Estimate) -> EvidenceResult:
    """Return the surer of SMC and importance sampling from its particles, with the other beside."""
    result = held_against(result, check)
    if "importance" not in result.checks or check.log_z_err >= result.log_z_err:
        return result
    return replace(
        result, log_z=check.log_z, log_z_err=check.log_z_err, khat=check.khat, method="importance",
        correction=None,
        checks={"smc": (result.log_z, result.log_z_err)},
    )  # fmt: skip


def _warn(found: list[EvidenceResult]) -> None:
    """Say which objects are in doubt: beyond what their priors know, or with two answers."""
    doubts = {
        index: (*cautions(result), *disagreement(result.estimates()))
        for index, result in enumerate(found)
    }
    doubtful = [index for index, texts in doubts.items() if texts]
    if doubtful:
        shown = ", ".join(map(str, doubtful[:5])) + (", ..." if len(doubtful) > 5 else "")
        warnings.warn(
            f"{len(doubtful)} of {len(found)} objects are in doubt ({shown}); of the first: "
            f"{doubts[doubtful[0]][0]}. See the warnings of each",
            EvidenceWarning,
            stacklevel=4,
        )


class Population:
    """The log-likelihoods of many objects as functions of standard normal noise.

    Arguments:
        model: a model of one object.
        args: its arguments, with one row for each object.

    Attributes:
        problems: those of the objects, one by one.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Tensor, ...]) -> None:
        self.args, self.objects, self.calls = args, objects_in(args), 0
        # One by one: each is checked, has its own data, and describes its own posterior.
        self.problems = [LatentProblem(model, *(a[i] for a in args)) for i in range(self.objects)]
        self.size, self.like = self.problems[0].size, self.problems[0].like
        self.data = tuple(problem.data[0] for problem in self.problems)
        self.generated: Population | None = None

    def exactly(self) -> Population:
        """Return the same objects with flows in place of generators, if the model has any."""
        if not self.problems[0].generators:
            return self
        new = copy.copy(self)
        new.problems, new.calls = [problem.exactly() for problem in self.problems], 0
        new.generated = self
        return new

    def of_objects(self, which: Tensor, u: Tensor) -> Tensor:
        """Return the log-likelihoods ``(b, N)`` of objects ``which``, ``(b,)``, at ``(b, N, D)``.

        Raises:
            ValueError: if the model can't be mapped over objects.
        """
        first = self.problems[0]
        fit = mapped(first.unchecked, u, [a[which] for a in self.args])
        self.calls += fit.numel()
        return first.checked(fit)
