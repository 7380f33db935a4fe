"""Some of the samples that a prior was fitted to, kept with it: what it knows, without the flow.

A flow fills the gaps between samples as it likes. What a posterior owes to samples, and what to the
flow, only the samples can tell: reweighted by a likelihood, they give its evidence without any
density (:mod:`pyro_stad.evidence.support`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad.data.batches import Batches

__all__ = ["Reference"]

_MOST_ROWS, _MOST_NUMBERS = 10_000, 200_000


@dataclass(frozen=True, eq=False)
class Reference:
    """Samples of the law that a flow has learned.

    Attributes:
        rows: whitened samples, as often as their weights say, with shape ``(M, D)``.
        effective: independent samples that they are worth, at most M.
    """

    rows: Tensor
    effective: float

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or not len(self.rows):
            raise ValueError(
                f"`rows` of a reference must have shape (M, D); got {tuple(self.rows.shape)}"
            )
        if not (math.isfinite(self.effective) and 0 < self.effective <= len(self.rows)):
            raise ValueError(
                f"`effective` of a reference must lie in (0, {len(self.rows)}]; "
                f"got {self.effective!r}"
            )

    @staticmethod
    def of(samples: Batches, effective: float, generator: torch.Generator) -> Reference:
        """Choose from whitened ``samples``, which are worth ``effective`` independent ones."""
        most = max(1, min(_MOST_ROWS, _MOST_NUMBERS // samples.values.shape[1]))
        rows = samples.subset(most, generator)
        if len(rows) < len(samples):
            # Chance has chosen among samples that chance has made.
            effective = 1 / (1 / effective + 1 / len(rows))
        return Reference(rows, min(effective, float(len(rows))))

    def to(self, target: Any) -> Reference:
        """Return the same samples on another device or in another dtype."""
        return Reference(self.rows.to(target), self.effective)
