r"""Quantiles that SciPy knows, as functions that torch differentiates and maps.

SciPy computes on arrays of the CPU. Quantiles are smooth functions of noise and shapes, one number
at a time, so that derivatives are central differences, of the fourth order in float64: to nine
digits, which is more than any step of a sampler asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["SHAPED", "shaped_quantile"]

_STEP = 1e-3
# Offsets, in steps, and what they count, of a derivative.
_STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))

Tails = tuple[Callable[..., Any], Callable[..., Any]]

# From the lower tail, and from the upper one.
SHAPED: dict[str, Tails] = {
    "gamma": (special.gammaincinv, special.gammainccinv),
    "beta": (special.betaincinv, special.betainccinv),
    "student": (special.stdtrit, lambda df, tail: -special.stdtrit(df, tail)),
}


def shaped_quantile(law: str, u: Tensor, *shapes: Tensor) -> Tensor:
    """Return the quantiles of a law of ``SHAPED`` at noise ``u``, with ``shapes``, in float64."""
    return _Quantile.apply(law, *torch.broadcast_tensors(u.double(), *(s.double() for s in shapes)))


class _Quantile(torch.autograd.Function):
    """One number from one number of noise and its shapes."""

    @staticmethod
    def forward(law: str, u: Tensor, *shapes: Tensor) -> Tensor:
        found = _from_nearer_tail(law, *(t.detach().cpu().numpy() for t in (u, *shapes)))
        return torch.as_tensor(found).to(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.law = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        numbers = [t.detach().cpu().numpy() for t in ctx.saved_tensors]
        found = [
            gradient * torch.as_tensor(_derivative(ctx.law, numbers, place)).to(gradient)
            if ctx.needs_input_grad[1 + place]
            else None
            for place in range(len(numbers))
        ]
        return None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Any, law: str, *numbers: Tensor) -> tuple[Tensor, int]:
        # All numbers have one shape, so that a mapped dimension goes first and nothing else moves.
        moved = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(numbers, in_dims[1:])
        ]
        return _Quantile.apply(law, *moved), 0


def _from_nearer_tail(law: str, u: Any, *shapes: Any) -> Any:
    lower, upper = SHAPED[law]
    tail = special.ndtr(-np.abs(u))
    return np.where(u < 0, lower(*shapes, tail), upper(*shapes, tail))


def _derivative(law: str, numbers: list[Any], place: int) -> Any:
    """Return the derivative by noise, or by the logarithm of a shape, over that shape."""
    value = numbers[place]
    total = 0.0
    for offset, share in _STENCIL:
        # Noise is of size one, and a shape above zero, of any size.
        near = value + offset * _STEP if place == 0 else value * np.exp(offset * _STEP)
        # Infinite minus infinite, at an end of the support, is no derivative, and nan.
        with np.errstate(invalid="ignore"):
            total = total + share * _from_nearer_tail(
                law, *numbers[:place], near, *numbers[place + 1 :]
            )
    return total / _STEP if place == 0 else total / (_STEP * value)
