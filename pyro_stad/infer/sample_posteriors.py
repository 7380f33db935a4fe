r"""``sample_posteriors``: one model, a row of data for each object, and all their posteriors.

Objects come in parts of some hundreds, whose chains are one batch: every object has temperatures,
normal laws and steps of its own. Parts know nothing of each other. So they can be worked on by any
``concurrent.futures.Executor``, here or on other machines, and be written as they come: a run that
was killed loses the parts that were under way. The random numbers of a part depend on the seed and
on its place, and on nobody who works beside it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_positive, check_seed
from pyro_stad._context import own_context
from pyro_stad._progress import progress_bar
from pyro_stad._random import generator
from pyro_stad._workers import check_executor, worked
from pyro_stad.errors import AccuracyWarning
from pyro_stad.infer.chains_pilot import best, piloted
from pyro_stad.infer.chains_run import check_chains
from pyro_stad.infer.objects_run import Job, ObjectsOptions, Shared, form_of, part_of_objects
from pyro_stad.infer.sampled_objects import (
    Part,
    SampledPosteriors,
    part_file,
    read_part,
    write_part,
)
from pyro_stad.infer.starts import some
from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm, has_parameters
from pyro_stad.model.mapped import MappedForm, MappedProblem, fingerprint, objects_in
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers import AbstractKernel, Hamiltonian, temper

__all__ = ["sample_posteriors"]

_PILOTS, _PARTICLES = 8, 100


@own_context()
def sample_posteriors(
    model: Callable[..., Any],
    *args: Tensor,
    num_chains: int = 32,
    num_samples: int = 100,
    min_ess: float | None = None,
    form: str = "auto",
    kernel: AbstractKernel | None = None,
    part: int = 256,
    store: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SampledPosteriors:
    """Sample the posterior of every one of many objects.

    Arguments:
        model: a model of one object, as ``log_evidences`` takes it: priors are maps of normal
            noise, and all operations such that ``torch.func.vmap`` can map them. For an executor
            with other processes it must be picklable: a function of a module, or a ``partial``.
        args: what it is called with, tensors of which every object has one row, ``(B, ...)``.
        num_chains: chains of each object, an even number.
        num_samples: draws of each chain, after a warm-up.
        min_ess: effective draws, of all chains together, that the worst number of every object is
            to have. Objects without go on, when others have left the batch, for 64 times as many
            moves at the most, and draws of which they keep as many as others. None for those of
            ``num_samples`` moves.
        form: ``"noise"``, ``"parameters"``, or ``"auto"`` for that which a pilot with the first of
            the objects prefers.
        kernel: how chains move; None for Hamiltonian dynamics.
        part: objects that are worked on at a time.
        store: folder into which parts are written as they are done; those that are there already
            are not sampled again.
        executor: who works on the parts, such as a ``ProcessPoolExecutor``, or
            ``dask.distributed.Client(...).get_executor()``; None for this thread. Pyro's handlers
            belong to a process, so that threads of one take turns. A part that fails is tried
            again, three times in all; a worker is sent the model once.
        seed: of everything random; the global generator is not touched.
        progress: whether to show a bar.

    Returns:
        The draws of all objects, with R-hat and effective draws of each.

    Raises:
        CheckpointError: if the store is of another model, other data or other options.
        EvidenceError: if tempering does not arrive, or more than one percent of the likelihoods of
            a part are NaN.
        TypeError, ValueError: for a model or data that ``log_evidences`` does not take, or options
            that can't be used.

    Warns:
        AccuracyWarning: if chains of objects disagree, or have not as many effective draws as
            ``min_ess``; they are named. If a prior is a generator of one step, or likelihoods were
            NaN.
        RuntimeWarning: if an executor broke, and the rest was done here.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> found = sample_posteriors(model, torch.tensor([0.0, 1.0, 2.0]), progress=False)
        >>> found.draws["x"].shape
        torch.Size([3, 32, 100])
    """
    check_chains(num_chains, num_samples, kernel)
    count = objects_in(args)
    _check(args, form, part, store)
    check_executor(executor)
    _check_effective(min_ess, num_chains * num_samples)
    kernel = Hamiltonian() if kernel is None else kernel
    first, seed = LatentProblem(model, *(a[0] for a in args)), check_seed(seed)
    form, pilot = _chosen(form, first, args, kernel, seed)
    effective = None if min_ess is None else float(min_ess)
    options = ObjectsOptions(seed, int(num_chains), int(num_samples), effective, kernel, form)
    # Copies: what is sent to a worker would else hold the data of all.
    jobs = {
        start: Job(tuple(a[start : start + part].clone() for a in args), start)
        for start in range(0, count, part)
    }
    parts = _Parts(store, options, _mark(form_of(first, form)))
    done = parts.stored(jobs)
    left = {start: job for start, job in jobs.items() if start not in done}
    with progress_bar("objects", count, shown=progress, done=sum(map(len, done.values()))) as bar:
        with closing(worked(part_of_objects, Shared(model, options), left, executor)) as work:
            for start, found in work:
                done[start] = parts.kept(jobs[start], found)
                bar.update(len(found))
    in_order = tuple(done[start] for start in jobs)
    result = SampledPosteriors(in_order, num_chains, num_samples, form, pilot)
    _warn(result, min_ess)
    return result


class _Parts:
    """The folder of a store, if there is one."""

    def __init__(self, store: Any, options: ObjectsOptions, mark: Tensor) -> None:
        self.folder = None if store is None else Path(store)
        self.options, self.mark = options, mark
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def stored(self, jobs: dict[int, Job]) -> dict[int, Part]:
        """Return the parts that are there."""
        if self.folder is None:
            return {}
        return {
            start: read_part(self.folder, start, self._identity(job), self.mark)
            for start, job in jobs.items()
            if part_file(self.folder, start).exists()
        }

    def kept(self, job: Job, part: Part) -> Part:
        """Return a part, written to the folder and held there, or as it is."""
        if self.folder is None:
            return part
        return write_part(self.folder, job.start, part, self._identity(job), self.mark)

    def _identity(self, job: Job) -> dict[str, Any]:
        known = self.options._asdict() | {"kernel": repr(self.options.kernel)}
        known |= {"objects": len(job.rows[0]), "start": job.start, "dtype": str(job.rows[0].dtype)}
        known["default dtype"] = str(torch.get_default_dtype())
        # Last the form, which a pilot may choose otherwise where anything else is not the same.
        return {"data": fingerprint(job.rows), **known}


def _check(args: tuple[Tensor, ...], form: Any, part: Any, store: Any) -> None:
    check_choice(form, "form", ("auto", NoiseForm.name, ParameterForm.name))
    check_count(part, "part")
    for place, a in enumerate(args):
        bad = ~torch.isfinite(a).reshape(len(a), -1).all(1)
        if bad.any():
            raise ValueError(
                f"argument {place} is nan or infinite for object {int(bad.nonzero()[0])}, and "
                f"{int(bad.sum())} in all; leave them out"
            )
    if store is not None and Path(store).exists() and not Path(store).is_dir():
        raise NotADirectoryError(f"`store` must be a folder, and {store} is a file")


def _check_effective(min_ess: Any, draws: int) -> None:
    if min_ess is None:
        return
    check_positive(min_ess, "min_ess")
    if min_ess > draws:
        raise ValueError(
            f"`min_ess` must be at most the number of draws that are kept of an object, num_chains "
            f"times num_samples, {draws}; got {min_ess:g}"
        )


def _chosen(
    form: str,
    first: LatentProblem,
    args: tuple[Tensor, ...],
    kernel: AbstractKernel,
    seed: int,
) -> tuple[str, dict[str, float]]:
    """Return the form that was asked for, or that a pilot prefers, with what it found."""
    possible = has_parameters(first.model)
    if form == ParameterForm.name and not possible:
        raise ValueError(
            "`form` 'parameters' needs densities on the line, and the model has an angle, or a "
            "generator of one step; use form='noise'"
        )
    if form != "auto" or not possible:
        return (NoiseForm.name if form == "auto" else form), {}
    source, few = generator(seed, "pilot of objects", first.like.device), _few(args)
    runs = temper(MappedProblem(first, few), _PARTICLES, 2, source, progress=False)
    noise = some(runs.u, _PARTICLES // 4, source)
    pilot = {}
    for name in (NoiseForm.name, ParameterForm.name):
        mapped = MappedForm(form_of(first, name), few)
        start = mapped.starts(first, noise.flatten(1, 2)).reshape(*noise.shape[:3], -1)
        pilot[name] = piloted(mapped.of_objects, start, mapped.form.price, kernel, source)
    return best(pilot), pilot


def _few(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a[:_PILOTS] for a in args)


def _mark(form: AbstractForm) -> Tensor:
    """Return log-densities of the first object at a little noise that is always the same."""
    noise = torch.randn(3, form.size, generator=generator(0, "mark of a model"))
    with torch.no_grad():
        return form.log_density(noise.to(form.like)).double().cpu()


def _warn(result: SampledPosteriors, min_ess: float | None) -> None:
    told = list(result.warnings)
    doubtful = result.disagreeing.nonzero()[:, 0].tolist()
    if doubtful:
        told.append(
            f"chains of {len(doubtful)} of {len(result)} objects disagree ({_named(doubtful)}), "
            f"R-hat up to {result.r_hat.max():.3f}"
        )
    short = [] if min_ess is None else (result.ess < min_ess).nonzero()[:, 0].tolist()
    if short:
        told.append(
            f"{len(short)} of {len(result)} objects have fewer effective draws than min_ess = "
            f"{min_ess:g} ({_named(short)})"
        )
    if told:
        warnings.warn(
            f"{'; '.join(told)}: let them go on (num_samples), take more chains, or look for "
            "several modes",
            AccuracyWarning,
            stacklevel=4,
        )


def _named(objects: list[int]) -> str:
    return ", ".join(map(str, objects[:5])) + (", ..." if len(objects) > 5 else "")
