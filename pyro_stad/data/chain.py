"""A chain of another sampler, as ``read_chain`` found it: samples with all that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from torch import Tensor

from pyro_stad._weights import effective_size
from pyro_stad.data.bounds import Periodic

__all__ = ["Chain"]


@dataclass(frozen=True)
class Chain:
    """Samples of parameters, and what the file said of them.

    Attributes:
        values: float64 with shape ``(N, D)``, burn-in left out.
        names: names of the D parameters.
        weights: float64 with shape ``(N,)``, or None for equal ones; not normalised.
        labels: how to write a parameter in a figure, by name, where the file says so.
        bounds: bounds of parameters by name, ``(low, high)`` or ``Periodic(low, high)``.
        chains: number of the chain of each row, shape ``(N,)``, or None if it is not known.
        burn_in: rows left out at the beginning, of all chains together.
        left_out: columns that were not taken, and why: sampler columns, derived parameters.
        source: where the samples came from.
        files: the files that were read.
    """

    values: Tensor
    names: tuple[str, ...]
    weights: Tensor | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float | None, float | None] | Periodic] = field(default_factory=dict)
    chains: Tensor | None = None
    burn_in: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        parts = [f"{len(self.values)} x {len(self.names)}: {', '.join(self.names)}"]
        if self.weights is not None:
            effective = effective_size(self.weights / self.weights.max()).item()
            parts.append(f"weighted, worth {effective:.0f} equal rows")
        if self.chains is not None:
            parts.append(f"{len(self.chains.unique())} chains")
        if self.bounds:
            parts.append(f"bounds of {', '.join(self.bounds)}")
        # Where there are chains there was a beginning, and its end is not in the file.
        if self.burn_in or self.chains is not None:
            rows = f"{self.burn_in} rows of" if self.burn_in else "no"
            parts.append(f"{rows} burn-in left out")
        if self.left_out:
            reasons = sorted(self.left_out.items(), key=lambda item: item[1])
            grouped = groupby(reasons, key=lambda item: item[1])
            listed = (f"{', '.join(n for n, _ in group)} ({why})" for why, group in grouped)
            parts.append(f"left out {', '.join(listed)}")
        return f"Chain({'; '.join(parts)})"
