r"""``sample_posteriors``: one model, a row of data for each object, and all their posteriors.

Objects come in parts of some hundreds, whose chains are one batch: every object has temperatures,
normal laws and steps of its own. Parts know nothing of each other. So they can be worked on by any
``concurrent.futures.Executor``, here or on other machines, and be written as they come: a run that
was killed loses the parts that were under way. The random numbers of a part depend on the seed and
on its place, and on nobody who works beside it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._progress import progress_bar
from pyro_stad._random import generator
from pyro_stad.errors import AccuracyWarning, EvidenceError
from pyro_stad.infer.chains_run import check_chains
from pyro_stad.infer.sampled_objects import (
    Part,
    SampledPosteriors,
    part_file,
    read_part,
    write_part,
)
from pyro_stad.infer.starts import Doubts, some
from pyro_stad.model.forms import AbstractForm, NoiseForm, ParameterForm, has_parameters
from pyro_stad.model.joint import JointDensity
from pyro_stad.model.mapped import MappedForm, MappedProblem, fingerprint, objects_in
from pyro_stad.model.noise import LatentProblem
from pyro_stad.samplers import AbstractKernel, Ensemble, Hamiltonian, temper

__all__ = ["sample_posteriors"]

_PARTICLES = 100
_TRIES = 3
_FINAL = (TypeError, ValueError, AttributeError, EvidenceError)  # that come again
# Pyro's handlers belong to the process, and two models at once would see each other's.
_ALONE = threading.Lock()


@own_context()
def sample_posteriors(
    model: Callable[..., Any],
    *args: Tensor,
    num_chains: int = 32,
    num_samples: int = 100,
    form: str = "parameters",
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
        form: ``"parameters"`` or ``"noise"``; the latter where the former has no density.
        kernel: how chains move; None for Hamiltonian dynamics.
        part: objects that are worked on at a time.
        store: folder into which parts are written as they are done; those that are there already
            are not sampled again.
        executor: who works on the parts, such as a ``ProcessPoolExecutor``, or
            ``dask.distributed.Client(...).get_executor()``; None for this thread. Pyro's handlers
            belong to a process, so that threads of one take turns; torch's default dtype does too,
            and workers have to set it as it is here. A part that fails is tried
            again, three times in all.
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
        AccuracyWarning: if chains of objects disagree; they are named.

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
    _check(args, form, part, store, executor)
    kernel = Hamiltonian() if kernel is None else kernel
    first = LatentProblem(model, *(a[0] for a in args))
    if form == ParameterForm.name and not has_parameters(first.model):
        raise ValueError(
            "`form` 'parameters' needs densities on the line, and the model has an angle, or a "
            "generator of one step; use form='noise'"
        )
    options = _Options(num_chains, num_samples, form, kernel, check_seed(seed))
    parts = [slice(at, min(at + part, count)) for at in range(0, count, part)]
    folder = None if store is None else Path(store)
    done: dict[int, Part] = {}
    mark = _mark(_form(first, form))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # Copies: what is sent to a worker would else hold the data of all.
    rows = {at.start: tuple(a[at].clone() for a in args) for at in parts}
    jobs = {start: (model, own, options, start) for start, own in rows.items()}
    for start, job in list(jobs.items()):
        if folder is not None and part_file(folder, start).exists():
            done[start] = read_part(folder, start, _identity(job), mark)
            del jobs[start]
    with progress_bar("objects", count, shown=progress, done=sum(map(len, done.values()))) as bar:
        for start, found in _worked(jobs, executor):
            if folder is not None:
                write_part(folder, start, found, _identity(jobs[start]), mark)
            done[start] = found
            bar.update(len(found))
    result = SampledPosteriors.of_parts([done[at.start] for at in parts], form)
    _warn(result)
    return result


def _check(args: tuple[Tensor, ...], form: Any, part: Any, store: Any, executor: Any) -> None:
    check_choice(form, "form", (NoiseForm.name, ParameterForm.name))
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
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            "`executor` must be a concurrent.futures.Executor, such as a ProcessPoolExecutor or "
            f"dask.distributed.Client(...).get_executor(); got {executor!r:.80}"
        )


class _Options(NamedTuple):
    num_chains: int
    num_samples: int
    form: str
    kernel: AbstractKernel
    seed: int


Job = tuple[Callable[..., Any], tuple[Tensor, ...], _Options, int]


def _identity(job: Job) -> dict[str, Any]:
    _, rows, options, start = job
    known = options._asdict() | {"kernel": repr(options.kernel)}
    known |= {"objects": len(rows[0]), "start": start, "dtype": str(rows[0].dtype)}
    return {**known, "data": fingerprint(rows)}


def _mark(form: AbstractForm) -> Tensor:
    """Return log-densities of the first object at a little noise that is always the same."""
    noise = torch.randn(3, form.size, generator=generator(0, "mark of a model"))
    with torch.no_grad():
        return form.log_density(noise.to(form.like)).double().cpu()


def _worked(jobs: dict[int, Job], executor: Executor | None) -> Iterator[tuple[int, Part]]:
    """Yield parts as they are done, each with its place."""
    if executor is None:
        for start, job in jobs.items():
            yield start, _sampled(job)
        return
    tries = dict.fromkeys(jobs, 1)
    running: dict[Future[Part], int] = {
        executor.submit(_sampled, job): start for start, job in jobs.items()
    }
    while running:
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            start = running.pop(future)
            error = future.exception()
            if error is None:
                yield start, future.result()
            elif tries[start] >= _TRIES or isinstance(error, _FINAL):
                for other in running:
                    other.cancel()
                _raise(error)
            else:
                tries[start] += 1
                running[executor.submit(_sampled, jobs[start])] = start


def _raise(error: BaseException) -> NoReturn:
    if "pickle" in str(error).lower():
        raise TypeError(
            f"`model` and its prior must be picklable for this executor ({error}): let the model "
            "be a function of a module, or a functools.partial of one"
        ) from error
    raise error


@own_context()
def _sampled(job: Job) -> Part:
    """Return the draws of a part of the objects: what a worker does."""
    with _ALONE:
        return _drawn(job)


def _drawn(job: Job) -> Part:
    model, rows, options, start = job
    problem = LatentProblem(model, *(a[0] for a in rows))
    source = generator(options.seed, f"objects from {start}", problem.like.device)
    many, form = MappedProblem(problem, rows), MappedForm(_form(problem, options.form), rows)
    half = options.num_chains // 2
    try:
        runs = temper(many, max(_PARTICLES, 2 * half), 2, source, progress=False)
    except ValueError as error:
        raise ValueError(f"of the objects from {start} on, counted from there: {error}") from error
    start_at = form.starts(problem, some(runs.u, half, source).flatten(1, 2))
    shape = many.objects, 2, half, form.form.size
    chains = Ensemble(form.of_objects, start_at.reshape(shape), options.kernel, source)
    chains.warm_up()
    draws = []
    for _ in range(options.num_samples):
        chains.step()
        draws.append(chains.x)
    problem.warnings()  # raises where too many likelihoods are NaN
    return Part.of(
        form, torch.stack(draws, 2), chains.acceptance, Doubts.of(runs).left(chains.jumped)
    )


def _form(problem: LatentProblem, name: str) -> AbstractForm:
    if name == NoiseForm.name:
        return NoiseForm(problem)
    return ParameterForm(JointDensity(problem.model))


def _warn(result: SampledPosteriors) -> None:
    doubtful = result.disagreeing.nonzero()[:, 0].tolist()
    if doubtful:
        shown = ", ".join(map(str, doubtful[:5])) + (", ..." if len(doubtful) > 5 else "")
        warnings.warn(
            f"chains of {len(doubtful)} of {len(result.r_hat)} objects disagree ({shown}), R-hat "
            f"up to {result.r_hat.max():.3f}: let them go on (num_samples), take more of them, or "
            "look for several modes",
            AccuracyWarning,
            stacklevel=4,
        )
