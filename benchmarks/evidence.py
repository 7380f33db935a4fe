"""Claim: evidences are within 0.1 nat of the truth up to D = 20, and their error bars cover.

Problems with known evidence: normals (D = 2, 10, 20, 50), flows whose law is a mixture, observed
linearly (D = 2, 5, 10), a normal mean and precision, and Neal's funnel (D = 2). Every method
that applies, twelve seeds, 1,000 particles, four runs: error, its ratio z to the quoted error, and
calls. A method may refuse; refusals are counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_stad import EvidenceError, log_evidence
from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.evidence import METHODS
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.teacher import GaussianMixtureField
from pyro_stad.teacher.analytic import random_mixture

Problem = tuple[Callable[[Tensor], None], Tensor, float]


def normal(size: int) -> Problem:
    """N(0, I), observed as ones with variance 1/4."""

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.ones(size)
    return model, y, dist.Normal(0.0, 1.25**0.5).log_prob(y).sum().item()


def mixture(size: int) -> Problem:
    """A flow on the exact field of a mixture, two linear combinations observed."""
    parts = random_mixture(size)
    names = tuple(f"x{i}" for i in range(size))
    layout = Layout(names, tuple((name, ()) for name in names))
    field = GaussianMixtureField(OptimalTransport(), *parts)
    prior = FlowPrior(FlowODE(field, Exact(), RK4(16)), torch.zeros(size), torch.eye(size), layout)
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(2, size, generator=generator) / size**0.5

    def model(y: Tensor) -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x @ matrix.mT, 0.5).to_event(1), obs=y)

    y = torch.tensor([0.8, -0.4])
    weights, means, covariances = parts
    noise = 0.25 * torch.eye(2)
    components = MultivariateNormal(means @ matrix.mT, matrix @ covariances @ matrix.mT + noise)
    return model, y, torch.logsumexp(components.log_prob(y) + weights.log(), 0).item()


def mean_and_precision(_: int) -> Problem:
    def model(y: Tensor) -> None:
        precision = pyro.sample("precision", dist.Exponential(torch.tensor(1.0)))
        mean = pyro.sample("mean", dist.Normal(0.0, precision.rsqrt()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)

    y = torch.tensor([0.3, -1.1, 0.7, 1.9])
    n, mean = len(y), y.mean()
    rate = 1 + 0.5 * (y - mean).square().sum() + 0.5 * n * mean**2 / (1 + n)
    log_z = math.lgamma(1 + n / 2) - (1 + n / 2) * rate.log() - 0.5 * math.log(1 + n)
    return model, y, (log_z - 0.5 * n * math.log(2 * math.pi)).item()


def funnel(size: int) -> Problem:
    """A log variance N(0, 9), and normals of that variance, each observed as 1 with variance 1."""

    def model(y: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(0.0, 3.0))
        x = pyro.sample(
            "x", dist.Normal(0.0, (0.5 * t[..., None]).exp().expand(*t.shape, size - 1)).to_event(1)
        )
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = torch.ones(size - 1)
    t = torch.linspace(-40, 40, 400_001)
    spread = (1 + t.exp()).sqrt()
    each = dist.Normal(0.0, spread).log_prob(torch.tensor(1.0))
    whole = dist.Normal(0.0, 3.0).log_prob(t) + (size - 1) * each
    return model, y, (torch.logsumexp(whole, 0) + math.log(80 / 400_000)).item()


PROBLEMS: dict[str, tuple[Callable[[int], Problem], int]] = {
    **{f"normal, D = {d}": (normal, d) for d in (2, 10, 20, 50)},
    **{f"mixture flow, D = {d}": (mixture, d) for d in (2, 5, 10)},
    "mean and precision": (mean_and_precision, 2),
    "funnel, D = 2": (funnel, 2),
    "funnel, D = 10": (funnel, 10),
}


def row(name: str, method: str, seeds: range, particles: int) -> dict[str, Any]:
    make, size = PROBLEMS[name]
    model, y, truth = make(size)
    errors, ratios, calls, refused = [], [], [], 0
    started = time.perf_counter()
    for seed in seeds:
        try:
            found = log_evidence(
                model, y, method=method, particles=particles, seed=seed, progress=False
            )
        except EvidenceError:
            refused += 1
            continue
        errors.append(found.log_z - truth)
        ratios.append(errors[-1] / found.log_z_err)
        calls.append(found.likelihood_calls)
    return {
        "problem": name,
        "method": method,
        "truth": truth,
        "errors": errors,
        "z": ratios,
        "calls": statistics.fmean(calls) if calls else None,
        "refused": refused,
        "seconds": (time.perf_counter() - started) / len(seeds),
    }


def main() -> None:
    parser = arguments(__doc__, "evidence")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=12, help="number of them")
    parser.add_argument("--particles", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    made = provenance(options.seed)
    seeds = range(options.seed, options.seed + options.seeds)
    rows = []
    for name in options.problems:
        for method in METHODS:
            rows.append(row(name, method, seeds, options.particles))
            worst = max(map(abs, rows[-1]["errors"]), default=math.nan)
            print(name, method, f"worst {worst:.3f}", rows[-1]["refused"], "refused", flush=True)
    z = [value for r in rows for value in r["z"]]
    summary = {
        "runs": len(z),
        "within_3": statistics.fmean(abs(value) < 3 for value in z),
        "sd_of_z": statistics.stdev(z) if len(z) > 1 else None,
    }
    print(summary)
    write(options.name, {"provenance": made, "rows": rows, "summary": summary})


if __name__ == "__main__":
    main()
