r"""How far out a point lies: the tail of the noise that a flow makes it from.

Noise of D coordinates has :math:`|z|^2 \sim \chi^2_D`; a point whose noise is in the outermost
thousandth is one of which the network has hardly seen a sample, so that all it says there is
extrapolated.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FLAGGED", "noise_tail"]

FLAGGED = 1e-3


def noise_tail(z: Tensor) -> Tensor:
    """Return the chance, ``(...)``, of a larger norm than that of noise ``z``, ``(..., D)``."""
    half = z.new_tensor(0.5 * z.shape[-1])
    return torch.special.gammaincc(half, 0.5 * z.square().sum(-1))
