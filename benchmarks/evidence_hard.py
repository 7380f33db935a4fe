"""Claim: where evidences are hard, ours is right by moves with gradients, or says that it is stuck.

Two normal modes of equal mass, one twenty times as wide as the other; Rosenbrock's valley in 10 and
20 dimensions; a spike. Tempered SMC with small moves (4,000 particles) and with Hamiltonian ones
(1,000), three seeds, four runs each; nautilus and dynesty (500 live points, one seed) beside them,
stopped after two minutes.
A mode that no particle sees is in nobody's evidence, and nothing tells: the narrow one in five
dimensions has a ten-millionth of the prior about it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from importlib.metadata import version
from typing import Any

import torch
from common import arguments, provenance, write
from evidence_cost import by_dynesty
from page import read, section, source, table

from pyro_stad import EvidenceError, log_evidence
from pyro_stad.evidence import SMC, Nested
from pyro_stad.samplers import Hamiltonian
from pyro_stad.testing.evidence import PROBLEMS, KnownEvidence

RUNS = {
    "long": ("",),
    "smoke": ("--problems spike --methods smc --seeds 1",),
}  # fmt: skip
_NAMES = (
    "narrow and wide, D = 2", "narrow and wide, D = 5", "Rosenbrock, D = 10", "Rosenbrock, D = 20",
    "spike",
)  # fmt: skip
METHODS: dict[str, Any] = {
    "smc": SMC(particles=4000),
    "smc, gradients": SMC(particles=1000, kernel=Hamiltonian()),
    "nautilus": Nested(particles=500, repeats=2),
    "dynesty": None,
}
_LIMIT = 120.0
_STUCK = ("still remembered", "refused", "standard errors apart")


def estimate(problem: KnownEvidence, method: str, seed: int) -> dict[str, Any]:
    """Return log Z, its quoted error, likelihoods, and whether it is said to be in doubt."""
    if method == "dynesty":
        log_z, error, calls = by_dynesty(problem, seed)
        return {"log_z": log_z, "quoted": error, "calls": calls, "said": False}
    try:
        found = log_evidence(
            problem.model, *problem.data, method=METHODS[method], seed=seed, progress=False
        )
    except EvidenceError as refusal:
        return {"refused": str(refusal), "said": True}
    said = any(text in told for told in found.warnings for text in _STUCK)
    return {
        "log_z": found.log_z, "quoted": found.log_z_err, "calls": found.likelihood_calls,
        "said": said,
    }  # fmt: skip


def within(limit: float, problem: KnownEvidence, method: str, seed: int) -> dict[str, Any]:
    """Return an estimate by a process of its own, which is stopped after so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe()
    process = context.Process(target=lambda: its.send(estimate(problem, method, seed)))
    process.start()
    if ours.poll(limit):
        return ours.recv()
    process.kill()
    return {"refused": f"not done in {limit:.0f} seconds", "said": True}


def row(name: str, method: str, seeds: range) -> dict[str, Any]:
    make, size = PROBLEMS[name]
    problem = make(size)
    started = time.perf_counter()
    found = [within(_LIMIT, problem, method, seed) for seed in seeds]
    seconds = (time.perf_counter() - started) / len(seeds)
    known = {"problem": name, "method": method, "truth": problem.log_z}
    return {**known, "found": found, "seconds": seconds}


def main() -> None:
    parser = arguments(__doc__, "evidence_hard")
    parser.add_argument("--problems", nargs="+", default=list(_NAMES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="number of them, of SMC")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    made = provenance(options.seed)
    peers = {name: version(name) for name in ("nautilus-sampler", "dynesty")}
    rows = []
    for name in options.problems:
        for method in options.methods:
            count = options.seeds if method.startswith("smc") else 1
            rows.append(row(name, method, range(options.seed, options.seed + count)))
            print(rows[-1], flush=True)
            # Written as it goes: nested sampling takes minutes.
            write(options.name, {"provenance": made, "peers": peers, "rows": rows})


@section(241)
def page() -> str:
    result = read("evidence_hard")
    cells = []
    for row in result["rows"]:
        found = [each for each in row["found"] if "log_z" in each]
        errors = [each["log_z"] - row["truth"] for each in found]
        cells.append([
            row["problem"], row["method"], f"{row['truth']:.3f}",
            ", ".join(f"{error:+.2f}" for error in errors) or "-",
            ", ".join(f"{each['quoted']:.2f}" for each in found) or "-",
            f"{sum(each['said'] for each in row['found'])} of {len(row['found'])}",
            f"{statistics.fmean(each['calls'] for each in found):,.0f}" if found else "-",
        ])  # fmt: skip
    header = ["problem", "method", "log Z", "errors", "quoted", "in doubt", "likelihoods"]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        "## Evidences that are hard\n\n"
        "SMC with 4,000 particles and small moves, or 1,000 and moves by gradients, three seeds; "
        f"nested sampling with 500 live points, one seed; none longer than {_LIMIT:.0f} seconds. "
        f"{versions}. *In doubt*: runs that said that particles were stuck, or that two estimates "
        "disagree, or refused, or did not come to an end. The narrow mode "
        "in five dimensions is seen by nobody, and nobody says so.\n\n"
        f"{table(header, cells)}\n\n{source('evidence_hard', result)}\n"
    )


if __name__ == "__main__":
    main()
