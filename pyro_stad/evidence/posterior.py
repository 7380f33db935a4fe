"""What every estimate says of its posterior draws, and what is to be said against it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pyro_stad.density import Extrapolation, FlowPrior, extrapolation
from pyro_stad.evidence.job import asked
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.support import SupportNoise, support
from pyro_stad.model.noise import LatentProblem

__all__ = [
    "cautions",
    "posterior_of",
    "disagreement",
    "extrapolated",
    "refusals",
    "with_support",
]

_MOST_UNRESOLVED = 0.01
_DISAGREE = 3.0


def posterior_of(problem: LatentProblem, noise: Tensor) -> dict[str, Any]:
    """Return draws, log-likelihoods, warnings and the extrapolated share at posterior ``noise``.

    Arguments:
        problem: the problem that was solved.
        noise: noise of posterior draws of equal weight, shape ``(N, D)``.

    Raises:
        EvidenceError: if the model could not be evaluated too often.
    """
    with torch.no_grad():
        white = problem.white(noise)
        draws, log_likelihood = problem.values_and_log_likelihoods(noise)
        out = worst(problem.extrapolations(noise, white))
        return {
            "draws": draws,
            "log_likelihood": log_likelihood,
            "extrapolated": out.share,
            "tolerated": out.tolerated,
            "learning": problem.learning(noise, white),
            "unresolved": problem.unresolved(noise).double().mean().item(),
            "warnings": problem.warnings(),
        }


def extrapolated(flows: dict[str, tuple[FlowPrior, Tensor]]) -> Extrapolation:
    """Return at how many draws a learned prior is extrapolated, and at how many it may be.

    Arguments:
        flows: the priors, with the draws in their coordinates, ``(N, ..., D)``, by site.
    """
    found = []
    for prior, draws in flows.values():
        alarms = torch.minimum(prior.tail_probability(draws), prior.density_level(draws))
        found.append(extrapolation(prior.alarm_level, alarms < prior.alarm_level))
    return worst(found)


def worst(found: list[Extrapolation]) -> Extrapolation:
    """Return that of the prior which is nearest to what may be, or furthest past it."""
    return max(found, key=lambda each: each.share / each.tolerated, default=Extrapolation())


def with_support(
    result: EvidenceResult, problem: LatentProblem, noise: SupportNoise | None
) -> EvidenceResult:
    """Return the result held against the samples of its priors, and what is to be said of it."""
    if noise is not None:
        owed = support(problem, noise, result.learning).against(result.log_z, result.log_z_err)
        result = asked(result, problem, len(noise.samples) + len(noise.draws))
        result = replace(
            result, support=owed, log_z_err=math.hypot(result.log_z_err, owed.learning_error)
        )
    return replace(result, warnings=(*result.warnings, *cautions(result)))


def refusals(result: EvidenceResult) -> tuple[str, ...]:
    """Return why an evidence is not to be quoted: the posterior lies beyond what a prior knows."""
    found = []
    if result.extrapolated > result.tolerated:
        found.append(
            f"{result.extrapolated:.0%} of the posterior is where a flow prior has hardly seen a "
            "sample: the evidence is that of its extrapolation"
        )
    if result.support is not None and result.support.trouble is not None:
        found.append(result.support.trouble)
    return tuple(found)


def cautions(result: EvidenceResult) -> tuple[str, ...]:
    """Return what must be said of where the posterior lies, refusals first."""
    if result.unresolved <= _MOST_UNRESOLVED:
        return refusals(result)
    return (
        *refusals(result),
        f"{result.unresolved:.0%} of the posterior is where the `icdf` of its prior has no "
        "digits left; write that prior as a transformed normal, or in double precision",
    )


def disagreement(estimates: dict[str, tuple[float, float]]) -> list[str]:
    """Return which estimates, ``(log_z, log_z_err)`` by method, are too far apart."""
    found = []
    for (a, (z_a, err_a)), (b, (z_b, err_b)) in combinations(estimates.items(), 2):
        apart = abs(z_a - z_b) / math.hypot(err_a, err_b)
        if apart > _DISAGREE:
            found.append(
                f"{a} gives log Z = {z_a:.3f} +- {err_a:.3f}, {b} {z_b:.3f} +- {err_b:.3f}: "
                f"{apart:.1f} standard errors apart"
            )
    return found
