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

import numpy as np
import pyro
import torch
from common import arguments, provenance, write
from matplotlib.figure import Figure
from page import DOCS, read, section, source, table
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor

from pyro_stad import EvidenceError, log_evidence
from pyro_stad.testing.evidence import PROBLEMS

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": (
        "",
        "--particles 4000 --problems 'shells, D = 10' 'shells, D = 20' --name evidence_more",
        "--methods bridge "
        "--problems 'normal, D = 2' 'normal, D = 10' 'normal, D = 20' 'mean and precision' "
        "--name evidence_bridge",
        "--methods nested "
        "--seeds 1 "
        "--particles 200 "
        "--problems spike 'normal, D = 2' proportion 'shells, D = 2' "
        "--name evidence_nested",
    ),
    "smoke": ("--problems 'normal, D = 2' --seeds 2 --particles 100",),
}


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


def _coverage(rows: list[dict[str, Any]]) -> str:
    z = [value for row in rows for value in row["z"]]
    within = statistics.fmean(abs(value) < 3 for value in z)
    return (
        f"{len(z)} estimates, {within:.1%} of them within three of their own standard errors; the "
        f"ratio has a standard deviation of {statistics.stdev(z):.2f}"
    )


def draw_reliability(ratios: dict[str, list[float]], *, apart: str) -> None:
    """Draw errors of evidences over their quoted errors, beside the law that they should have.

    Arguments:
        ratios: errors over quoted errors, by problem.
        apart: the problem that is shown in a colour of its own, and left out of the coverage.
    """
    sheet = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = sheet.subplots(1, 2)
    usual = np.concatenate([values for name, values in ratios.items() if name != apart])
    groups, edges = [usual, np.array(ratios[apart])], np.arange(-4, 4.1, 0.5)
    # What is further out is drawn at the ends.
    clipped = [np.clip(group, -3.99, 3.99) for group in groups]
    left.hist(
        clipped,
        edges,
        stacked=True,
        color=["#2b5c9e", "#c0392b"],
        label=[f"{len(usual)} estimates", f"{apart}: SMC is stuck, and says so"],
    )
    z = np.linspace(-4, 4, 200)
    left.plot(z, 0.5 * len(usual) * stats.norm.pdf(z), color="black", label="N(0, 1)")
    left.set(xlabel="error of log Z, over its quoted error", ylabel="estimates", xlim=(-4, 4))
    left.set_ylim(0, 1.35 * left.get_ylim()[1])  # for the legend
    left.legend(frameon=False, fontsize=9, loc="upper left")

    levels = np.linspace(0.005, 0.995, 199)
    held = np.mean(np.abs(usual)[:, None] < stats.norm.ppf(0.5 + levels / 2), axis=0)
    noise = 2 * np.sqrt(levels * (1 - levels) / len(usual))
    right.fill_between(levels, levels - noise, levels + noise, color="#dddddd", label="by chance")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.plot(levels, held, color="#2b5c9e", linewidth=2, label="found")
    right.set(xlabel="probability of an interval", ylabel="share of truths within", xlim=(0, 1))
    right.set(ylim=(0, 1), aspect="equal")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    sheet.savefig(DOCS / "reliability.png", dpi=130)


_EVIDENCES = ("evidence", "evidence_more", "evidence_bridge", "evidence_nested")


@section(230)
def page() -> str:
    results = [read(name) for name in _EVIDENCES]
    measured = [row for result in results for row in result["rows"]]
    order = list(dict.fromkeys(row["problem"] for row in measured))
    measured.sort(key=lambda row: order.index(row["problem"]))
    rows = []
    for row in measured:
        errors = row["errors"]
        rms = math.sqrt(statistics.fmean(e**2 for e in errors)) if errors else math.nan
        rows.append(
            [
                row["problem"],
                row["method"],
                "-" if row["method"] == "bridge" else f"{row.get('particles', 1000):,}",
                f"{row['truth']:.3f}",
                f"{statistics.fmean(errors):+.3f}" if errors else "-",
                f"{rms:.3f}" if errors else "-",
                f"{max(map(abs, errors)):.3f}" if errors else "-",
                f"{max(map(abs, row['z'])):.1f}" if errors else "-",
                str(row["refused"]),
                f"{row['calls']:,.0f}" if errors else "-",
            ]
        )
    header = ["problem", "method", "particles", "log Z", "bias", "root mean square", "worst"]
    header += ["worst z", "refused", "likelihoods"]
    every = _coverage(measured)
    rest = _coverage([row for row in measured if row["problem"] != "spike"])
    sources = " ".join(source("evidence", result) for result in results)
    ratios: dict[str, list[float]] = {}
    for row in measured:
        ratios.setdefault(row["problem"], []).extend(row["z"])
    draw_reliability(ratios, apart="spike")
    return (
        "## Evidence against the truth\n\n"
        "SMC and importance sampling: twelve seeds of four runs each; the bridge: twelve chains of "
        "1,000 draws; nested sampling: one seed of four runs, particles being live points. "
        f"{every}. Without the spike, where SMC says that its particles are stuck: {rest}.\n\n"
        "![Errors of evidences over their quoted errors, and how often intervals hold the truth]"
        f"(reliability.png)\n\n{table(header, rows)}\n\n{sources}\n"
    )


if __name__ == "__main__":
    main()
