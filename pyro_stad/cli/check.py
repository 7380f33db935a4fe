"""``pyro-stad check``: an audit on samples of the user's, and its picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.data import Batches
from pyro_stad.density import FlowPrior
from pyro_stad.divergence.distil import cloud_for
from pyro_stad.likelihood import Audit, audit
from pyro_stad.likelihood.audit import exact_log_prob

__all__ = ["check_prior"]


def check_prior(prior: FlowPrior, points: Tensor, seed: int, figure: Path | None) -> Audit:
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
    result = audit(likelihood, white, cloud, source, exact=exact)
    if figure is not None:
        with torch.no_grad():
            _draw(figure, result, likelihood.log_prob(white) - exact, exact)
    return result


def _draw(path: Path, result: Audit, error: Tensor, exact: Tensor) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError("--figure needs matplotlib: pip install matplotlib") from missing
    sheet = Figure(figsize=(10, 4), layout="constrained")
    left, right = sheet.subplots(1, 2)
    left.axhline(0, color="black", linewidth=0.8)
    left.plot(exact, error, ".", markersize=3, color="#0b6e4f")
    left.set_xlabel("exact log-density (whitened), nat")
    left.set_ylabel("log_prob less exact trace, nat")
    left.set_title(f"bias {result.bias:+.3f}, sd {result.sd:.3f} nat", fontsize=10)
    right.axhline(0, color="black", linewidth=0.8)
    right.errorbar(
        [s.fraction for s in result.stein],
        [s.mean for s in result.stein],
        [2 * s.standard_error for s in result.stein],
        fmt="o",
        color="#2b5c9e",
        capsize=3,
    )
    right.set_xlabel("fraction of the way from data to noise")
    right.set_ylabel("Stein residual (bars: 2 standard errors)")
    right.set_title(
        f"normaliser {result.normaliser:.3f} +- {result.normaliser_error:.3f}", fontsize=10
    )
    sheet.savefig(path, dpi=130)
