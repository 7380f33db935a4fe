r"""What a chain is worth: the effective sample size, and the time over which it forgets.

Neighbours in a chain are alike. With :math:`\rho_t` the autocorrelation at lag t, N rows have the
variance of a mean that :math:`N / \tau` independent ones have,
:math:`\tau = 1 + 2 \sum_t \rho_t`. The estimate is the one of Stan and ArviZ: normal scores of
the ranks, chains cut in halves, the autocovariance of all halves against the variance of the whole
(so that chains that disagree are worth little), and Geyer's initial monotone sequence to end the
sum. The worst coordinate counts. It is computed here, since a fit should not import ArviZ; the
tests hold it against ArviZ's.

Rows count for no more than there are distinct ones, with weights by Kish's formula. A table that is
sorted by a column has lost the order of its chain; it says nothing, and counts as shuffled.

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
    localization: an improved R-hat; Geyer (1992), Practical Markov Chain Monte Carlo.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad._weights import effective_size
from pyro_stad.data.samples import Samples
from pyro_stad.errors import SampleWarning

__all__ = [
    "autocovariance",
    "correlation_time",
    "correlation_times",
    "effective_rows",
    "ess",
    "normal_scores",
    "warn_if_few",
]

_FEWEST_OF_HALF = 3  # draws of half a chain that make a pair of lags
_SHORTEST = 20  # draws of a chain that has an autocorrelation
_FEWEST, _NATS = 100, 0.1
_SHUFFLES, _MOST_SHUFFLED, _ALWAYS = 39, 1000, 1.2


def effective_rows(samples: Samples, distinct: Samples, time: float) -> float:
    """Return how many independent rows of equal weight samples are worth, at the most N.

    Arguments:
        samples: in the order of their chains.
        distinct: the same with each row once.
        time: autocorrelation time of ``samples``, in rows.
    """
    return min(_by_weight(distinct), _by_weight(samples) / time)


def _by_weight(samples: Samples) -> float:
    if samples.weights is None:
        return float(len(samples.values))
    return effective_size(samples.weights).item()


def correlation_time(samples: Samples) -> float:
    """Return the autocorrelation time of the worst coordinate in rows, at least one.

    One also where the order says nothing: of weighted rows without chains, such as nested sampling
    makes, and of sorted ones.
    """
    values = samples.values
    ordered = bool(((values.diff(dim=0) >= 0).all(0) | (values.diff(dim=0) <= 0).all(0)).any())
    if ordered or (samples.weights is not None and samples.chains is None):
        return 1.0
    draws = _by_chain(values, samples.chains)
    columns = [normal_scores(draws[..., column]) for column in range(draws.shape[2])]
    worst = max(correlation_times(column[..., None]).item() for column in columns)
    return worst if worst > _ALWAYS and worst > _by_chance(columns) else 1.0


def warn_if_few(effective: float, features: int) -> None:
    r"""Warn if rows are too few for any density in ``features`` dimensions.

    A normal law has :math:`p = D (D + 3) / 2` parameters, and fitted to n rows it is off by
    :math:`p / 2n` nat in the mean; what has more to learn is off by more.

    Warns:
        SampleWarning: if that alone is more than a tenth of a nat, or there are not a hundred.
    """
    needed = max(_FEWEST, features * (features + 3) / (4 * _NATS))
    if effective < needed:
        warnings.warn(
            f"`samples` are worth {effective:.0f} independent rows (repeats, weights and "
            f"autocorrelation taken off); {features} parameters want {needed:.0f} at the least. "
            "The density is in doubt: run the chain for longer",
            SampleWarning,
            stacklevel=4,
        )


def ess(draws: Tensor) -> float:
    """Return the effective sample size of draws ``(chains, draws)`` of one coordinate."""
    return draws.numel() / correlation_times(normal_scores(draws)[..., None]).item()


def correlation_times(scores: Tensor) -> Tensor:
    """Return the autocorrelation times of scores ``(chains, draws, K)``, shape ``(K,)``.

    Of chains of fewer than six draws, as thinning makes them of hundreds, nothing is known: one.
    """
    half = scores.shape[1] // 2
    if half < _FEWEST_OF_HALF:
        return scores.new_ones(scores.shape[-1])
    halves = torch.cat([scores[:, :half], scores[:, -half:]])
    covariance = autocovariance(halves)
    within = covariance[:, 0].mean(0) * half / (half - 1)
    total = within * (half - 1) / half + halves.mean(1).var(0)
    rho = 1 - (within - covariance.mean(0)) / total
    rho[0] = 1.0
    pairs = rho[: (half - 1) // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    negative = pairs < 0
    negative[-1] = True
    # The sum ends before the first pair that is negative, or the last; until there it must not
    # rise. Of the pair that ends it, a first member above zero still counts.
    end = negative.int().argmax(0, keepdim=True)
    kept = torch.arange(len(pairs))[:, None] < end
    whole = torch.where(kept, pairs.cummin(0).values, 0.0).sum(0)
    return (-1 + 2 * whole + rho.gather(0, 2 * end)[0].clamp_min(0)).clamp_min(
        1 / math.log10(halves[..., 0].numel())
    )


def normal_scores(draws: Tensor) -> Tensor:
    """Return normal quantiles of the ranks; what is equal has equal ranks."""
    _, place, counts = torch.unique(draws, return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - 0.5 * (counts - 1)
    return torch.special.ndtri((ranks[place] - 0.375) / (draws.numel() + 0.25))


def autocovariance(draws: Tensor) -> Tensor:
    """Return the autocovariances of draws ``(chains, draws, ...)`` at all lags, same shape."""
    count = draws.shape[1]
    centred = draws - draws.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * count, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), n=2 * count, dim=1)[:, :count] / count


def _by_chain(values: Tensor, chains: Tensor | None) -> Tensor:
    """Return rows as ``(chains, draws, D)``, chains cut to a common length.

    Those less than half as long as the longest would shorten all others, and are left out.
    """
    if chains is None:
        return values[None]
    _, lengths = torch.unique(chains, return_counts=True)
    parts = values[chains.argsort(stable=True)].split(lengths.tolist())
    parts = [part for part in parts if 2 * len(part) >= int(lengths.max())]
    shortest = min(map(len, parts))
    if shortest < _SHORTEST:
        return values[None]
    return torch.stack([part[:shortest] for part in parts])


def _by_chance(columns: list[Tensor]) -> float:
    """Return the largest autocorrelation time that the same rows show by chance, when shuffled."""
    rows = columns[0].numel()
    if rows > _MOST_SHUFFLED:
        return _ALWAYS + 12 / math.sqrt(rows)
    scores, source = torch.stack([c.flatten() for c in columns], -1), generator(0, "shuffled rows")
    orders = [torch.randperm(rows, generator=source) for _ in range(_SHUFFLES)]
    shuffled = torch.cat([scores[order] for order in orders], 1)
    return correlation_times(shuffled.view(*columns[0].shape, -1)).max().item()
