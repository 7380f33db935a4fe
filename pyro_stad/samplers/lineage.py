r"""How far particles that descend from few can be believed: the variance of their evidence.

Between two temperatures whose moves made particles forget where they were, weights :math:`w_i` that
sum to one leave log Z with a variance of :math:`\sum_i w_i^2 - 1/N`. Particles that have not
forgotten are still those that they descend from, as in a mode that no move leaves; so the weights
are those of all descendants of an ancestor, since the last time that particles had forgotten:

.. math:: \sum_a \Big(\sum_{i \text{ from } a} w_i\Big)^2 - \frac1N .

References:
    Chan and Lai (2013), A general theory of particle filters in hidden Markov models; Lee and
    Whiteley (2018), Variance estimation in the particle filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ancestors", "relative_variance"]


def ancestors(like: Tensor) -> Tensor:
    """Return the ancestors of particles ``(..., N)`` that have forgotten: each is its own."""
    own = torch.arange(like.shape[-1], device=like.device)
    return own.expand(like.shape).contiguous()


def relative_variance(share: Tensor, ancestor: Tensor) -> Tensor:
    """Return the variance of log Z by weights ``(B, R, N)`` of descendants: ``(B, R)``."""
    mass = torch.zeros_like(share).scatter_add(-1, ancestor, share)
    return mass.square().sum(-1) - 1 / share.shape[-1]
