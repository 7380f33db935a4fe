r"""Weights of rows: of any scale, as numbers or as logarithms, and what they are worth.

Weights matter up to a factor, and nested samplers hand them out over hundreds of orders of
magnitude. They are divided by the largest before anything is summed or squared, so that no scale
overflows or vanishes; what is then lost to underflow weighs nothing. The effective sample size of
Kish, :math:`(\sum w)^2 / \sum w^2`, is the number of equal weights with the same variance of a
mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_stad._weights import effective_size
from pyro_stad.data.numbers import to_float64

__all__ = ["check_weights"]


def check_weights(weights: Any, log_weights: Any, count: int, *, least: int) -> Tensor | None:
    """Return the weights with the largest of them one, shape ``(N,)``; None if all are equal.

    Arguments:
        weights: non-negative weights, or None.
        log_weights: their logarithms, up to a constant, or None; minus infinity is no weight.
        count: number of rows N.
        least: least effective sample size.

    Raises:
        ValueError: for both, for a wrong shape, for weights that are negative, not finite, all
            zero, or concentrated on too few rows.
    """
    if weights is None and log_weights is None:
        return None
    if weights is not None and log_weights is not None:
        raise ValueError("pass `weights` or `log_weights`, not both")
    argument = "`weights`" if log_weights is None else "`log_weights`"
    values = to_float64(weights if log_weights is None else log_weights, argument)
    if values.shape != (count,):
        raise ValueError(f"{argument} must have shape ({count},); got {tuple(values.shape)}")
    scaled = _scaled(values) if log_weights is None else _scaled_exp(values)
    effective = effective_size(scaled).item()
    if effective < least:
        raise ValueError(
            f"{argument} leave an effective sample size of {effective:.0f}; at least "
            f"{least} is needed"
        )
    return None if (scaled == 1).all() else scaled


def _scaled(values: Tensor) -> Tensor:
    if (values < 0).any():
        raise ValueError(
            f"`weights` must be non-negative; {int((values < 0).sum())} are negative. If they are "
            "logarithms, pass them as `log_weights`"
        )
    largest = values.max()
    if not torch.isfinite(values).all() or largest <= 0:
        raise ValueError("`weights` must be finite, non-negative and not all zero")
    return values / largest


def _scaled_exp(values: Tensor) -> Tensor:
    largest = values.max()
    if not torch.isfinite(largest):
        raise ValueError(
            "`log_weights` must be numbers or minus infinity, and not all of them that; the "
            f"largest is {largest.item()}"
        )
    return (values - largest).exp()
