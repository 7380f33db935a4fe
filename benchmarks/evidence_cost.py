"""Claim: where a likelihood is cheap, our evidences take far less time than nested sampling's.

Known evidences in the same latent form, the same likelihood, one thread: tempered SMC, importance
sampling from its particles (both with four runs of 1,000 particles), nautilus (through
``method="nested"``, two runs of 500 live points), and dynesty (500 live points, its defaults).
What counts is the price of accuracy: likelihoods times squared error, and seconds times squared
error, as what a root mean square error of 0.1 nat would cost. Where a likelihood takes longer than
nautilus needs to think about it, milliseconds, its likelihoods are what to look at: often fewer.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import dynesty
import numpy as np
import torch
from common import arguments, provenance, write
from page import read, section, source, table

from pyro_stad import log_evidence
from pyro_stad.model import LatentProblem
from pyro_stad.testing.evidence import PROBLEMS, KnownEvidence

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
}  # fmt: skip

Estimate = tuple[float, float, int]


def ours(method: str, **options: Any) -> Callable[[KnownEvidence, int], Estimate]:
    def estimate(problem: KnownEvidence, seed: int) -> Estimate:
        found = log_evidence(
            problem.model, *problem.data, method=method, seed=seed, progress=False, **options
        )
        return found.log_z, found.log_z_err, found.likelihood_calls

    return estimate


def by_dynesty(problem: KnownEvidence, seed: int) -> Estimate:
    latent = LatentProblem(problem.model, *problem.data)

    def noise(cube: np.ndarray) -> np.ndarray:
        return torch.special.ndtri(torch.as_tensor(cube).clamp(1e-15, 1 - 1e-15)).numpy()

    def log_likelihood(u: np.ndarray) -> float:
        with torch.no_grad():
            return latent.log_likelihood(torch.as_tensor(u)[None].to(latent.like)).item()

    sampler = dynesty.NestedSampler(
        log_likelihood, noise, latent.size, nlive=500, rstate=np.random.default_rng(seed)
    )
    sampler.run_nested(print_progress=False)
    found = sampler.results
    return float(found.logz[-1]), float(found.logzerr[-1]), int(np.sum(found.ncall))


METHODS: dict[str, Callable[[KnownEvidence, int], Estimate]] = {
    "smc": ours("smc"),
    "importance": ours("importance"),
    "nautilus": ours("nested", particles=500, repeats=2),
    "dynesty": by_dynesty,
}


def row(name: str, method: str, seeds: range) -> dict[str, Any]:
    make, size = PROBLEMS[name]
    problem, errors, quoted, calls = make(size), [], [], []
    started = time.perf_counter()
    for seed in seeds:
        log_z, error, spent = METHODS[method](problem, seed)
        errors.append(log_z - problem.log_z)
        quoted.append(error)
        calls.append(spent)
    seconds = (time.perf_counter() - started) / len(seeds)
    # Known from few seeds: not less than what the method says of itself.
    rms = max(math.sqrt(statistics.fmean(e**2 for e in errors)), statistics.fmean(quoted))
    price = (rms / 0.1) ** 2
    return {
        "problem": name,
        "method": method,
        "errors": errors,
        "quoted": quoted,
        "calls": statistics.fmean(calls),
        "seconds": seconds,
        "calls_to_a_tenth": price * statistics.fmean(calls),
        "seconds_to_a_tenth": price * seconds,
    }


def main() -> None:
    parser = arguments(__doc__, "evidence_cost")
    parser.add_argument(
        "--problems", nargs="+", default=["normal, D = 10", "shells, D = 5", "funnel, D = 10"]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    made = provenance(options.seed)
    seeds = range(options.seed, options.seed + options.seeds)
    peers = {name: version(name) for name in ("nautilus-sampler", "dynesty")}
    rows = []
    for name in options.problems:
        for method in options.methods:
            rows.append(row(name, method, seeds))
            print(rows[-1], flush=True)
            # Written as it goes: nested sampling takes minutes.
            write(options.name, {"provenance": made, "peers": peers, "rows": rows})


def _least(rows: list[dict[str, Any]], problem: str) -> float:
    return min(row["seconds_to_a_tenth"] for row in rows if row["problem"] == problem)


@section(240)
def page() -> str:
    result = read("evidence_cost")
    rows = [
        [
            row["problem"],
            row["method"],
            f"{math.sqrt(statistics.fmean(e**2 for e in row['errors'])):.3f}",
            f"{statistics.fmean(row['quoted']):.3f}",
            f"{row['calls']:,.0f}",
            f"{row['calls_to_a_tenth']:,.0f}",
            f"{row['seconds_to_a_tenth'] / _least(result['rows'], row['problem']):.1f}",
        ]
        for row in result["rows"]
    ]
    header = ["problem", "method", "error, root mean square", "quoted error", "likelihoods"]
    header += ["likelihoods to 0.1 nat", "time to 0.1 nat, over the quickest"]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        "## What an evidence costs\n\n"
        "The same likelihood in the same noise, one thread; the price of a root mean square error "
        f"of 0.1 nat grows with the square of the error. {versions}.\n\n"
        f"{table(header, rows)}\n\n{source('evidence_cost', result)}\n"
    )


if __name__ == "__main__":
    main()
