r"""Ranks of truths among draws of their posteriors: simulation-based calibration.

A truth is drawn from the prior, data from the model given it, and L draws from what is said to be
the posterior. If it is, the rank of the truth among them is uniform on 0, ..., L, whatever the
model. With n of them, the empirical distribution of ranks differs from a uniform one by no more
than

.. math:: \sqrt{\log(2 K / \alpha) / (2 n)}

in any of K coordinates, but for a chance of :math:`\alpha`.

References:
    Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian Inference Algorithms
    with Simulation-Based Calibration; Massart (1990), The Tight Constant in the
    Dvoretzky-Kiefer-Wolfowitz Inequality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ranks"]


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of truths among draws.

    Attributes:
        ranks: ``(n, K)``, each from 0 to ``draws``.
        draws: of each posterior.
        names: of the coordinates.
    """

    ranks: Tensor
    draws: int
    names: tuple[str, ...]

    def deviations(self) -> Tensor:
        """Return how far the distribution of ranks is from uniform, by coordinate: ``(K,)``."""
        steps = torch.arange(self.draws + 1, device=self.ranks.device)
        below = (self.ranks[..., None] <= steps).double().mean(0)
        return (below - (steps + 1) / (self.draws + 1)).abs().amax(-1)

    def band(self, chance: float = 0.01) -> float:
        """Return the deviation that no coordinate passes, but for so small a chance."""
        count, size = self.ranks.shape
        return math.sqrt(math.log(2 * size / chance) / (2 * count))

    @property
    def is_uniform(self) -> bool:
        """Whether all coordinates are within the 99 percent band."""
        return bool((self.deviations() <= self.band()).all())

    def summary(self) -> str:
        """Return it as a line of text."""
        found = self.deviations()
        worst = int(found.argmax())
        verdict = "within" if self.is_uniform else "OUTSIDE"
        return (
            f"{len(self.ranks)} truths among {self.draws} draws: ranks are {verdict} the 99 % band "
            f"of {self.band():.3f}; farthest from uniform {self.names[worst]}, {found[worst]:.3f}"
        )
