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

import torch
from torch import Tensor

from pyro_stad.density import FlowPrior
from pyro_stad.density.reference import Reference

__all__ = ["typical_error"]

_CENTRES, _ENOUGH, _HALVINGS = 256, 100.0, 25


def typical_error(prior: FlowPrior, reference: Reference, source: torch.Generator) -> float:
    """Return the root mean square error of a flow against its samples, in nats.

    Arguments:
        prior: the flow.
        reference: the samples that it keeps.
        source: of randomness.
    """
    order = torch.randperm(len(reference.rows), generator=source, device=source.device)
    rows = reference.rows[order].float()
    # What is a centre is no sample, or it would find itself.
    count = min(_CENTRES, len(rows) // 4)
    centres, samples = rows[:count], rows[count:]
    like = reference.rows
    noise = torch.randn(
        len(samples), rows.shape[1], generator=source, dtype=like.dtype, device=like.device
    )
    with torch.no_grad():
        draws = prior.likelihood.push(noise).float()
    squares = torch.cdist(centres, draws).square()
    widths = _widths(squares)
    by_draws, draws_worth = _log_mean(squares, widths)
    by_samples, samples_worth = _log_mean(torch.cdist(centres, samples).square(), widths)
    alike = len(reference.rows) / reference.effective
    chance = alike / samples_worth + 1 / draws_worth
    excess = (by_samples - by_draws).square() - chance
    excess = excess[torch.isfinite(excess)].double()
    if len(excess) < 2:
        return 0.0
    least = excess.std() / len(excess) ** 0.5
    return torch.maximum(excess.mean(), least).sqrt().item()


def _widths(squares: Tensor) -> Tensor:
    """Return the kernels' widths ``(C, 1)`` for squared distances ``(C, N)`` of draws."""
    low = torch.full_like(squares[:, :1], 1e-6)
    high = squares.amax(1, keepdim=True).sqrt().clamp_min(1e-3)
    enough = min(_ENOUGH, 0.5 * squares.shape[1])
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
