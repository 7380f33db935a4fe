"""Weights given by their logarithms: means, effective sizes, Pareto smoothing; once for all.

References:
    Kong (1992), A Note on Importance Sampling Using Standardized Weights; Vehtari, Simpson, Gelman,
    Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._arviz import psislw

__all__ = [
    "WORST_SHAPE",
    "Smoothed",
    "believable",
    "effective_size",
    "log_mean_exp",
    "mean_weight",
    "smoothed",
]

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


class Smoothed(NamedTuple):
    """Pareto-smoothed weights, and what is known of those that they were.

    Attributes:
        log_weights: shape ``(..., N)``; the weights sum to one.
        khat: Pareto shapes of their tails, ``(...)``.
        effective: effective sizes before they were smoothed, ``(...)``.
    """

    log_weights: Tensor
    khat: Tensor
    effective: Tensor

    @property
    def believable(self) -> Tensor:
        """Whether means with them can be believed, ``(...)``; see ``believable``."""
        return believable(self.khat, self.effective, self.log_weights.shape[-1])


def believable(khat: Any, effective: Any, count: int) -> Any:
    """Whether a mean with weights can be believed, by the shape of their tail.

    Not from a shape of 0.7 on; but where weights are nearly alike, no tail has a say, and a fit to
    the largest of them finds any shape: 2.2 once, where 990 of 1,000 draws were left.

    Arguments:
        khat, effective: Pareto shape and effective size, numbers or tensors of them.
        count: number of weights.
    """
    return (khat < WORST_SHAPE) | (effective >= _ALIKE * count)


def smoothed(log_weights: Tensor) -> Smoothed:
    """Return Pareto-smoothed log-weights; those that are nearly alike are left as they are.

    Arguments:
        log_weights: shape ``(..., N)``.

    Returns:
        The weights and what is known of them, on the CPU, in float64.
    """
    log_weights = log_weights.double().cpu()
    smooth, shape = (torch.as_tensor(found) for found in psislw(log_weights.numpy()))
    plain = torch.log_softmax(log_weights, -1)
    effective = effective_size(plain.exp())
    alike = effective >= _ALIKE * log_weights.shape[-1]
    return Smoothed(torch.where(alike[..., None], plain, smooth), shape.double(), effective)
