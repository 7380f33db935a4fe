"""What every estimate says of its posterior draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_stad.density import FLAGGED, FlowPrior
from pyro_stad.evidence.latent import LatentProblem

__all__ = ["described", "extrapolated"]


def described(problem: LatentProblem, noise: Tensor) -> dict[str, Any]:
    """Return draws, log-likelihoods, warnings and the extrapolated share at posterior ``noise``.

    Arguments:
        problem: the problem that was solved.
        noise: noise of posterior draws of equal weight, shape ``(N, D)``.

    Raises:
        EvidenceError: if the model could not be evaluated too often.
    """
    with torch.no_grad():
        draws, log_likelihood = problem.values_and_log_likelihoods(noise)
        return {
            "draws": draws,
            "log_likelihood": log_likelihood,
            "extrapolated": problem.extrapolated(noise).double().mean().item(),
            "warnings": problem.warnings(),
        }


def extrapolated(latent: list[Any], draws: dict[str, Tensor]) -> float:
    """Return the share of draws, each ``(N, ...)``, at which a flow prior is in its tail."""
    points = len(next(iter(draws.values())))
    flagged = torch.zeros(points, dtype=torch.bool)
    for site in latent:
        if isinstance(site["fn"], FlowPrior):
            tail = site["fn"].tail_probability(draws[site["name"]]).reshape(points, -1).amin(-1)
            flagged |= (tail < FLAGGED).cpu()
    return flagged.double().mean().item()
