"""A model run once for many draws, in a plate to the left of its own, if it broadcasts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_stad.model.replayed import BY_DRAW, Replay, read_sites
from pyro_stad.model.sites import in_plate, sampled

__all__ = ["agree", "attempt", "together"]


def together(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Replay,
    draws: Mapping[str, Tensor],
) -> Replay:
    """Run the model once, in a plate of all draws to the left of its own.

    Raises:
        ValueError: where a site is not of the shape that it has for one draw.
        RuntimeError, IndexError, TypeError: whatever a model raises that does not broadcast.
    """
    count = len(next(iter(draws.values())))

    plated = in_plate(model, args, kwargs, count, known.depth)
    with torch.no_grad(), pyro.validation_enabled(False), _Set(draws, known.depth):
        trace = poutine.trace(plated).get_trace()
        trace.compute_log_prob()
    found = read_sites(trace, draws, {})
    each = (_by_draw(site["log_prob"], count).sum(-1) for site in sampled(trace))
    lp = functools.reduce(operator.add, each)
    shaped: dict[str, Any] = {
        name: {
            key: _of_shape(value, count, getattr(known, name)[key].shape[1:])
            for key, value in getattr(found, name).items()
        }
        for name in BY_DRAW
    }
    return replace(found, lp=lp, depth=known.depth, **shaped)


class _Set(Messenger):
    """Sets latent sites to draws, whose batches are made as deep as the model's deepest."""

    def __init__(self, draws: Mapping[str, Tensor], depth: int) -> None:
        super().__init__()
        self.draws, self.depth = draws, depth

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.draws:
            value = self.draws[msg["name"]]
            missing = self.depth + 1 + len(msg["fn"].event_shape) - value.ndim
            msg["value"] = value.reshape(len(value), *[1] * missing, *value.shape[1:])
            msg["is_observed"] = msg["done"] = True


def _by_draw(value: Tensor, count: int) -> Tensor:
    """Return what a site says of all draws, ``(N, ...)``: of one that knows of none, N times."""
    if value.ndim and len(value) == count:
        return value.reshape(count, -1)
    raise ValueError(f"a site has shape {tuple(value.shape)}, expected {count} draws in front")


def _of_shape(value: Tensor, count: int, shape: torch.Size) -> Tensor:
    """Return values of all draws, each of the shape of one; what no draw changes is the same."""
    if value.shape == shape:
        return value.expand(count, *shape)
    return _by_draw(value, count).reshape(count, *shape)


def attempt(run: Callable[[Mapping[str, Tensor]], Replay], draws: Mapping[str, Tensor]) -> Any:
    """Return the replay of many draws at once; None for a model that can't be run so."""
    try:
        return run(draws)
    except Exception:  # A model raises what it likes.
        return None


def agree(found: Replay, alone: Replay, which: list[int]) -> bool:
    """Whether draws say at once what ``which`` of them say alone."""
    pairs = [(found.lp[which], alone.lp)]
    for name in BY_DRAW:
        ours, theirs = getattr(found, name), getattr(alone, name)
        if ours.keys() != theirs.keys():
            return False
        pairs += [(ours[key][which], theirs[key]) for key in theirs]
    return all(
        one.shape == other.shape
        and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for one, other in pairs
    )
