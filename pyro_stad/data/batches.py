"""Minibatches: weighted draws with replacement, and stratified times."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Batches", "stratified", "split"]


class Batches:
    """Draws rows of a sample, in proportion to weights if there are any.

    Arguments:
        values: sample with shape ``(N, D)``.
        weights: non-negative weights with shape ``(N,)``, of any scale; None means equal.
    """

    def __init__(self, values: Tensor, weights: Tensor | None = None) -> None:
        self.values = values
        self._cumulative = None
        if weights is not None:
            # Float64: the cumulative sum of a million float32 weights has steps of zero.
            cumulative = weights.double().cumsum(0)
            self._cumulative = cumulative / cumulative[-1]

    def __len__(self) -> int:
        return self.values.shape[0]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` rows, shape ``(count, D)``."""
        device = self.values.device
        if self._cumulative is None:
            index = torch.randint(len(self), (count,), generator=generator, device=device)
        else:
            uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
            index = torch.searchsorted(self._cumulative, uniform, right=True)
            index = index.clamp_max(len(self) - 1)
        return self.values[index]


def stratified(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return ``count`` numbers in (0, 1), one in each of ``count`` equal intervals."""
    jitter = torch.rand(count, generator=generator, dtype=like.dtype, device=like.device)
    return (torch.arange(count, dtype=like.dtype, device=like.device) + jitter) / count


def split(
    values: Tensor, weights: Tensor | None, fraction: float, generator: torch.Generator
) -> tuple[Batches, Batches]:
    """Split a sample at random into a training and a validation part.

    Arguments:
        values: sample with shape ``(N, D)``.
        weights: weights with shape ``(N,)`` or None.
        fraction: share of rows for validation, in (0, 1); at least one row goes to each part.
        generator: source of randomness.
    """
    count = min(max(1, round(fraction * len(values))), len(values) - 1)
    order = torch.randperm(len(values), generator=generator, device=values.device)
    held, kept = order[:count], order[count:]
    pick = (lambda index: None) if weights is None else (lambda index: weights[index])
    return Batches(values[kept], pick(kept)), Batches(values[held], pick(held))
