"""The divergence in phase space, from one of positions alone.

The velocity in phase space is a turn, which has no divergence, and the field's own along a fixed
direction of each pair; see :mod:`pyro_stad.fields.phase`. So an estimate of the field's divergence
is one here, as exact, as cheap and as distilled as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyro_stad.divergence.base import AbstractDivergence

__all__ = ["Projected"]


class Projected(AbstractDivergence, nn.Module):
    """The divergence of a ``PhaseField``.

    Arguments:
        divergence: of the field that it is made of.
    """

    def __init__(self, divergence: AbstractDivergence) -> None:
        super().__init__()
        self.divergence = divergence
        # What others read is what it is of.
        self.is_exact = divergence.is_exact  # type: ignore[misc]
        self.is_stochastic = divergence.is_stochastic  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Projected({self.divergence!r})"

    def passes(self, features: int) -> int:
        return self.divergence.passes(features // 2)

    def velocity_and_divergence(self, field: Any, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        at = field.projection(t)
        u = field.projected(at, x)
        w, divergence = self.divergence.velocity_and_divergence(field.field, at.angle, u)
        return field.moved(at, x, w), field.stretch(at) * divergence
