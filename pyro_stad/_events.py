"""Events of any shape: sums over all of their dimensions, and numbers that stand beside them.

A batch of points has shape ``(B, *event_shape)``; a time, an angle or a gate has shape ``(B,)``, or
``()`` for one that all share.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["beside", "event_sum"]


def event_sum(x: Tensor) -> Tensor:
    """Return the sums over events of points ``(B, *event_shape)``: ``(B,)``."""
    return x.flatten(1).sum(-1)


def beside(numbers: Tensor, x: Tensor) -> Tensor:
    """Return numbers, shape ``()`` or ``batch_shape``, so that they multiply points.

    Arguments:
        numbers: one for each point, or one for all.
        x: the points, ``batch_shape + event_shape``.
    """
    return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))
