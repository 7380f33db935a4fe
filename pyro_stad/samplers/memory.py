"""What chains remember of where they were."""

from __future__ import annotations

from torch import Tensor

__all__ = ["memory"]


def memory(start: Tensor, z: Tensor) -> Tensor:
    """Return the correlation of every coordinate with its start.

    Arguments:
        start: where the chains of each half or run were, ``(B, R, N, D)``.
        z: where they are.

    Returns:
        Correlations over the chains, ``(B, R, D)``.
    """
    start, now = start - start.mean(2, keepdim=True), z - z.mean(2, keepdim=True)
    return (start * now).sum(2) / start.square().sum(2).clamp_min(1e-30)
