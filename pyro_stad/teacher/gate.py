r"""The gate: beyond the cloud of the samples a learned field does nothing.

Where there were no samples, a network says anything, and a distilled divergence adds it up. For
standardised Gaussian data the velocity is zero in the field's own coordinates. So it is multiplied
by a gate :math:`g(s)`, :math:`s = \lVert y\rVert^2`, that is one within the cloud and zero beyond
it, with two continuous derivatives:

.. math:: v = g\, w, \qquad \nabla\cdot v = g\, \nabla\cdot w + 2 g'\, y\cdot w .

Outside, points stay where they are and nothing is integrated; so along every curve, with whatever
divergence, log p is that of the Gaussian plus what was gathered inside, which is bounded: in every
direction the density falls off as a normal law does. Between, :math:`g = 1 - t^3 (10 - 15 t + 6
t^2)` with t the place of s between the squares of the two radii.

Data keep their covariance on the way to noise, so that one pair of radii serves all times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gate", "GateValues"]

# Of a normal cloud in any dimension, a thousandth is further out than the root of D plus 2.3.
_CLEARANCE, _WIDTH = 2.3, 1.5
_SHARE = 0.999
# More samples than tell a quantile of a thousandth apart.
_MOST_ROWS = 1_000_000


class GateValues(NamedTuple):
    """The gate and its first two derivatives by the squared norm, each ``(...)``."""

    value: Tensor
    slope: Tensor
    bend: Tensor


@dataclass(frozen=True)
class Gate:
    """One up to a radius, zero from another on.

    Attributes:
        inner, outer: the radii, in whitened coordinates.
    """

    inner: float
    outer: float

    def __post_init__(self) -> None:
        if not 0 < self.inner < self.outer < math.inf:
            raise ValueError(
                f"a gate's radii must be positive, finite and increase; got {self.inner} and "
                f"{self.outer}"
            )

    @staticmethod
    def around(samples: Tensor) -> Gate:
        """Return the gate about a cloud of whitened samples, shape ``(N, D)``.

        It closes no earlier than a normal cloud would reach, and leaves all but a thousandth of
        the samples alone.
        """
        norms = samples[:_MOST_ROWS].norm(dim=-1).double()
        reach = torch.quantile(norms, _SHARE).item()
        inner = max(math.sqrt(samples.shape[1]) + _CLEARANCE, reach)
        return Gate(inner, inner + _WIDTH)

    def at(self, squared: Tensor) -> GateValues:
        """Return the gate and its derivatives at squared norms ``(...)``."""
        span = self.outer**2 - self.inner**2
        t = ((squared - self.inner**2) / span).clamp(0.0, 1.0)
        rest = t * (1 - t)
        value = 1 - t**3 * (10 - t * (15 - 6 * t))
        return GateValues(value, -30 / span * rest**2, -60 / span**2 * rest * (1 - 2 * t))
