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

__all__ = ["effective_size", "log_mean_exp", "mean_weight", "smoothed"]

_ALIKE = 0.02


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


def smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return Pareto-smoothed log-weights, and the shapes of their tails.

    From a shape of 0.7 on, a mean with them can't be believed. Weights that are all alike, to
    two percent, have no tail that matters, and a fit to it would say anything: minus infinity.

    Arguments:
        log_weights: shape ``(..., N)``.

    Returns:
        Log-weights of the same shape, whose weights sum to one, and shapes ``(...)``; on the CPU,
        in float64.
    """
    log_weights = log_weights.double().cpu()
    smooth, fitted = psislw(log_weights.numpy())
    weights = torch.softmax(log_weights, -1) * log_weights.shape[-1]
    alike = weights.std(-1) < _ALIKE
    shape = torch.as_tensor(fitted, dtype=torch.float64).masked_fill(alike, -math.inf)
    return torch.as_tensor(smooth), shape
