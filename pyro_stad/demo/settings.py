"""How large the demonstration is: one record, for both of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro_stad.fitting import FitSettings

__all__ = ["DemoSettings"]


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of everything in the demonstration.

    Attributes:
        draws: exact draws of A's posterior, the samples that a prior is learned from.
        budget: of the fit to the enzyme's ridge.
        regression_budget: of the fit to the regression, whose posterior is nearly normal.
        warmup, samples, chains: of NUTS, for each prior and route.
        particles: of tempered Monte Carlo, in each of four runs of an evidence.
        workers: processes; chains are spread over them.
        seed: of everything.
        progress: whether to show bars.
    """

    draws: int = 20_000
    budget: str | FitSettings = "standard"
    regression_budget: str | FitSettings = "quick"
    warmup: int = 200
    samples: int = 800
    chains: int = 2
    particles: int = 1000
    workers: int = 2
    seed: int = 0
    progress: bool = True

    def of_chains(self, *, auxiliary: bool) -> dict[str, Any]:
        """Return what a chain is told."""
        names = ("chains", "warmup", "samples", "seed")
        return {**{name: getattr(self, name) for name in names}, "auxiliary": auxiliary}

    def of_evidence(self) -> dict[str, Any]:
        """Return what ``log_evidence`` is told."""
        # With a small budget an evidence may be refused; the demonstration goes on, and shows why.
        options = {"particles": self.particles, "seed": self.seed, "progress": self.progress}
        return options | {"allow_extrapolation": True}
