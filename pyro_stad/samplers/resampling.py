"""The next temperature of particles, and who goes on to it: what keeps their effective number.

References:
    Jasra, Stephens, Doucet and Tsagaris (2011), Inference for Levy-Driven Stochastic Volatility
    Models via Adaptive Sequential Monte Carlo; Kitagawa (1996), Monte Carlo Filter and Smoother for
    Non-Gaussian Nonlinear State Space Models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_stad._weights import effective_size

__all__ = ["next_steps", "systematic"]

_ESS = 0.5


def next_steps(gain: Tensor, left: Tensor) -> Tensor:
    """Return the steps of the temperatures, ``(B,)``, that keep the effective sample size."""
    # Points without a likelihood go in the first step, however small.
    target = _ESS * torch.isfinite(gain).sum(-1)

    def keeps(step: Tensor) -> Tensor:
        share = torch.softmax(step[:, None, None] * gain.double(), -1)
        return (effective_size(share) / target).mean(-1) >= 1

    # By bisection of the logarithm: a narrow likelihood starts with a tiny step.
    high = left.log()
    low = high - 200.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        enough = keeps(middle.exp())
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(keeps(left), left, low.exp())


def systematic(share: Tensor, generator: torch.Generator) -> Tensor:
    """Return the indices of a systematic resampling of every run, ``(B, R, N)``."""
    count = share.shape[-1]
    shape = (*share.shape[:-1], 1)
    offset = torch.rand(shape, generator=generator, dtype=share.dtype, device=share.device)
    places = (torch.arange(count, dtype=share.dtype, device=share.device) + offset) / count
    return torch.searchsorted(share.cumsum(-1), places).clamp_max(count - 1)
