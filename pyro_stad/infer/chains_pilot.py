"""Which form of a model chains move farther in, for the network calls that it takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_stad.samplers import AbstractKernel, Ensemble

__all__ = ["best", "piloted"]

_CHAINS, _WARM_UP, _LENGTH = 16, (15,), 15  # chains of each half, moves before, and counted


def piloted(
    log_density: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    price: int,
    kernel: AbstractKernel,
    source: torch.Generator,
) -> float:
    """Return how far chains move in a form, for a network call.

    Arguments:
        log_density: of objects in this form, as of ``Ensemble``.
        start: where chains start, ``(B, 2, C / 2, K)``.
        price: of a density in network calls.
        kernel: how they move.
        source: of random numbers.

    Returns:
        The squared jump of the worst coordinate over its variance, a mean over the objects.
    """
    few = start[:, :, :_CHAINS]
    chains = Ensemble(log_density, few, kernel, source)
    chains.warm_up(_WARM_UP)
    before, jumps = chains.counts[4].sum(), []
    for _ in range(_LENGTH):
        x = chains.x
        chains.step()
        jumps.append((chains.x - x).square().mean(1) / x.var(1))
    # Where nothing moves, or there is no variance, it is not far.
    moved = torch.stack(jumps).sum(0).nan_to_num(nan=0.0, posinf=0.0).amin(1).mean().item()
    calls = (chains.counts[4].sum() - before).item() / few[..., 0].numel()
    return moved / (calls * price)


def best(pilot: dict[str, float]) -> str:
    """Return the form that a pilot prefers."""
    return max(pilot, key=lambda name: pilot[name])
