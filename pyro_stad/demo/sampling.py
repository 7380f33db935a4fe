"""Chains of NUTS, spread over processes, and what is said of a posterior found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.reparam import TransformReparam
from torch import Tensor

from pyro_stad._arviz import r_hat
from pyro_stad.data.effective import ess
from pyro_stad.density import FlowPrior

__all__ = ["Chain", "Job", "describe", "errors", "jobs_for", "run_chains"]


@dataclass(frozen=True)
class Job:
    """One chain to run.

    Attributes:
        name: the answer that it is part of.
        model: a function of a module, which takes the prior of its site ``theta``.
        prior: that prior.
        auxiliary: whether the chain moves in the noise of the prior, and not in x-space.
        seed, warmup, samples: of the chain.
    """

    name: str
    model: Callable[[Any], None]
    prior: TorchDistribution
    auxiliary: bool
    seed: int
    warmup: int
    samples: int


@dataclass(frozen=True)
class Chain:
    """One chain that has run: draws of ``theta``, ``(samples, D)``, and what they took."""

    name: str
    draws: np.ndarray
    divergences: int
    seconds: float
    network_calls: int | None


def jobs_for(
    name: str, model: Callable[[Any], None], prior: TorchDistribution, chains: int, **options: Any
) -> list[Job]:
    """Return a job per chain, each with a seed of its own; ``options`` are those of a job."""
    seed = options.pop("seed")
    return [Job(name, model, prior, seed=seed + chain, **options) for chain in range(chains)]


def run_chains(jobs: list[Job], workers: int) -> dict[str, list[Chain]]:
    """Run chains in so many processes; return them by name."""
    if workers <= 1:
        return _by_name(map(_run, jobs))
    # Spawned, not forked: torch's thread pool does not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return _by_name(pool.map(_run, jobs))


def errors(mean: Any, sd: Any, truth: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return errors of means, in the posterior sds of the truth, and relative errors of sds."""
    true_mean, true_sd = truth[0].numpy(), truth[1].numpy()
    shift = (np.asarray(mean, float) - true_mean) / true_sd
    ratio = np.asarray(sd, float) / true_sd - 1
    return {
        "mean_error": shift.tolist(),
        "sd_error": ratio.tolist(),
        "worst_mean_error": float(np.abs(shift).max()),
        "worst_sd_error": float(np.abs(ratio).max()),
    }


def describe(chains: list[Chain], truth: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return the errors of an answer by NUTS, and the diagnostics of its chains."""
    draws = np.stack([chain.draws for chain in chains]).astype(np.float64)
    columns = [draws[..., i] for i in range(draws.shape[-1])]
    return {
        **errors(draws.mean((0, 1)), draws.std((0, 1), ddof=1), truth),
        "r_hat": max(map(r_hat, columns)),
        "ess_bulk": min(ess(torch.as_tensor(column)) for column in columns),
        "divergences": sum(chain.divergences for chain in chains),
        "seconds_per_chain": float(np.mean([chain.seconds for chain in chains])),
        "sequential_network_calls_per_evaluation": chains[0].network_calls,
    }


def _by_name(chains: Iterable[Chain]) -> dict[str, list[Chain]]:
    found: dict[str, list[Chain]] = {}
    for chain in chains:
        found.setdefault(chain.name, []).append(chain)
    return found


def _run(job: Job) -> Chain:
    torch.set_num_threads(1)
    model: Callable[..., Any] = job.model
    if job.auxiliary:
        model = poutine.reparam(model, config={"theta": TransformReparam()})
    pyro.set_rng_seed(job.seed)
    started = time.monotonic()
    kernel = NUTS(
        model,
        full_mass=True,
        jit_compile=True,
        ignore_jit_warnings=True,
        init_strategy=init_to_sample,
    )
    mcmc = MCMC(kernel, job.samples, job.warmup, disable_progbar=True)
    mcmc.run(job.prior)
    drawn = mcmc.get_samples()
    theta = _push(job.prior, drawn["theta_base"]) if job.auxiliary else drawn["theta"]
    return Chain(
        job.name,
        theta.numpy(),
        len(mcmc.diagnostics()["divergences"]["chain 0"]),
        time.monotonic() - started,
        _network_calls(job),
    )


def _push(prior: Any, noise: Tensor) -> Tensor:
    for transform in prior.transforms:
        noise = transform(noise)
    return noise


def _network_calls(job: Job) -> int | None:
    """Return the sequential network calls per evaluation of the prior: 0 for a normal."""
    if not isinstance(job.prior, FlowPrior):
        return 0
    part: Any = job.prior.transport if job.auxiliary else job.prior.likelihood
    return part.sequential_calls()
