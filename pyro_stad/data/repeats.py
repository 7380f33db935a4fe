"""Repeated rows: each of them once, with the weight of all.

A Metropolis chain repeats a row for every proposal that it refused, and resampled particles are
repeated as they come. Kept as rows they would lie on both sides of a split, and the validation
would call memory a success.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pyro_stad.data.samples import Samples

__all__ = ["merge_repeats"]


def merge_repeats(samples: Samples) -> Samples:
    """Return the rows, each once, in the order in which they come first."""
    values, weights, chains = samples.values, samples.weights, samples.chains
    distinct, place = torch.unique(values, dim=0, return_inverse=True)
    count = len(distinct)
    if count == len(values):
        return samples
    first = torch.full((count,), len(values)).scatter_reduce(
        0, place, torch.arange(len(values)), "amin"
    )
    shares = torch.ones(len(values), dtype=torch.float64) if weights is None else weights
    summed = torch.zeros(count, dtype=torch.float64).index_add(0, place, shares)
    order = first.argsort()
    first, summed = first[order], summed[order]
    # All repeated equally often: equal weights, and the fit is that of the rows as they are.
    equal = bool((summed == summed[0]).all())
    return replace(
        samples,
        values=values[first],
        weights=None if equal else summed / summed.max(),
        chains=None if chains is None else chains[first],
    )
