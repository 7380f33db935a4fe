"""Streams of random numbers: one seed of the user, and a stream of its own for every purpose.

A stream is the hash of the seed and of the name of what it is for. Sums such as ``1000 * seed + k``
give neighbouring seeds common streams, and overflow where seeds are large; a hash does neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["forked", "generator", "signs", "stream"]


def stream(seed: int, name: str) -> int:
    """Return a seed of 64 bits for the purpose ``name``; ``seed`` is any integer."""
    digest = hashlib.sha256(f"{int(seed)} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a source of randomness for the purpose ``name``."""
    return torch.Generator(device).manual_seed(stream(seed, name))


def signs(shape: Sequence[int], source: torch.Generator, like: Tensor) -> Tensor:
    """Return random signs, +1 and -1, drawn on the device of ``source``, like ``like``."""
    ones = torch.randint(0, 2, tuple(shape), generator=source, device=source.device)
    return (2 * ones - 1).to(like)


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """Let code that knows but the global generator draw from a seed; put it back afterwards.

    That of the CPU: ``torch.manual_seed`` would seed those of all GPUs too, and leave them so.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
