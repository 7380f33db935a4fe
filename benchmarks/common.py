"""What every benchmark shares: provenance, timing, and one place for results."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["RESULTS", "arguments", "median_seconds", "provenance", "write"]

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser that knows the seed and the name of the result file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default=name, help="name of the result file")
    return parser


def median_seconds(runs: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Return the median wall time of each of ``runs``, after one warm-up each.

    Runs take turns, so that a machine that slows down slows all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_run) for name, of_run in times.items()}


def provenance(seed: int) -> dict[str, Any]:
    """Return where, when and with what a result was made; the tree must be clean to be quoted."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    # Results of other benchmarks are written while this one runs.
    dirty = [line for line in changes.stdout.splitlines() if "benchmarks/results" not in line]
    return {
        "commit": commit.stdout.strip(),
        "clean": not dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": _processor(),
        "versions": {
            name: version(name) for name in ("torch", "torchdiffeq", "pyro-ppl", "pyro-stad")
        },
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    lines = information.read_text().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def write(name: str, result: dict[str, Any]) -> None:
    """Write ``result`` as ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
