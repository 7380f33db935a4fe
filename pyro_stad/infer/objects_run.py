"""The chains of a part of the objects: what a worker does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.infer.sampled_objects import Part
from pyro_stad.infer.starts import Doubts, some
from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm
from pyro_stad.model.joint import JointDensity
from pyro_stad.model.mapped import MappedForm, MappedProblem
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers import AbstractKernel, Ensemble, temper

__all__ = ["Job", "ObjectsOptions", "Shared", "form_of", "part_of_objects"]

_FEWEST, _FOR_A_CHAIN = 50, 3  # particles of each of two runs
_MOST_DOUBLINGS = 6


class ObjectsOptions(NamedTuple):
    """What is asked of all parts; see ``sample_posteriors``."""

    seed: int
    num_chains: int
    num_samples: int
    min_ess: float | None
    kernel: AbstractKernel
    form: str


class Shared(NamedTuple):
    """What all parts have in common."""

    model: Callable[..., Any]
    options: ObjectsOptions


class Job(NamedTuple):
    """A part: the rows of its objects, and where it starts among all."""

    rows: tuple[Tensor, ...]
    start: int


def form_of(problem: LatentProblem, name: str) -> AbstractForm:
    """Return a model's form of a name."""
    if name == NoiseForm.name:
        return NoiseForm(problem)
    return ParameterForm(JointDensity(problem.model))


@own_context()
def part_of_objects(shared: Shared, job: Job) -> Part:
    """Return the draws of a part.

    Raises:
        EvidenceError, ValueError: as ``sample_posteriors``.
    """
    options, rows = shared.options, job.rows
    problem = LatentProblem(shared.model, *(a[0] for a in rows))
    source = generator(options.seed, f"objects from {job.start}", problem.like.device)
    many, form = MappedProblem(problem, rows), MappedForm(form_of(problem, options.form), rows)
    half = options.num_chains // 2
    try:
        particles = max(_FEWEST, _FOR_A_CHAIN * options.num_chains)
        runs = temper(many, particles, 2, source, progress=False)
    except ValueError as error:
        raise ValueError(
            f"of the objects from {job.start} on, counted from there: {error}"
        ) from error
    start = form.starts(problem, some(runs.u, half, source).flatten(1, 2))
    shape = many.objects, 2, half, form.form.size
    chains = Ensemble(form.of_objects, start.reshape(shape), options.kernel, source)
    chains.warm_up()
    part = _drawn(chains, form, options, Doubts.of(runs))
    return replace(part, warnings=problem.warnings())  # raises where too many likelihoods are NaN


def _drawn(chains: Ensemble, form: MappedForm, options: ObjectsOptions, doubts: Doubts) -> Part:
    """Return draws, of every object as many; those with enough effective ones leave the batch.

    The others go on for as many moves as they have made, and of all of them every second draw is
    kept.
    """
    moves, draws = 1, _moved(chains, options.num_samples, 1)
    part = Part.of(form, chains, draws, doubts, moves)
    if options.min_ess is None:
        return part
    for _ in range(_MOST_DOUBLINGS):
        short = part.ess[chains.which.cpu()] < options.min_ess
        if not short.any():
            break
        draws = draws[short.to(draws.device)][:, :, 1::2]
        chains.keep(short.to(draws.device))
        moves *= 2
        more = _moved(chains, options.num_samples - draws.shape[2], moves)
        draws = torch.cat([draws, more], 2)
        part.take(chains.which.cpu(), Part.of(form, chains, draws, doubts, moves))
    return part


def _moved(chains: Ensemble, count: int, moves: int) -> Tensor:
    """Return so many draws, so many moves apart: ``(b, C, count, K)``."""
    draws = []
    for _ in range(count):
        for _ in range(moves):
            chains.step()
        draws.append(chains.x)
    return torch.stack(draws, 2)
