"""Minibatches: weighted draws with replacement, stratified times, balanced noise; and the split.

Rows that are neighbours in a chain are alike. Held out at random among training rows they would
only tell how well those are remembered; so of a chain whole stretches are held out, several
autocorrelation times long, and the rows within one such time of them are given up.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pyro_stad._events import beside

__all__ = ["Batches", "balanced_noise", "between", "split", "stratified"]

_TIMES, _MOST_STRETCHES = 5, 50


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

    def with_values(self, values: Tensor) -> Batches:
        """Return other values ``(N, ...)`` with the same weights."""
        new = copy.copy(self)
        new.values = values
        return new

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def shares(self) -> Tensor:
        """The share of the weight that each row has, shape ``(N,)``, in float64."""
        if self._cumulative is None:
            like = self.values
            return torch.full((len(self),), 1 / len(self), dtype=torch.float64, device=like.device)
        return self._cumulative.diff(prepend=self._cumulative.new_zeros(1))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` rows, shape ``(count, D)``."""
        return self.values[self._drawn(count, generator)]

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which rows are drawn, shape ``(count,)``."""
        device = self.values.device
        if self._cumulative is None:
            return torch.randint(len(self), (count,), generator=generator, device=device)
        uniform = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
        index = torch.searchsorted(self._cumulative, uniform, right=True)
        return index.clamp_max(len(self) - 1)

    def subset(self, count: int, generator: torch.Generator) -> Tensor:
        """Return at most ``count`` rows, each as often as its weight says, to the next integer."""
        device, count = self.values.device, min(count, len(self))
        order = torch.randperm(len(self), generator=generator, device=device)
        if self._cumulative is None:
            return self.values[order[:count]]
        # One comb over the weights: independent draws would take a third of the rows twice.
        share = self.shares[order].cumsum(0)
        jitter = torch.rand((), generator=generator, dtype=torch.float64, device=device)
        comb = (torch.arange(count, dtype=torch.float64, device=device) + jitter) / count
        place = torch.searchsorted(share, comb * share[-1], right=True).clamp_max(len(self) - 1)
        return self.values[order[place]]


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
    values: Tensor,
    weights: Tensor | None,
    fraction: float,
    generator: torch.Generator,
    *,
    chains: Tensor | None = None,
    time: float = 1.0,
) -> tuple[Batches, Batches]:
    """Split a sample into a training and a validation part.

    Independent rows are split at random; with chains, or an autocorrelation time, stretches of rows
    are held out.

    Arguments:
        values: distinct rows with shape ``(N, D)``, in the order of the chain.
        weights: weights with shape ``(N,)`` or None.
        fraction: share of rows for validation, in (0, 1); at least one row goes to each part.
        generator: source of randomness.
        chains: number of the chain of each row, shape ``(N,)``, or None if it is not known.
        time: autocorrelation time in rows.
    """
    count = min(max(1, round(fraction * len(values))), len(values) - 1)
    if chains is None and time <= 1:
        order = torch.randperm(len(values), generator=generator, device=values.device)
        held, kept = order[:count], order[count:]
    else:
        order = torch.arange(len(values)) if chains is None else chains.argsort(stable=True)
        order = order.to(values.device)
        here, near = _stretches(len(values), count, time, generator)
        held, kept = order[here], order[~near]
    pick = (lambda index: None) if weights is None else (lambda index: weights[index])
    return Batches(values[kept], pick(kept)), Batches(values[held], pick(held))


def _stretches(
    rows: int, count: int, time: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return which of ``rows`` are held out, ``count`` of them, and which are so or too near."""
    stretches = min(max(1, int(count / (_TIMES * time))), _MOST_STRETCHES)
    # Never more given up than held out, however slow the chain.
    gap = min(math.ceil(time), count // (2 * stretches))
    device = generator.device
    here = torch.zeros(rows, dtype=torch.bool, device=device)
    near = here.clone()
    shift = torch.rand(stretches, generator=generator, device=device).tolist()
    for index, share in enumerate(shift):
        # One in each of equal parts of the whole: all times, and all chains, have their share.
        low, high = index * rows // stretches, (index + 1) * rows // stretches
        length = (index + 1) * count // stretches - index * count // stretches
        start = low + int(share * (high - low - length + 1))
        here[start : start + length] = True
        near[max(0, start - gap) : start + length + gap] = True
    return here, near


def between(data: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` places on the lines between pairs of data ``(B, D)``, off their ends."""
    options: dict[str, Any] = {"generator": generator, "device": data.device}
    one, other = (data[torch.randint(len(data), (count,), **options)] for _ in range(2))
    share = torch.rand(count, dtype=data.dtype, **options)
    return torch.lerp(one, other, 0.25 + 0.5 * beside(share, one))
