"""Priors that several benchmarks look at, fitted once for each commit."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from common import provenance
from torch import Tensor

import pyro_stad

__all__ = ["fitted"]

_KEPT = Path(__file__).parent / ".priors"


def fitted(x: Tensor, bounds: Any, budget: str, seed: int) -> pyro_stad.FlowPrior:
    """Return the prior of samples ``x``, from a file if this commit has fitted it before."""

    def fit() -> pyro_stad.FlowPrior:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pyro_stad.fit(x, bounds=bounds, budget=budget, seed=seed, progress=False)

    made = provenance(seed)
    if not made["clean"]:
        return fit()
    what = (made["commit"], bounds, budget, seed, x.shape)
    key = hashlib.sha256(repr(what).encode() + x.numpy().tobytes()).hexdigest()[:20]
    file = _KEPT / f"{key}.safetensors"
    if not file.exists():
        _KEPT.mkdir(exist_ok=True)
        fit().save(file)
    return pyro_stad.load(file)
