"""Weights given by their logarithms: means, effective sizes, Pareto smoothing; once for all.

References:
    Kong (1992), A Note on Importance Sampling Using Standardized Weights; Vehtari, Simpson, Gelman,
    Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_stad._arviz import psislw

__all__ = ["WORST_SHAPE", "believable", "effective_size", "log_mean_exp", "mean_weight", "smoothed"]

WORST_SHAPE = 0.7
_ALIKE = 0.95


def log_mean_exp(values: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the mean of ``exp(values)`` along a dimension."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def mean_weight(log_weights: Tensor) -> tuple[float, float]:
    """Return the logarithm of the mean of weights ``(N,)``, and the mean's relative error.

    In float64: the mass of a density that went wrong may be beyond every number.
    """
    log_weights = log_weights.double()
    log_mean = log_mean_exp(log_weights)
    relative = (log_weights - log_mean).exp().std() / math.sqrt(len(log_weights))
    return log_mean.item(), relative.item()


def effective_size(weights: Tensor, dim: int = -1) -> Tensor:
    """Return how many draws of equal weight weighted ones are worth along a dimension: Kish's.

    Arguments:
        weights: not negative, of any sum that their squares have room for.
    """
    return weights.sum(dim).square() / weights.square().sum(dim)


def believable(khat: Any, effective: Any, count: int) -> Any:
    """Whether a mean with weights can be believed, by the shape of their tail.

    Not from a shape of 0.7 on; but where weights are nearly alike, no tail has a say, and a fit to
    the largest of them finds any shape: 2.2 once, where 990 of 1,000 draws were left.

    Arguments:
        khat, effective: Pareto shape and effective size, numbers or tensors of them.
        count: number of weights.
    """
    return (khat < WORST_SHAPE) | (effective >= _ALIKE * count)


def smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pareto-smoothed log-weights, and the shapes of their tails; see ``believable``.

    Arguments:
        log_weights: shape ``(..., N)``.

    Returns:
        Log-weights of the same shape, whose weights sum to one, and shapes ``(...)``; on the CPU,
        in float64.
    """
    smooth, shape = psislw(log_weights.double().cpu().numpy())
    return torch.as_tensor(smooth), torch.as_tensor(shape, dtype=torch.float64)
