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
from typing import Any

import pyro
import torch
from common import arguments, provenance, write
from pyro.infer import MCMC, NUTS
from torch import Tensor

from pyro_stad import EvidenceError, log_evidence
from pyro_stad.testing.evidence import PROBLEMS


def chains(model: Any, data: tuple[Tensor, ...], seed: int) -> MCMC:
    """Return a chain of Pyro's NUTS, for the bridge."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, 1000, 500, disable_progbar=True)
    mcmc.run(*data)
    return mcmc


def row(name: str, method: str, seeds: range, particles: int) -> dict[str, Any]:
    make, size = PROBLEMS[name]
    model, data, truth = make(size)
    errors, ratios, calls, refused = [], [], [], 0
    started = time.perf_counter()
    for seed in seeds:
        draws = {"draws": chains(model, data, seed)} if method == "bridge" else {}
        options = {"method": method, "particles": particles, "seed": seed, "progress": False}
        try:
            found = log_evidence(model, *data, **options, **draws)
        except EvidenceError:
            refused += 1
            continue
        errors.append(found.log_z - truth)
        ratios.append(errors[-1] / found.log_z_err)
        calls.append(found.likelihood_calls)
    return {
        "problem": name,
        "method": method,
        "particles": particles,
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
    parser.add_argument("--methods", nargs="+", default=["smc", "importance"])
    parser.add_argument("--particles", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    made = provenance(options.seed)
    seeds = range(options.seed, options.seed + options.seeds)
    rows = []
    for name in options.problems:
        for method in options.methods:
            rows.append(row(name, method, seeds, options.particles))
            worst = max(map(abs, rows[-1]["errors"]), default=math.nan)
            print(name, method, f"worst {worst:.3f}", rows[-1]["refused"], "refused", flush=True)
        write(options.name, {"provenance": made, "rows": rows})
    z = [value for r in rows for value in r["z"]]
    print(f"{len(z)} runs, {statistics.fmean(abs(value) < 3 for value in z):.1%} within 3 errors")


if __name__ == "__main__":
    main()
