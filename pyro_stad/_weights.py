"""Weights given by their logarithms: means, effective sizes, Pareto smoothing; once for all.

References:
    Kong (1992), A Note on Importance Sampling Using Standardized Weights; Vehtari, Simpson, Gelman,
    Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_stad._arviz import psislw

__all__ = ["effective_size", "log_mean_exp", "smoothed"]


def log_mean_exp(values: Tensor, dim: int = -1) -> Tensor:
    """Return the logarithm of the mean of ``exp(values)`` along a dimension."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def effective_size(log_weights: Tensor, dim: int = -1) -> Tensor:
    """Return how many draws of equal weight weighted ones are worth along a dimension: Kish's."""
    return (2 * torch.logsumexp(log_weights, dim) - torch.logsumexp(2 * log_weights, dim)).exp()


def smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pareto-smoothed log-weights, and the shapes of their tails.

    From a shape of 0.7 on, a mean with them can't be believed.

    Arguments:
        log_weights: shape ``(..., N)``.

    Returns:
        Log-weights of the same shape, whose weights sum to one, and shapes ``(...)``; on the CPU,
        in float64.
    """
    smooth, shape = psislw(log_weights.double().cpu().numpy())
    return torch.as_tensor(smooth), torch.as_tensor(shape, dtype=torch.float64)
