"""``log_evidence``: one call for every estimator, and one for many objects."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pyro_stad._checks import check_choice, check_seed
from pyro_stad._context import own_context
from pyro_stad.errors import EvidenceError, EvidenceWarning
from pyro_stad.evidence.importance import Importance, held_against, of_particles
from pyro_stad.evidence.job import EvidenceJob, asked
from pyro_stad.evidence.method import (
    METHODS,
    AbstractMethod,
    AbstractParticleMethod,
    method_of,
    takes,
)
from pyro_stad.evidence.posterior import cautions, disagreement, refusals, with_support
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.smc import STUCK
from pyro_stad.evidence.support import SupportNoise
from pyro_stad.model.joint import angles
from pyro_stad.model.noise import LatentProblem

__all__ = ["METHODS", "log_evidence"]


@own_context()
def log_evidence(
    model: Callable[..., Any],
    *args: Any,
    method: str | AbstractMethod = "auto",
    draws: Any = None,
    particles: int = 1000,
    repeats: int = 4,
    proposal: str = "student",
    correct: bool = True,
    allow_extrapolation: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> EvidenceResult:
    """Estimate the log-evidence of a Pyro model.

    Arguments:
        model: a model with continuous latent sites. It runs in a plate to the left of its own, or,
            if it does not broadcast over that, draw by draw.
        args, kwargs: what the model is called with, its observations among them.
        method: a method with its options, such as ``SMC(particles=4000)``; or a name in
            ``pyro_stad.evidence.METHODS``, which takes them from the arguments below; or
            ``"auto"``: tempered SMC, importance sampling from its particles, and the bridge if
            there are ``draws``. The one with the least error is taken, and the others are held
            against it.
        draws: posterior draws of the model, for the bridge: an ``MCMC`` that has run, ArviZ data,
            or tensors by site.
        particles: particles, live points or draws of each run.
        repeats: independent runs, whose spread is the error.
        proposal: what importance sampling learns from the particles: ``"student"``, a t law, or
            ``"flow"``, for several modes, a minute's fit.
        correct: whether what was distilled is put right: generators of one step to the flow of
            their prior, where particles go most of their way by the generator and the rest by the
            flow; and the bridge, where it used a distilled density, to the exact trace. Other
            methods use no density of a flow.
        allow_extrapolation: whether an evidence is given of which more than may be comes from where
            a flow prior has hardly seen a sample (``EvidenceResult.tolerated``), or on which its
            samples, reweighted by the likelihood, do not agree (``EvidenceResult.support``).
        checkpoint: file that SMC resumes from after a kill, to the same answer; nested sampling
            appends the number of the run and ``.h5``.
        seed: of everything random; the global generator is not touched.
        progress: whether to show a bar.

    Returns:
        The estimate, with its error and the posterior draws that it came with.

    Raises:
        CheckpointError: if the checkpoint is damaged, or belongs to other data or settings.
        EvidenceError: if an estimate was made that can't be believed; it is the error's ``result``.
        ImportError: for nested sampling without nautilus.
        TypeError: if the model is not callable, or ``draws`` of no known type.
        ValueError: for a model without latent sites or observations, with latent sites that are
            discrete or not maps of normal noise, or with random numbers of its own; or if the
            likelihood is zero everywhere.

    Warns:
        EvidenceWarning: if two methods disagree by more than three standard errors; if SMC has
            trouble, and no other method can say whether it is right; or if more than one percent
            of the posterior is farther out than the ``icdf`` of its prior resolves.
        UserWarning: if the model does not broadcast over draws and runs draw by draw.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> result = log_evidence(model, torch.tensor(1.0), progress=False)
        >>> truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.0)).item()
        >>> abs(result.log_z - truth) < 0.1
        True
    """
    seed = check_seed(seed)
    options: dict[str, Any] = {
        "particles": particles, "repeats": repeats, "draws": draws, "correct": correct,
        "proposal": proposal,
    }  # fmt: skip
    chosen = _chosen(method, options)
    problem = LatentProblem(model, *args, **kwargs)
    if correct and problem.generators:
        problem = problem.exactly()
    job = EvidenceJob(problem, seed, progress, None if checkpoint is None else Path(checkpoint))
    result = _auto(job, options) if chosen is None else chosen(job)
    if chosen is not None and chosen.is_checked:
        result = _held_against_importance(result, job, cast(AbstractParticleMethod, chosen))
    particles = getattr(chosen, "particles", particles)
    result = with_support(result, problem, SupportNoise.of(problem, seed, 10 * particles))
    refused = refusals(result)
    if refused and not allow_extrapolation:
        raise EvidenceError(
            f"{refused[0]}. Fit the prior to samples that reach there, or say "
            "allow_extrapolation=True",
            result,
        )
    # What was allowed is in the result, and not said again.
    for text in cautions(result)[len(refused) :]:
        warnings.warn(text, EvidenceWarning, stacklevel=3)
    return result


def _chosen(method: str | AbstractMethod, options: dict[str, Any]) -> AbstractMethod | None:
    """Return the method that was asked for; None for the best of several."""
    if not isinstance(method, AbstractMethod):
        check_choice(method, "method", ("auto", *METHODS))
    if isinstance(method, AbstractMethod):
        if options["draws"] is not None:
            raise ValueError(f"`draws` are to be given to the method, {type(method).__name__}")
        return method
    if options["draws"] is not None and method != "auto" and not takes(method, "draws"):
        raise ValueError(f"`draws` are for the bridge; method={method!r} makes no use of them")
    # All options are checked, whatever the method makes use of.
    Importance(options["particles"], options["repeats"], options["proposal"])
    return None if method == "auto" else method_of(method, options)


def _held_against_importance(
    result: EvidenceResult, job: EvidenceJob, method: AbstractParticleMethod
) -> EvidenceResult:
    """Confirm SMC by importance sampling from its particles; that takes as many likelihoods more.

    Where the map from noise is steep, as of a heavy-tailed prior far out, SMC can be wrong by
    hundreds of nats and know nothing of it.
    """
    runs = job.runs(method.particles, method.repeats, getattr(method, "kernel", None))
    (check,) = of_particles(job.problem, runs, job.generator("confirmation"))
    result = asked(result, job.problem, method.particles * method.repeats)
    result = held_against(result, check)
    for text in disagreement(result.estimates()):
        warnings.warn(text, EvidenceWarning, stacklevel=4)
    return result


def _auto(job: EvidenceJob, options: dict[str, Any]) -> EvidenceResult:
    """Estimate by every method that is cheap, take the best, and hold it against the others."""
    given = options["draws"] is not None
    periodic = given and angles(job.problem.model.latent)
    bridged = given and not periodic
    names = ("smc", "importance", *(("bridge",) if bridged else ()))
    found: dict[str, EvidenceResult] = {}
    notes: tuple[str, ...] = ()
    if periodic:
        notes += (f"`draws` were not used: the bridge can't take the angles in {periodic}",)
    for name in names:
        try:
            found[name] = method_of(name, options)(job)
        except (EvidenceError, NotImplementedError) as error:
            # SMC is the one that there must be.
            if name == "smc":
                raise
            notes += (f"{name} was refused: {error}",)
    for text in disagreement({name: (r.log_z, r.log_z_err) for name, r in found.items()}):
        notes += (text,)
        warnings.warn(text, EvidenceWarning, stacklevel=4)
    alone = found["smc"]
    if len(found) == 1 and STUCK in alone.warnings:
        text = f"nothing confirms log Z = {alone.log_z:.3f}: {STUCK}, or method='nested'"
        notes += (text,)
        warnings.warn(text, EvidenceWarning, stacklevel=4)
    best = min(found.values(), key=lambda result: result.log_z_err)
    others = {name: result for name, result in found.items() if result is not best}
    checks = {name: (result.log_z, result.log_z_err) for name, result in others.items()}
    # All start from the same particles: what one is warned of concerns the others.
    notes += tuple(
        f"{name}: {text}"
        for name, r in others.items()
        for text in r.warnings
        if text not in best.warnings
    )
    return replace(best, checks=checks, warnings=(*best.warnings, *notes))
