r"""Sequential updating with the diabetes study: yesterday's posterior as today's prior.

Patients in two halves. The posterior of half A is drawn exactly, learned as a prior, and updated
with half B by NUTS, in x-space and in auxiliary form; the truth is the closed-form posterior of
both halves. In x-space the prior's density is asked for at every leapfrog step, and the Stein path,
if the calibration has chosen it, gives it for one network call; in auxiliary form nothing but the
flow is asked for.

Beside it stand the shortcuts that people take: independent normals from a table of
means and standard deviations, one multivariate normal, and leaving A out.

The data are those of Efron, Hastie, Johnstone and Tibshirani (2004), Least Angle Regression, as
bundled with scikit-learn.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.reparam import TransformReparam
from torch import Tensor

from pyro_stad.demo.closed_form import NormalInverseGamma
from pyro_stad.density import FitSettings, FlowPrior, fit, load

__all__ = ["run_demo"]

_SHORTCUTS = ("multivariate normal", "independent normals")
_ROUTES = ("x-space", "auxiliary form")


@dataclass(frozen=True)
class _Halves:
    """Design matrices with an intercept column, and standardised responses, in float64."""

    design: tuple[Tensor, Tensor]
    response: tuple[Tensor, Tensor]
    names: tuple[str, ...]


def load_halves() -> _Halves:
    """Return the study, split at random (with a fixed seed) into halves."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn: pip install 'pyro-stad[demo]'") from error
    study = load_diabetes()
    x = torch.tensor(study.data)
    x = (x - x.mean(0)) / x.std(0)
    y = torch.tensor(study.target)
    y = (y - y.mean()) / y.std()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    a, b = order[: len(x) // 2], order[len(x) // 2 :]
    names = (*study.feature_names, "intercept", "log_sigma")
    return _Halves((design[a], design[b]), (y[a], y[b]), names)


def run_demo(
    out: str | os.PathLike[str],
    *,
    draws: int = 10_000,
    budget: str | FitSettings = "standard",
    warmup: int = 200,
    samples: int = 800,
    chains: int = 2,
    workers: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the demonstration; write ``summary.json``, ``figure.png`` and the prior into ``out``.

    Arguments:
        out: folder, made if need be.
        draws: exact draws of A's posterior, the samples that the prior is learned from.
        budget: of the fit.
        warmup, samples, chains: of NUTS, for each prior and route.
        workers: processes; chains are spread over them.
        seed: of everything.
        progress: whether to show bars.

    Returns:
        The summary, as written.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    halves, seconds = load_halves(), {}
    (x_a, x_b), (y_a, y_b) = halves.design, halves.response
    weak = NormalInverseGamma.weak(x_a.shape[1])
    of_a = weak.update(x_a, y_a)
    truth, ignoring = of_a.update(x_b, y_b), weak.update(x_b, y_b)
    posterior_a = of_a.sample(draws, torch.Generator().manual_seed(seed))

    started = time.monotonic()
    prior = fit(posterior_a, budget=budget, seed=seed, progress=progress)
    prior.save(folder / "prior.safetensors")
    seconds["fit"] = time.monotonic() - started

    started = time.monotonic()
    jobs = [
        (str(folder), name, seed + chain, warmup, samples)
        for name in (*_ROUTES, *_SHORTCUTS)
        for chain in range(chains)
    ]
    _save_moments(folder, posterior_a)
    results = _run_jobs(jobs, workers)
    seconds["nuts, all routes"] = time.monotonic() - started
    summary = _summarise(results, truth, ignoring, halves.names, prior, seconds)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")

    from pyro_stad.demo.figure import draw

    chained = {n: np.stack([r["draws"] for r in results if r["name"] == n]) for n in _ROUTES}
    draw(folder / "figure.png", summary, chained, truth, of_a, ignoring)
    return summary


def _save_moments(folder: Path, posterior: dict[str, Tensor]) -> None:
    """Keep what the shortcuts know of A: means and covariance."""
    values = torch.cat([posterior["coefficients"], posterior["log_sigma"][:, None]], dim=1)
    np.savez(folder / "moments.npz", mean=values.mean(0), covariance=torch.cov(values.mT))


def _run_jobs(jobs: list[tuple[Any, ...]], workers: int) -> list[dict[str, Any]]:
    if workers <= 1:
        return [_run_chain(job) for job in jobs]
    # Spawned, not forked: torch's thread pool does not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_run_chain, jobs))


def _run_chain(job: tuple[str, str, int, int, int]) -> dict[str, Any]:
    """Run one chain of NUTS on half B; return draws and diagnostics."""
    folder, name, seed, warmup, samples = job
    torch.set_num_threads(1)
    prior = _prior(Path(folder), name)
    halves = load_halves()
    design, response = (part[1].float() for part in (halves.design, halves.response))
    model = _model(prior, design, response)
    if name == "auxiliary form":
        model = poutine.reparam(model, config={"theta": TransformReparam()})
    pyro.set_rng_seed(seed)
    started = time.monotonic()
    kernel = NUTS(
        model,
        full_mass=True,
        jit_compile=True,
        ignore_jit_warnings=True,
        init_strategy=init_to_sample,
    )
    mcmc = MCMC(kernel, samples, warmup, disable_progbar=True)
    mcmc.run()
    drawn = mcmc.get_samples()
    theta = drawn["theta"] if "theta" in drawn else _push(prior, drawn["theta_base"])
    return {
        "name": name,
        "draws": theta.numpy(),
        "divergences": len(mcmc.diagnostics()["divergences"]["chain 0"]),
        "seconds": time.monotonic() - started,
        "network_calls": _network_calls(prior, name),
    }


def _push(prior: FlowPrior, noise: Tensor) -> Tensor:
    for transform in prior.transforms:
        noise = transform(noise)
    return noise


def _prior(folder: Path, name: str) -> Any:
    if name in _ROUTES:
        return load(folder / "prior.safetensors")
    stored = np.load(folder / "moments.npz")
    mean, covariance = (torch.tensor(stored[k]).float() for k in ("mean", "covariance"))
    if name == "multivariate normal":
        return dist.MultivariateNormal(mean, covariance)
    return dist.Normal(mean, torch.diagonal(covariance).sqrt()).to_event(1)


def _network_calls(prior: Any, name: str) -> int | None:
    """Return the sequential network calls per evaluation of the prior: 0 for a normal."""
    if name not in _ROUTES:
        return 0
    likelihood = prior.likelihood
    solved = name == "auxiliary form"
    return (likelihood.solver if solved else likelihood).sequential_calls()


def _model(prior: Any, design: Tensor, response: Tensor) -> Callable[[], None]:
    def model() -> None:
        theta = pyro.sample("theta", prior)
        mean = design @ theta[:-1]
        pyro.sample("y", dist.Normal(mean, theta[-1].exp()).to_event(1), obs=response)

    return model


def _summarise(
    results: list[dict[str, Any]],
    truth: NormalInverseGamma,
    ignoring: NormalInverseGamma,
    names: tuple[str, ...],
    prior: FlowPrior,
    seconds: dict[str, float],
) -> dict[str, Any]:
    import arviz

    mean, sd = (part.numpy() for part in truth.moments())
    answers = {}
    for name in (*_ROUTES, *_SHORTCUTS):
        runs = [r for r in results if r["name"] == name]
        chains = np.stack([r["draws"] for r in runs]).astype(np.float64)
        table = arviz.summary(
            arviz.from_dict(posterior={"theta": chains}), kind="diagnostics", round_to="none"
        )
        answers[name] = {
            **_errors(chains.mean((0, 1)), chains.std((0, 1), ddof=1), mean, sd),
            "r_hat": float(table["r_hat"].max()),
            "ess_bulk": float(table["ess_bulk"].min()),
            "divergences": sum(r["divergences"] for r in runs),
            "seconds_per_chain": float(np.mean([r["seconds"] for r in runs])),
            "sequential_network_calls_per_evaluation": runs[0]["network_calls"],
        }
    mean_alone, sd_alone = (part.numpy() for part in ignoring.moments())
    answers["ignoring A"] = _errors(mean_alone, sd_alone, mean, sd)
    return {
        "parameters": list(names),
        "truth": {"mean": mean.tolist(), "sd": sd.tolist()},
        "answers": answers,
        "seconds": seconds,
        "fit": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }


def _errors(
    mean: np.ndarray, sd: np.ndarray, true_mean: np.ndarray, true_sd: np.ndarray
) -> dict[str, Any]:
    """Return errors of means in posterior sds, and relative errors of sds."""
    shift, ratio = (mean - true_mean) / true_sd, sd / true_sd - 1
    return {
        "mean_error": shift.tolist(),
        "sd_error": ratio.tolist(),
        "worst_mean_error": float(np.abs(shift).max()),
        "worst_sd_error": float(np.abs(ratio).max()),
    }
