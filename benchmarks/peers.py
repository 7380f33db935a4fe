"""Zuko's neural spline flow as a peer: trained for a time, with or without a context."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import zuko
from torch import Tensor

__all__ = ["zuko_flow"]


def zuko_flow(
    x: Tensor,
    seconds: float,
    seed: int,
    kind: Callable[..., Any] = zuko.flows.NSF,
    context: Tensor | None = None,
) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """Train a flow of zuko's for a time; return its log-density, and what it did.

    Arguments:
        x: whitened rows, of which the first tenth is held out; the best weights there are kept.
        seconds: how long.
        seed: of everything random.
        kind: of flow.
        context: standardised rows that the law depends on; the log-density takes them after x.
    """
    torch.manual_seed(seed)
    sizes = (x.shape[1],) if context is None else (x.shape[1], context.shape[1])
    flow = kind(*sizes, transforms=5, hidden_features=(128, 128))
    held = len(x) // 10

    def loss(rows: Any) -> Tensor:
        law = flow() if context is None else flow(context[rows])
        return -law.log_prob(x[rows]).mean()

    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=1e-4)
    best, best_loss, steps, started = copy.deepcopy(flow), math.inf, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * elapsed / seconds))
        value = loss(torch.randint(held, len(x), (256,)))
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimiser.step()
        steps += 1
        if steps % 100 == 0:
            with torch.no_grad():
                found = loss(slice(None, held)).item()
            if found < best_loss:
                best, best_loss = copy.deepcopy(flow), found
    did = {"steps": steps, "validation": best_loss}
    if context is None:
        return lambda y: best().log_prob(y), did
    return lambda y, given: best(given).log_prob(y), did
