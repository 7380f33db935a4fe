"""What ``log_prob`` has seen, counted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass
class Counts:
    """Points that ``log_prob`` has seen; shared by a prior and its expansions.

    Attributes:
        points: points in all.
        nonfinite: points given as NaN or infinity, or outside the support; they got -inf.
        failed: points whose solve was not finite; they got -inf.
    """

    points: int = 0
    nonfinite: int = 0
    failed: int = 0
