"""What every benchmark shares: the mixture, provenance, timing, and one place for results."""

from __future__ import annotations

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
from torch import Tensor

__all__ = ["RESULTS", "mixture", "median_seconds", "provenance", "sample", "write"]

RESULTS = Path(__file__).parent / "results"


def mixture(features: int, components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, means and covariances of a whitened random mixture, in float64.

    Means spread 1.5 times the identity, component factors 0.5 to 1 on the diagonal with 0.15 off
    it, before whitening; one component gives the standard normal.
    """
    g = torch.Generator().manual_seed(seed)
    real = {"generator": g, "dtype": torch.float64}
    weights = torch.softmax(0.5 * torch.randn(components, **real), 0)
    means = 1.5 * torch.randn(components, features, **real)
    factors = 0.15 * torch.randn(components, features, features, **real)
    factors = factors + torch.diag_embed(0.5 + 0.5 * torch.rand(components, features, **real))
    covariances = factors @ factors.mT
    centred = means - weights @ means
    total = torch.einsum("k,kij->ij", weights, covariances)
    total = total + torch.einsum("k,ki,kj->ij", weights, centred, centred)
    whiten = torch.linalg.inv(torch.linalg.cholesky(total))
    return weights, centred @ whiten.mT, whiten @ covariances @ whiten.mT


def sample(parts: tuple[Tensor, Tensor, Tensor], count: int, seed: int) -> Tensor:
    """Draw from a mixture, shape ``(count, D)``, in float64."""
    weights, means, covariances = parts
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(weights, count, replacement=True, generator=g)
    noise = torch.randn(count, means.shape[1], generator=g, dtype=torch.float64)
    factors = torch.linalg.cholesky(covariances)
    return means[which] + torch.einsum("nij,nj->ni", factors[which], noise)


def median_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median wall time of ``run`` after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


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
