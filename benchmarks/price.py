"""Claim: what a change costs: the same samples fitted and evaluated by two commits, side by side.

``--before`` is a checkout of the older commit. Each commit runs in processes of its own, which take
turns, on one thread: a fit, then value and gradient of log_prob at one point (what a leapfrog of
NUTS asks for) and at a thousand, medians of many calls. Ratios, not seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table

# At full size by hand: it needs the checkout of another commit.
RUNS = {
    "smoke": ("--before . --budget tiny --samples 'banana, D = 2' --turns 1",),
}

_ROWS = 10_000
_HERE = Path(__file__).resolve().parent.parent


def samples(name: str) -> torch.Tensor:
    """Return samples that need no map of a coordinate, and such that do."""
    source = torch.Generator().manual_seed(0)
    size = 8 if name.endswith("8") else 2
    x = torch.randn(_ROWS, size, generator=source)
    if name.startswith("normal"):
        side = 2.0 * (torch.rand(_ROWS, 1, generator=source) < 0.5) - 1
        return 0.6 * x + 0.8 * side
    if name.startswith("Student t"):
        chi = torch.randn(_ROWS, size, 3, generator=source).square().mean(-1)
        return x / chi.sqrt()
    x[:, 1] = 0.6 * x[:, 0].square() + 0.3 * x[:, 1]
    return x


SAMPLES = (
    "normals, D = 2",
    "normals, D = 8",
    "banana, D = 2",
    "Student t, D = 2",
    "Student t, D = 8",
)


def fit_here(name: str, budget: str, file: str, members: str = "") -> dict[str, Any]:
    """Fit with the package of this process, and keep the prior.

    An older package may not know of ``members``: it is not told, unless there is a number.
    """
    import pyro_stad

    warnings.simplefilter("ignore")
    options: dict[str, Any] = {"members": int(members)} if members else {}
    started = time.perf_counter()
    prior = pyro_stad.fit(samples(name), budget=budget, progress=False, **options)
    seconds = time.perf_counter() - started
    prior.save(file)
    return {"fit": seconds, "way": repr(prior.likelihood)}


def time_here(name: str, file: str) -> dict[str, Any]:
    """Time a prior with the package of this process."""
    import pyro_stad

    prior, x = pyro_stad.load(file), samples(name)

    def gradient(rows: torch.Tensor) -> None:
        point = rows.clone().requires_grad_()
        prior.log_prob(point).sum().backward()

    found = median_seconds({"one": lambda: gradient(x[0])}, repeats=300)
    return found | median_seconds({"thousand": lambda: gradient(x[:1000])}, repeats=10)


def child(checkout: Path, *task: str) -> dict[str, Any]:
    """Run this file as a process with the package of ``checkout``."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    name: str, budget: str, turns: int, checkouts: dict[str, Path], folder: Path
) -> dict[str, Any]:
    row: dict[str, Any] = {"samples": name}
    for side, checkout in checkouts.items():
        row[side] = child(checkout, "fit", name, budget, str(folder / f"{side}.safetensors"))
    alone = child(checkouts["after"], "fit", name, budget, str(folder / "alone.safetensors"), "0")
    row["after"]["alone"] = alone["fit"]
    times: dict[str, list[dict[str, float]]] = {side: [] for side in checkouts}
    for _ in range(turns):
        for side, checkout in checkouts.items():
            times[side].append(child(checkout, "time", name, str(folder / f"{side}.safetensors")))
    for side, found in times.items():
        row[side] |= {key: statistics.median(t[key] for t in found) for key in ("one", "thousand")}
    row["ratio"] = {
        key: row["after"][key] / row["before"][key] for key in ("fit", "one", "thousand")
    }
    # Without the members, whose error of learning the older commit may not have.
    row["ratio"]["alone"] = row["after"]["alone"] / row["before"]["fit"]
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__, "price")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--samples", nargs="*", default=list(SAMPLES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--child", help="what a process of one commit is to do")
    options = parser.parse_args()
    if options.child:
        torch.set_num_threads(1)
        what, *rest = json.loads(options.child)
        print(json.dumps((fit_here if what == "fit" else time_here)(*rest)))
        return
    if options.before is None:
        parser.error("--before is the checkout of the older commit")
    torch.set_num_threads(1)
    checkouts = {"before": options.before.resolve(), "after": _HERE}
    git = ["git", "-C", str(checkouts["before"]), "rev-parse", "HEAD"]
    before = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    made = provenance(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            compare(name, options.budget, options.turns, checkouts, Path(folder))
            for name in options.samples
        ]
    write(
        options.name, {"provenance": made, "before": before, "budget": options.budget, "rows": rows}
    )


@section(180)
def page() -> str:
    result, keys = read("price"), ("alone", "fit", "one", "thousand")
    header = [
        "samples",
        "fit without members",
        "fit",
        "value and gradient, one point",
        "a thousand",
    ]
    rows = [
        [row["samples"], *(f"{row['ratio'][key]:.2f}" for key in keys)] for row in result["rows"]
    ]
    return (
        "## What margins, gate, alarms and members cost\n\n"
        f"Time over that of commit {result['before'][:10]}, which had none of them. Budget "
        f"`{result['budget']}`.\n\n{table(header, rows)}\n\n"
        f"{source('price', result)}\n"
    )


if __name__ == "__main__":
    main()
