r"""How far a flow is off from its samples, in places as wide as a hundred draws.

About a centre c, with a Gaussian kernel k of a width at which the flow's draws have an effective
size of a hundred,

.. math:: \delta_c = \log\frac{\overline{k(x_i - c)}}{\overline{k(x'_j - c)}}, \qquad
    \epsilon_c^2 = \frac{f}{\mathrm{ess}_c} + \frac{1}{\mathrm{ess}'_c},

for samples x and draws x', in whitened coordinates, f samples being worth one. The mean of
:math:`\delta^2 - \epsilon^2` over centres is the mean square of what the flow is off by there. It
is no smaller than its own standard error: what could not be seen is not taken for zero.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.density import FlowPrior
from pyro_stad.density.reference import Reference

__all__ = ["typical_error"]

_CENTRES, _ENOUGH, _HALVINGS = 256, 100.0, 25


# By the samples that a prior keeps, which are of one flow: many models may use one prior.
_KNOWN: WeakKeyDictionary[Reference, float] = WeakKeyDictionary()


def typical_error(prior: FlowPrior, reference: Reference) -> float:
    """Return the root mean square error of a flow against its samples, in nats.

    Infinite if there are too few samples to tell.

    Arguments:
        prior: the flow.
        reference: the samples that it keeps.
    """
    if reference not in _KNOWN:
        _KNOWN[reference] = _measured(prior, reference)
    return _KNOWN[reference]


def _measured(prior: FlowPrior, reference: Reference) -> float:
    rows = reference.rows
    source = generator(0, "typical error", rows.device)
    distinct, place = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.randperm(len(distinct), generator=source, device=rows.device)
    # What is a centre is no sample, nor are its repeats, or it would find itself.
    chosen = order[: min(_CENTRES, len(distinct) // 4)]
    centres, samples = distinct[chosen], rows[~torch.isin(place, chosen)]
    if len(centres) < 2:
        return math.inf
    noise = torch.randn(samples.shape, generator=source, dtype=rows.dtype, device=rows.device)
    with torch.no_grad():
        draws = prior.likelihood.push(noise)
    squares = torch.cdist(centres, draws).square()
    alike = len(rows) / reference.effective
    # Where samples are alike, as wide as a hundred of those that are not.
    widths = _widths(squares, min(_ENOUGH * alike, 0.5 * len(draws)))
    by_draws, draws_worth = _log_mean(squares, widths)
    by_samples, samples_worth = _log_mean(torch.cdist(centres, samples).square(), widths)
    chance = alike / samples_worth + 1 / draws_worth
    excess = ((by_samples - by_draws).square() - chance).double()
    excess = excess[torch.isfinite(excess)]
    if len(excess) < 2:
        return math.inf
    least = excess.std() / len(excess) ** 0.5
    return torch.maximum(excess.mean(), least).sqrt().item()


def _widths(squares: Tensor, enough: float) -> Tensor:
    """Return widths ``(C, 1)`` at which kernels are worth ``enough`` of draws at ``(C, N)``."""
    low = torch.full_like(squares[:, :1], 1e-6)
    high = squares.amax(1, keepdim=True).sqrt().clamp_min(1e-3)
    for _ in range(_HALVINGS):
        middle = (low * high).sqrt()
        wide = _log_mean(squares, middle)[1][:, None] >= enough
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
    return high


def _log_mean(squares: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of kernels' means, and their effective sizes, each ``(C,)``."""
    exponent = -0.5 * squares / widths.square()
    total = exponent.logsumexp(1)
    ess = (2 * total - (2 * exponent).logsumexp(1)).exp()
    return total - torch.log(total.new_tensor(squares.shape[1])), ess
