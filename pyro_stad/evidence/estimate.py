"""``log_evidence``: one call for every estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_stad._checks import check_choice, check_count, check_seed
from pyro_stad.evidence.importance import importance
from pyro_stad.evidence.latent import LatentProblem
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.smc import smc

__all__ = ["METHODS", "log_evidence"]

METHODS = {"smc": smc, "importance": importance}


def log_evidence(
    model: Callable[..., Any],
    *args: Any,
    method: str = "auto",
    particles: int = 1000,
    repeats: int = 4,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> EvidenceResult:
    """Estimate the log-evidence of a Pyro model.

    Arguments:
        model: a model with continuous latent sites, which runs in a plate to the left of its own.
        args, kwargs: what the model is called with, its observations among them.
        method: a name in ``pyro_stad.evidence.METHODS``, or ``"auto"``, which is ``"smc"``.
        particles: particles of each run.
        repeats: independent runs, whose spread is the error.
        seed: of everything random; the global generator is not touched.
        progress: whether to show a bar.

    Returns:
        The estimate, with its error and the posterior draws that it came with.

    Raises:
        EvidenceError: if an estimate was made that can't be believed.
        ValueError: for a model without latent sites or observations, or with latent sites that are
            discrete or not maps of normal noise; or if the likelihood is zero everywhere.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> result = log_evidence(model, torch.tensor(1.0), progress=False)
        >>> truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.0)).item()
        >>> abs(result.log_z - truth) < 0.1
        True
    """
    check_choice(method, "method", ("auto", *METHODS))
    check_count(particles, "particles", least=100)
    check_count(repeats, "repeats", least=2)
    check_seed(seed)
    problem = LatentProblem(model, *args, **kwargs)
    generator = torch.Generator(problem.like.device).manual_seed(seed)
    estimator = METHODS["smc" if method == "auto" else method]
    return estimator(
        problem, particles=particles, repeats=repeats, generator=generator, progress=progress
    )
