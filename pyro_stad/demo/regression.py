r"""The second part: the diabetes study, where a normal serves as well as a learned prior.

Patients in two halves. The posterior of half A, of the coefficients and the logarithm of sigma in a
linear regression, is drawn exactly, learned as a prior, and updated with half B. With two hundred
patients it is so near to normal that a multivariate normal of the same draws does as well, at a
fraction of the price. The truth is the closed-form posterior of all patients.

The data are those of Efron, Hastie, Johnstone and Tibshirani (2004), Least Angle Regression, as
bundled with scikit-learn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_stad.demo.closed_form import NormalInverseGamma
from pyro_stad.demo.sampling import describe, errors, jobs_for, run_chains
from pyro_stad.demo.settings import DemoSettings
from pyro_stad.evidence import log_evidence
from pyro_stad.fitting import fit

__all__ = ["Halves", "load_halves", "run_regression"]


@dataclass(frozen=True)
class Halves:
    """Design matrices with an intercept column, and standardised responses, in float64."""

    design: tuple[Tensor, Tensor]
    response: tuple[Tensor, Tensor]
    names: tuple[str, ...]


@cache
def load_halves() -> Halves:
    """Return the study, split at random (with a fixed seed) into halves.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
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
    return Halves((design[a], design[b]), (y[a], y[b]), names)


def run_regression(folder: Path, settings: DemoSettings) -> dict[str, Any]:
    """Run the second part; write its prior into ``folder`` and return its summary."""
    halves, seconds = load_halves(), {}
    (x_a, x_b), (y_a, y_b) = halves.design, halves.response
    weak = NormalInverseGamma.weak(x_a.shape[1])
    of_a = weak.update(x_a, y_a)
    truth, alone = of_a.update(x_b, y_b).moments(), weak.update(x_b, y_b).moments()
    posterior = of_a.sample(settings.draws, torch.Generator().manual_seed(settings.seed))
    values = torch.cat([posterior["coefficients"], posterior["log_sigma"][:, None]], dim=1).float()

    started = time.monotonic()
    prior = fit(
        values,
        names=halves.names,
        budget=settings.regression_budget,
        members=0,  # a brief part: what it shows needs no error of learning
        seed=settings.seed,
        progress=settings.progress,
    )
    prior.save(folder / "regression.safetensors")
    seconds["fit"] = time.monotonic() - started

    started = time.monotonic()
    normal = dist.MultivariateNormal(values.mean(0), torch.cov(values.mT))
    jobs = [
        *jobs_for("learned prior, x-space", update, prior, **settings.of_chains(auxiliary=False)),
        *jobs_for("multivariate normal", update, normal, **settings.of_chains(auxiliary=False)),
    ]
    found = run_chains(jobs, settings.workers)
    seconds["nuts"] = time.monotonic() - started
    answers = {name: describe(chains, truth) for name, chains in found.items()}
    answers["ignoring A"] = errors(*alone, truth)

    started = time.monotonic()
    evidence = log_evidence(update, prior, **settings.of_evidence())
    seconds["evidence"] = time.monotonic() - started
    return {
        "parameters": list(halves.names),
        "truth": {"mean": truth[0].tolist(), "sd": truth[1].tolist()},
        "answers": answers,
        "evidence": {
            "truth": of_a.log_marginal(x_b, y_b),
            "log_z": evidence.log_z,
            "log_z_err": evidence.log_z_err,
            "method": evidence.method,
            "warnings": list(evidence.warnings),
        },
        "seconds": seconds,
        "fit": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }


def update(prior: dist.TorchDistribution) -> None:
    """Model: half B, with a prior of coefficients and log sigma that knows A."""
    theta = pyro.sample("theta", prior)
    halves = load_halves()
    design, response = halves.design[1].to(theta), halves.response[1].to(theta)
    mean = (design @ theta[..., :-1, None])[..., 0]
    pyro.sample("y", dist.Normal(mean, theta[..., -1:].exp()).to_event(1), obs=response)
