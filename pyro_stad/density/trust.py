"""What a prior says of how far to believe it at a point: how far out, how probable, how exact.

All three go through the images of a point in the whitened coordinates of the flow, of which an
angle has several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_stad._checks import check_value
from pyro_stad.density.tail import FLAGGED, noise_tail
from pyro_stad.likelihood.suspects import disagreement

if TYPE_CHECKING:
    from pyro_stad.density.prior import FlowPrior

__all__ = ["density_level", "is_extrapolated", "log_prob_error", "tail_probability"]


def tail_probability(prior: FlowPrior, value: Tensor) -> Tensor:
    """Return the chance of a larger noise norm; see ``FlowPrior.tail_probability``."""
    return _best_image(prior, value, lambda white: noise_tail(prior.likelihood.pull(white)))


def density_level(prior: FlowPrior, value: Tensor) -> Tensor:
    """Return the share of own draws with less density; see ``FlowPrior.density_level``."""
    return _best_image(prior, value, prior.levels.share)


def is_extrapolated(prior: FlowPrior, noise: Tensor) -> Tensor:
    """Return which rows of noise ``(B, D)`` make points that are far out, or of hardly any density.

    Either alarm counts: see ``tail_probability`` and ``density_level``.
    """
    z = noise.to(prior.transforms[1].loc)
    with torch.no_grad():
        level = prior.levels.share(prior.likelihood.push(z))
    return (noise_tail(z) < FLAGGED) | (level < FLAGGED)


def log_prob_error(prior: FlowPrior, value: Tensor) -> Tensor:
    """Return a bound on the error of ``log_prob``; see ``FlowPrior.log_prob_error``."""
    if prior.calibration is None:
        raise ValueError("this prior is not calibrated; use prior.calibrate(samples)")
    x = _rows(prior, value)
    with torch.no_grad():
        white, share = prior.images(x)
        difference = disagreement(prior.likelihood, white.flatten(0, 1)).reshape(share.shape)
        bounds = prior.calibration.bound.at(difference)
        bound = torch.where(share > 0, share * bounds, 0.0).sum(0)
        # Where log_prob is -inf, nothing is known.
        bound = torch.where(prior.inside(x) & torch.isfinite(bound), bound, torch.inf)
    return bound.reshape(value.shape[:-1])


def _best_image(prior: FlowPrior, value: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a measure of whitened points ``(B, D)`` at ``value``: zero where there is none."""
    x = _rows(prior, value)
    with torch.no_grad():
        inside = prior.inside(x)
        white, share = prior.images(torch.where(inside[:, None], x, prior.stand_in))
        found = measure(white.flatten(0, 1)).reshape(share.shape)
        # Of an angle's images, the one that was seen best.
        found = torch.where(share > 0, found, 0.0).amax(0)
        found = torch.where(inside & ~torch.isnan(found), found, 0.0)
    return found.reshape(value.shape[:-1])


def _rows(prior: FlowPrior, value: Tensor) -> Tensor:
    like = prior.transforms[1].loc
    return check_value(value, len(prior.names), like).reshape(-1, len(prior.names))
