"""Minibatches: weighted draws with replacement, stratified times, and balanced noise."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Batches", "balanced_noise", "split", "stratified"]


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

    def subset(self, count: int, generator: torch.Generator) -> Tensor:
        """Return at most ``count`` rows, none of them twice if all weigh the same."""
        if self._cumulative is not None:
            return self.draw(min(count, len(self)), generator)
        order = torch.randperm(len(self), generator=generator, device=self.values.device)
        return self.values[order[:count]]


def stratified(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return ``count`` numbers in (0, 1), one in each of ``count`` equal intervals."""
    jitter = torch.rand(count, generator=generator, dtype=like.dtype, device=like.device)
    return (torch.arange(count, dtype=like.dtype, device=like.device) + jitter) / count


def balanced_noise(
    count: int, frame: int, features: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    """Return standard normal noise in frames, shape ``(2, count, frame, features)``.

    The vectors of a frame are orthogonal, and the second half is the first one negated; each
    vector by itself is standard normal. What is odd in the noise cancels in a pair, and a quadratic
    form, averaged over a full frame, is nearly its trace.

    Arguments:
        count: number of frames.
        frame: vectors of a frame, at most ``features``.
        features: dimension D.
        generator: source of randomness.
        like: a tensor of the dtype and device wanted.
    """
    shape = (count, frame, features)
    noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    if frame > 1:
        # Lengths of independent normal vectors do not depend on their directions.
        directions = torch.linalg.qr(noise.mT).Q.mT
        noise = directions * noise.norm(dim=-1, keepdim=True)
    return torch.stack([noise, -noise])


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
