r"""How far a flow is off from its samples, in places as wide as some hundred draws.

About a centre c, with a Gaussian kernel k of a width at which the flow's draws have an effective
size of a hundred,

.. math:: \delta_c = \log\frac{\overline{k(x_i - c)}}{\overline{k(x'_j - c)}}, \qquad
    \epsilon_c^2 = \frac{f}{\mathrm{ess}_c} + \frac{1}{\mathrm{ess}'_c},

for samples x and draws x', in whitened coordinates, f samples being worth one. The mean of
:math:`\delta^2 - \epsilon^2` over centres is the mean square of what the flow is off by there. It
is no smaller than its own standard error: what could not be seen is not taken for zero.

Members of a fit (:mod:`pyro_stad.learn.spread`) are off from it by chance, which they share with
no other, and it is off by what it can't resolve, of which they know nothing. In the same places, as
wide as three hundred draws, the logarithms of their masses have the variance :math:`s_c^2`, to
first order; the square of the factor of their spread is the mean of :math:`\delta^2 - \epsilon^2`,
less its standard error, over that of :math:`s^2`, and one at the least. It is one for laws that a
flow learns well, and two to four for fits of the quick budget.
"""

from __future__ import annotations

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.data.reference import Reference
from pyro_stad.density.prior import FlowPrior
from pyro_stad.learn.spread import Spread
from pyro_stad.transport import AbstractTransport

__all__ = ["spread_factor", "typical_error"]

_CENTRES, _HALVINGS = 256, 25
_OF_FLOW, _OF_MEMBERS = 100.0, 300.0  # draws
# A flow that is off by more is no density of its samples, as the goodness of fit says.
_LARGEST = 10.0


# By the samples that a prior keeps, which are of one flow: many models may use one prior.
_KNOWN: WeakKeyDictionary[Reference, float] = WeakKeyDictionary()


class _Places(NamedTuple):
    """What C places say.

    Attributes:
        excess: squares of what the flow is off by, chance taken off, ``(C,)``.
        draws: the flow's, whitened, ``(N, D)``.
        log_shares: logarithms of their shares of each place, ``(C, N)``.
    """

    excess: Tensor
    draws: Tensor
    log_shares: Tensor

    def moments(self) -> tuple[float, float]:
        """Return the mean of the excess and its standard error; infinite where none is known."""
        known = self.excess[torch.isfinite(self.excess)]
        if len(known) < 2:
            return math.inf, math.inf
        return known.mean().item(), (known.std() / len(known) ** 0.5).item()


def typical_error(prior: FlowPrior, reference: Reference) -> float:
    """Return the root mean square error of a flow against its samples, in nats.

    Infinite if there are too few samples to tell.

    Arguments:
        prior: the flow.
        reference: the samples that it keeps.
    """
    if reference not in _KNOWN:
        places = _places(prior.transport, reference, _OF_FLOW)
        _KNOWN[reference] = math.inf if places is None else math.sqrt(max(places.moments()))
    return _KNOWN[reference]


def spread_factor(transport: AbstractTransport, reference: Reference, spread: Spread) -> float:
    """Return by how much the error of a flow is larger than the spread of its members.

    Arguments:
        transport: the flow.
        reference: samples that it has learned.
        spread: that of its members.
    """
    places = _places(transport, reference, _OF_MEMBERS)
    if places is None:
        return 1.0
    with torch.no_grad():
        members = places.log_shares.exp() @ spread(places.draws)
    mean, error = places.moments()
    variance = members.var(1).mean().item()
    square = (mean - error) / variance if variance > 0 and math.isfinite(mean) else 1.0
    return math.sqrt(min(max(square, 1.0), _LARGEST**2))


def _places(transport: AbstractTransport, reference: Reference, enough: float) -> _Places | None:
    """Return what places as wide as ``enough`` draws say; None for too few samples."""
    rows = reference.rows
    source = generator(0, "typical error", rows.device)
    distinct, place = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.randperm(len(distinct), generator=source, device=rows.device)
    # What is a centre is no sample, nor are its repeats, or it would find itself.
    chosen = order[: min(_CENTRES, len(distinct) // 4)]
    centres, samples = distinct[chosen], rows[~torch.isin(place, chosen)]
    if len(centres) < 2:
        return None
    noise = torch.randn(samples.shape, generator=source, dtype=rows.dtype, device=rows.device)
    with torch.no_grad():
        draws = transport.push(noise)
    squares = torch.cdist(centres, draws).square()
    alike = len(rows) / reference.effective
    # Where samples are alike, as wide as so many of those that are not.
    widths = _widths(squares, min(enough * alike, 0.5 * len(draws)))
    by_draws, draws_worth = _log_mean(squares, widths)
    by_samples, samples_worth = _log_mean(torch.cdist(centres, samples).square(), widths)
    chance = alike / samples_worth + 1 / draws_worth
    excess = ((by_samples - by_draws).square() - chance).double()
    log_shares = torch.log_softmax(-0.5 * squares / widths.square(), 1)
    return _Places(excess, draws, log_shares)


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
    return log_mean_exp(exponent), effective_size(torch.softmax(exponent, -1))
