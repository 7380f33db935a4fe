"""``pyro-stad check``: an audit and the goodness of fit on samples of the user's, and a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.calibrate import Audit, audit
from pyro_stad.calibrate.audit import exact_log_prob
from pyro_stad.cli.picture import draw_picture
from pyro_stad.data import Batches, Samples, correlation_time, merge_repeats
from pyro_stad.density import FlowPrior
from pyro_stad.learn.clouds import cloud_for
from pyro_stad.report import Goodness, goodness

__all__ = ["check_prior"]


def check_prior(
    prior: FlowPrior, points: Tensor, seed: int, figure: Path | None
) -> tuple[Audit, Goodness]:
    """Audit ``prior`` on points ``(N, D)``; draw a picture if ``figure`` is given.

    Raises:
        ValueError: for fewer than two points, or points that are not finite or outside the
            support.
    """
    if len(points) < 2:
        raise ValueError(f"at least two samples are needed for a check; got {len(points)}")
    if not bool(prior.support.check(points).all() & torch.isfinite(points).all()):
        raise ValueError("some samples are not finite, or outside the prior's bounds")
    source = generator(seed, "check")
    white = prior.unroll(points, source)
    likelihood = prior.likelihood
    cloud = cloud_for(likelihood.field, Batches(white), source)
    exact = exact_log_prob(likelihood, white)
    found = audit(likelihood, white, cloud, source, exact=exact), _goodness(prior, white, seed)
    if figure is not None:
        with torch.no_grad():
            errors = exact, likelihood.log_prob(white) - exact
            clouds = prior.wrap(points), _draws(prior, white, source)
            draw_picture(figure, found, errors, clouds, prior.names)
    return found


def _goodness(prior: FlowPrior, white: Tensor, seed: int) -> Goodness:
    """Return the goodness of fit on whitened rows in the order of their chain, repeats and all."""
    if prior.layout is None:
        raise ValueError(f"{prior!r} is of events that are no vectors: they can't be checked")
    rows = Samples(white.double(), None, prior.layout)
    distinct = merge_repeats(rows)
    time = correlation_time(rows) * len(distinct.values) / len(white)
    held = Batches(distinct.values.to(white.dtype), distinct.weights)
    return goodness(prior.likelihood, prior.transport, held, seed, time=max(1.0, time))


def _draws(prior: FlowPrior, white: Tensor, source: torch.Generator) -> Tensor:
    """Return as many draws of the prior as there are whitened rows, the global seed untouched."""
    draws = torch.randn(white.shape, generator=source, dtype=white.dtype, device=white.device)
    for transform in prior.transforms:
        draws = transform(draws)
    return draws
