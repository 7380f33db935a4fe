"""Walkers that take turns: the chains in a flattened ensemble, found from the rows themselves.

Ensemble samplers hand out flat chains step by step: row 0 of every walker, then row 1 of every
walker. Neighbouring rows are then of different walkers and look independent, while those of one
walker, W rows apart, are alike. So the autocorrelation of the rows is nothing but peaks at W, 2 W
and so on; that of one chain falls from lag one on.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from pyro_stad.data.effective import autocovariance, normal_scores
from pyro_stad.data.samples import Samples

__all__ = ["part_walkers"]

_FEWEST_WALKERS, _SHORTEST = 4, 20
_LEAST, _ERRORS = 0.1, 6  # smallest peak, by itself and in standard errors of shuffled rows


def part_walkers(samples: Samples) -> Samples:
    """Return ``samples`` with a chain for each walker, if their rows are walkers that take turns.

    Samples whose chains are known, or whose weights make the order of rows meaningless, stay as
    they are.
    """
    rows = len(samples.values)
    longest = rows // _SHORTEST
    known = samples.chains is not None or samples.weights is not None
    if known or longest <= _FEWEST_WALKERS:
        return samples
    rho = torch.zeros(longest + 2, dtype=torch.float64)
    for column in samples.values.T:
        covariance = autocovariance(normal_scores(column[None]))[0, : longest + 2]
        rho += covariance / covariance[0] / samples.values.shape[1]
    walkers = int(rho[_FEWEST_WALKERS:-1].argmax()) + _FEWEST_WALKERS
    peak = rho[walkers].item()
    between = max(rho[1:walkers].abs().max().item(), rho[walkers + 1].abs().item())
    if peak < max(_LEAST, _ERRORS / math.sqrt(rows)) or between > peak / 2:
        return samples
    if torch.equal(samples.values[walkers:], samples.values[:-walkers]):
        # A whole table, written several times, has no other rows in its period than the first.
        return samples
    return replace(samples, chains=torch.arange(rows) % walkers)
