r"""Importance sampling in the noise of a model, from a proposal learned from tempered particles.

.. math:: Z = E_q\Big[\frac{N(u; 0, I)\, L(u)}{q(u)}\Big], \qquad q = 0.9\; g + 0.1\; N(0, I),

with g learned from posterior draws (:mod:`pyro_stad.evidence.proposal`), and a share of the prior,
which bounds the weights wherever L is bounded. Draws are new ones, so that the estimate is
unbiased. The Pareto shape :math:`\hat k` of the weights says whether their variance, and so the
error, can be believed: at 0.7 or above the estimate is refused.

References:
    Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions;
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_choice
from pyro_stad._weights import WORST_SHAPE, effective_size, log_mean_exp, smoothed
from pyro_stad.errors import EvidenceError
from pyro_stad.evidence.job import EvidenceJob, asked, spent
from pyro_stad.evidence.method import AbstractParticleMethod
from pyro_stad.evidence.posterior import disagreement, posterior_of
from pyro_stad.evidence.proposal import (
    PRIOR_SHARE,
    PROPOSALS,
    Proposal,
    Student,
    normal_log_prob,
)
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.registry import storable
from pyro_stad.samplers import AbstractKernel, Problem, Runs

__all__ = ["Estimate", "Importance", "held_against", "of_particles"]

_ADVICE = {"student": "Use proposal='flow', or method='smc'", "flow": "Use method='smc'"}


@storable("evidence method", "importance")
@dataclass(frozen=True)
class Importance(AbstractParticleMethod):
    """Importance sampling from a proposal that is learned from tempered particles.

    Arguments:
        proposal: ``"student"``, a t law, or ``"flow"``, for several modes, a minute's fit.
        kernel: how particles move; None for Crank and Nicolson's way.
    """

    proposal: str = "student"
    kernel: AbstractKernel | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.proposal, "proposal", PROPOSALS)

    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        """Estimate the evidence of a job.

        Raises:
            EvidenceError: if the weights are too heavy-tailed to be believed.
        """
        problem, tempered = job.problem, job.runs(self.particles, self.repeats, self.kernel)
        source = job.generator("importance")
        with torch.no_grad():
            proposal = PROPOSALS[self.proposal](tempered.u, job)
            u = proposal.draw(source)
            log_weights = _log_weights(problem, proposal, u)[0]
        runs = log_mean_exp(log_weights, 1)
        share = torch.softmax(log_weights.reshape(-1), 0)
        effective = effective_size(share).item()
        relative = 1 / effective - 1 / len(share)
        found = smoothed(log_weights.reshape(-1))
        weights, shape = found.log_weights.exp(), found.khat.item()
        if not found.believable:
            raise EvidenceError(
                f"importance weights have a Pareto shape of {shape:.2f}, expected less than "
                f"{WORST_SHAPE}: their mean can't be believed. {_ADVICE[self.proposal]}"
            )
        weights = weights.to(u.device)
        chosen = torch.multinomial(weights, len(share), replacement=True, generator=source)
        calls, networks = spent(problem, tempered)
        result = EvidenceResult(
            log_z=log_mean_exp(runs).item(),
            log_z_err=math.sqrt(max(relative, runs.var().item() / len(runs))),
            method="importance",
            repeats=tuple(runs.tolist()),
            likelihood_calls=calls,
            network_calls=networks,
            formula_err=math.sqrt(relative * len(runs)),
            ess=effective,
            khat=shape,
            data=problem.data[0],
            **posterior_of(problem, u.reshape(-1, problem.size)[chosen]),
        )
        return asked(result, problem, len(share))


class Estimate(NamedTuple):
    """An importance-sampled log Z, its error, the Pareto shape of its weights, and what it says."""

    log_z: float
    log_z_err: float
    khat: float
    is_believable: bool


def of_particles(problem: Problem, runs: Runs, generator: torch.Generator) -> list[Estimate]:
    """Estimate the evidence of every object from the particles that its runs ended with."""
    with torch.no_grad():
        proposal = Student(runs.u)
        log_weights = _log_weights(problem, proposal, proposal.draw(generator))
    means = log_mean_exp(log_weights)
    share = torch.softmax(log_weights.flatten(1), 1)
    relative = 1 / effective_size(share) - 1 / share.shape[1]
    log_z = log_mean_exp(means)
    error = torch.maximum(relative, means.var(1) / means.shape[1]).sqrt()
    tails = smoothed(log_weights.flatten(1))
    columns = (log_z.tolist(), error.tolist(), tails.khat.tolist(), tails.believable.tolist())
    return [Estimate(*row) for row in zip(*columns)]


def held_against(result: EvidenceResult, check: Estimate) -> EvidenceResult:
    """Return an estimate by SMC with the check from its particles, and what is to be said of it."""
    if not check.is_believable:
        note = f"importance was refused: its weights have a Pareto shape of {check.khat:.2f}"
        return replace(result, warnings=(*result.warnings, note))
    checks = {**result.checks, "importance": (check.log_z, check.log_z_err)}
    result = replace(result, checks=checks)
    return replace(result, warnings=(*result.warnings, *disagreement(result.estimates())))


def _log_weights(problem: Problem, proposal: Proposal, u: Tensor) -> Tensor:
    """Return log of prior times likelihood over proposal, ``(B, R, N)``, in float64."""
    prior = normal_log_prob(u)
    mixture = torch.logaddexp(
        proposal.log_prob(u) + math.log1p(-PRIOR_SHARE), prior + math.log(PRIOR_SHARE)
    )
    fit = problem.of_objects(torch.arange(len(u), device=u.device), u.flatten(1, 2))
    fit = fit.reshape(u.shape[:-1]).double()
    return prior + fit - mixture
