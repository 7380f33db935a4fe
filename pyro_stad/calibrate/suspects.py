r"""Where a density is suspect: looked for at many points, so that few need an exact trace.

An exact trace takes D products for each step of a solve; the density itself, and a second way to
it, take a pass or two. So those are computed at thousands of points, and the exact trace where

- the two ways disagree most, for they agree where the network is consistent; or
- the density exceeds that of whitening's normal law most, for there a bump would be, and both ways
  may go through it.

What is not finite comes first. Points that are chosen for being bad say nothing of a bias or a
standard deviation; they are for the worst error alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_stad._events import beside, event_sum
from pyro_stad._joined import log_prob_at, parted
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.curves import Coarse, Constant
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.likelihood.stein_path import SteinPath

__all__ = ["climbed", "disagreement", "most_alone", "suspects"]

# Steps uphill, in whitened coordinates: two standard deviations in all.
_CLIMB, _STRIDE, _SHRINK = 8, 0.4, 0.85


def disagreement(likelihood: AbstractLikelihood, x: Tensor) -> Tensor:
    """Return how far ``likelihood`` is from another way to the same density, at ``x``: ``(B,)``.

    The other way is a curve that is solved for, or the constant one if ``likelihood`` solves
    already. A field without a score has but the flow itself, which gets zero.
    """
    other = _second_opinion(likelihood)
    if other is None:
        return x.new_zeros(len(x))
    return (log_prob_at(likelihood, x) - log_prob_at(other, x)).abs()


def suspects(likelihood: AbstractLikelihood, x: Tensor, count: int) -> Tensor:
    """Return the most suspect of points ``(B, D)``, whitened: at most ``2 * count`` rows."""
    log_prob, other = log_prob_at(likelihood, x), _second_opinion(likelihood)
    excess = log_prob + 0.5 * event_sum(parted(x, likelihood)[0].square())
    reasons = [excess]
    if other is not None:
        reasons.insert(0, (log_prob - log_prob_at(other, x)).abs())
    count = min(count, len(x))
    # As infinities, or a NaN would be no reason.
    places = [
        torch.where(torch.isnan(reason), torch.inf, reason).topk(count).indices
        for reason in reasons
    ]
    return x[torch.cat(places).unique()]


def most_alone(x: Tensor, data: Tensor, count: int) -> Tensor:
    """Return those of points ``(B, D)`` that are farthest from all ``data``: at most ``count``."""
    nearest = torch.cdist(x.flatten(1), data.flatten(1)).amin(1)
    return x[nearest.topk(min(count, len(x))).indices]


def climbed(height: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return where ``height`` is largest on ways uphill from points ``(B, D)``, as many."""
    best = x
    top = x.new_full((len(x),), -torch.inf)
    for step in range(_CLIMB):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            found = height(at)
            (slope,) = torch.autograd.grad(found.sum(), at)
        higher = found.detach() > top
        top = torch.where(higher, found.detach(), top)
        best = torch.where(beside(higher, x), at.detach(), best)
        flat = slope.nan_to_num(0.0, 0.0, 0.0).flatten(1)
        uphill = torch.nn.functional.normalize(flat, dim=1).view_as(x)
        x = at.detach() + _STRIDE * _SHRINK**step * uphill
    return best


def _second_opinion(likelihood: AbstractLikelihood) -> AbstractLikelihood | None:
    if not likelihood.field.has_score:
        return None if likelihood.integrates else FlowODE.of(likelihood)
    # One call: the curve of a point that rests, or no curve at all.
    curve = Coarse(4) if likelihood.sequential_calls() == 1 else Constant()
    # A way of the same divergence has a mass that is off alike.
    log_mass = likelihood.log_mass if likelihood.integrates else 0.0
    other = SteinPath(
        likelihood.field, likelihood.divergence, likelihood.solver, curve, nodes=16,
        chunk_size=likelihood.chunk_size, log_mass=log_mass,
    )  # fmt: skip
    return other if likelihood.context is None else other.given(likelihood.context)
