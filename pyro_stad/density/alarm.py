r"""How far out a point lies: the tail of the noise that a flow makes it from.

Noise of D coordinates has :math:`|z|^2 \sim \chi^2_D`; a point whose noise is in the outermost
thousandth is one of which the network has hardly seen a sample, so that all it says there is
extrapolated. Of a few hundred samples, it has seen none well before that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_stad._events import event_sum

__all__ = ["FLAGGED", "alarm_level", "noise_tail"]

FLAGGED = 1e-3
# A point is extrapolated where fewer than five samples are expected beyond it; but never the inner
# 95 percent. Measured on a banana of 150 and of 600 samples: this flags half or more of every
# posterior in the hollow, and at most a twelfth of those in the bulk.
_TOO_FEW, _MOST = 5.0, 0.05


def alarm_level(effective: float) -> float:
    """Return the chance of being further out, below which a point counts as extrapolated.

    It is a thousandth, or the share that five of the samples make up, if that is more.

    Arguments:
        effective: number of independent samples that a prior was fitted to.
    """
    return min(max(FLAGGED, _TOO_FEW / effective), _MOST)


def noise_tail(z: Tensor) -> Tensor:
    """Return the chance, ``(B,)``, of a larger norm than that of noise ``z``, ``(B, ...)``."""
    half = z.new_tensor(0.5 * z[0].numel())
    return torch.special.gammaincc(half, 0.5 * event_sum(z.square()))
