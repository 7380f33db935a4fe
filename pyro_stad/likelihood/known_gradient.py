r"""A value with a gradient that is known: both enter a graph as constants.

With [x] a constant equal to x, and a function's value f and gradient s at [x],

.. math:: f + (x - [x]) \cdot s

has the value f, and s for a derivative. So a gradient made by hand goes into a trace, which knows
nothing of a pass back; and a gradient that is not the value's own can take its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_stad._events import event_sum

__all__ = ["with_gradient"]


def with_gradient(x: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """Return ``value``, shape ``(B,)``, whose derivatives by points ``x`` are given.

    Second derivatives are not known. Who asks for them gets the largest number there is, or
    infinity, instead of a zero that could pass for a curvature.

    Arguments:
        x: points with shape ``(B, *event_shape)``, in the graph.
        value, slopes: what was computed at ``x.detach()``, ``(B,)`` and the shape of x.
    """
    nothing = x - x.detach()
    slopes = torch.add(slopes, nothing, alpha=torch.finfo(x.dtype).max)
    return value + event_sum(nothing * slopes)
