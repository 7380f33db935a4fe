r"""How far chains agree, and what their draws are worth, of many numbers at once.

The statistics are those of Stan and ArviZ, rank-normalised, chains cut in halves; the tests hold
them against ArviZ's. They are computed here since of a thousand objects there are thousands of
them, and one at a time they took longer than the draws.

R-hat compares the means of chains. Of C chains that agree, with S effective draws in all, halves
differ by their own chance, so that :math:`\hat R^2 \approx 1 + 2 C / S`: above 1.01 for short
chains, however many there are. Chains are said to disagree where it is above 1.01 and above three
times what their own draws, each less the mean of its chain, make one expect.

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
    localization: an improved R-hat; Margossian et al. (2024), Nested R-hat.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad.data.effective import correlation_times

__all__ = ["Diagnosis", "diagnose"]

_WORST_R_HAT, _TIMES = 1.01, 3.0


class Diagnosis(NamedTuple):
    """What is known of chains, number by number, each ``(K,)``.

    Attributes:
        r_hat: rank-normalised split R-hat, of places or spreads, whichever is larger.
        ess: effective draws (bulk) of all chains.
        disagree: whether chains are farther apart than their own draws explain.
    """

    r_hat: Tensor
    ess: Tensor
    disagree: Tensor


def diagnose(draws: Tensor) -> Diagnosis:
    """Return what is known of chains ``(K, C, n)`` of K numbers."""
    half = draws.shape[2] // 2
    # Of an odd number the one in the middle is left out.
    parts = draws[..., :half].double(), draws[..., -half:].double()
    halves, draws = torch.cat(parts, 1), torch.cat(parts, 2)
    folded = (halves - _median(halves.flatten(1))[:, None, None]).abs()
    ratio = torch.maximum(_r_hat(_scores(halves)), _r_hat(_scores(folded)))
    own = _centred(draws)
    worth = torch.minimum(_ess(own), _ess(_centred(own.abs())))
    expected = _TIMES * 2 * draws.shape[1] / worth
    # NaN, of chains that never move, is no agreement.
    disagree = ~(ratio < _WORST_R_HAT) & ~(ratio.square() - 1 < expected)
    # But a number that is the same in all of them is none that is drawn, as a zero of a factor.
    still = draws.flatten(1).amax(1) == draws.flatten(1).amin(1)
    count = float(draws[0].numel())
    return Diagnosis(
        ratio.masked_fill(still, 1.0), _ess(draws).masked_fill(still, count), disagree & ~still
    )


def _centred(draws: Tensor) -> Tensor:
    return draws - draws.mean(2, keepdim=True)


def _scores(draws: Tensor) -> Tensor:
    """Return normal quantiles of the ranks of each number; what is equal has equal ranks."""
    ordered, order = draws.flatten(1).sort(1)
    places = torch.arange(ordered.shape[1], device=draws.device).expand(ordered.shape)
    # Where a run of equal draws begins and ends: their ranks are all the mean of these.
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = torch.ones_like(new)
    last[:, :-1] = new[:, 1:]
    begins = torch.where(new, places, 0).cummax(1).values
    ends = torch.where(last, places, ordered.shape[1]).flip(1).cummin(1).values.flip(1)
    ranks = 1 + 0.5 * (begins + ends)
    scores = torch.special.ndtri((ranks - 0.375) / (ordered.shape[1] + 0.25))
    return torch.zeros_like(scores).scatter_(1, order, scores).reshape(draws.shape)


def _median(rows: Tensor) -> Tensor:
    ordered, count = rows.sort(1).values, rows.shape[1]
    return 0.5 * (ordered[:, (count - 1) // 2] + ordered[:, count // 2])


def _r_hat(scores: Tensor) -> Tensor:
    count = scores.shape[2]
    between = count * scores.mean(2).var(1)
    within = scores.var(2).mean(1)
    return ((between / within + count - 1) / count).sqrt()


def _ess(draws: Tensor) -> Tensor:
    times = correlation_times(_scores(draws).movedim(0, 2))
    return draws[0].numel() / times
