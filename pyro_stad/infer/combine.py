r"""``combine``: several experiments' posteriors as one, from their chains alone.

Each of K experiments has a posterior over parameters that all share, :math:`\theta`, and some of
its own, :math:`\nu_i`, under one prior :math:`\pi` of what is shared:
:math:`p_i(\theta, \nu_i) = \pi(\theta)\, \pi_i(\nu_i)\, L_i / Z_i`. With the common prior counted
once,

.. math:: p(\theta, \nu) = \frac{1}{R} \frac{\prod_i p_i(\theta, \nu_i)}{\pi(\theta)^{K-1}},
    \qquad R = \int \frac{\prod_i p_i}{\pi^{K-1}} = \frac{Z_{1 \ldots K}}{\prod_i Z_i},

and what normalises it is the Bayes ratio of the experiments (:mod:`pyro_stad.infer.tension`). It is
an evidence: the first posterior is the prior, and what the others add the likelihood,
:math:`\prod_{i > 1} p_i / \pi^{K-1}`; parameters that the first has not are proposed by a normal
law about what the others say of them.

Where two posteriors overlap, both have been learned in each other's tails, or not at all. So each
one's own draws are weighted by the combination, by normal laws of what is shared; their effective
number is held against what its samples can tell, and the combination's draws against its alarms.

References:
    Handley and Lemos (2019), Quantifying Tensions in Cosmological Parameters: Interpreting the DES
    Evidence Ratio; Neiswanger, Wang and Xing (2014), Asymptotically Exact, Embarrassingly Parallel
    MCMC.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.density import FlowPrior, draws_of, exactly, extrapolation
from pyro_stad.errors import OutOfDistributionWarning
from pyro_stad.evidence import EvidenceResult, log_evidence
from pyro_stad.infer.combined import CombinedPosterior
from pyro_stad.infer.experiments import Experiments
from pyro_stad.infer.shared import SharedPrior

__all__ = ["Combination", "Overlap", "combine", "combined_evidence"]

_DRAWS, _TRACES = 4096, 500
_FEWEST = 50.0  # effective samples of an experiment where the others put it


@dataclass(frozen=True)
class Overlap:
    """How much of an experiment's samples is where the others put it.

    Attributes:
        share: effective share of its own draws under the combination.
        effective: of its samples, how many that makes; infinite where their number is unknown.
        flagged: share of the combination's draws at which it extrapolates.
        tolerated: share that may be there.
    """

    share: float
    effective: float
    flagged: float
    tolerated: float

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, as the end of a sentence."""
        found = []
        if self.effective < _FEWEST:
            found.append(f"is known from {self.effective:.0f} effective samples there")
        if self.flagged > self.tolerated:
            found.append(f"extrapolates at {self.flagged:.0%} of its draws")
        return " and ".join(found) or None


@dataclass(frozen=True, eq=False)
class Combination:
    """What an evidence of the combination found.

    Attributes:
        evidence: the estimate; its log Z is log R.
        log_ratio, log_ratio_err: log R, with the errors of learning and of distillation of all.
        overlaps: of every experiment.
        draws: of the combination, ``(N, D)``, in the order of its names.
    """

    evidence: EvidenceResult
    log_ratio: float
    log_ratio_err: float
    overlaps: tuple[Overlap, ...]
    draws: Tensor

    @property
    def troubles(self) -> tuple[str, ...]:
        """A sentence for each experiment that the others put where it has hardly been."""
        return tuple(
            f"experiment {index} {overlap.trouble}"
            for index, overlap in enumerate(self.overlaps)
            if overlap.trouble is not None
        )


def combine(
    *experiments: FlowPrior,
    shared_prior: Any,
    shared: Sequence[str] | None = None,
    particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> CombinedPosterior:
    """Return the posterior of several experiments over shared parameters.

    Arguments:
        experiments: each one's posterior, learned from its chain; parameters go by name.
        shared_prior: the prior that all chains had for what they share: a mapping of names to
            distributions of Pyro, a ``FlowPrior`` with these names, or one distribution over a
            vector of the parameters named in ``shared``.
        shared: names of the vector, in its order.
        particles: of each run of the evidence that normalises it.
        seed: of everything random.
        progress: whether to show a bar.

    Returns:
        A distribution for models, over all parameters, normalised: ``combined.log_ratio`` is log R.

    Raises:
        TypeError, ValueError: for fewer than two experiments, or without a shared prior; for names
            that two have and the shared prior has not, or the other way round.

    Warns:
        OutOfDistributionWarning: if an experiment has too few samples where the others put it.
    """
    together = Experiments.of(experiments, SharedPrior.of(shared_prior, shared))
    found = combined_evidence(together, particles, seed, progress=progress)
    for trouble in found.troubles:
        warnings.warn(
            f"{trouble}: the combination is extrapolated. Learn it from more samples, or from "
            "samples of both experiments together",
            OutOfDistributionWarning,
            stacklevel=2,
        )
    return CombinedPosterior(
        together, found.log_ratio, found.log_ratio_err, found.draws, found.troubles
    )


def combined_evidence(
    together: Experiments, particles: int, seed: int, *, progress: bool
) -> Combination:
    """Return the evidence that normalises a combination, and how far it can be believed."""

    def model() -> None:
        value = together.sample()
        pyro.factor("others", together.tilt(value))

    with warnings.catch_warnings():
        # What is extrapolated is told of every experiment below, and not only of the first.
        warnings.simplefilter("ignore")
        result = log_evidence(
            model, particles=particles, seed=seed, progress=progress, allow_extrapolation=True
        )
    draws = together.joined(result.draws)
    error = math.sqrt(
        result.log_z_err**2 + _learning(together, draws) ** 2 + _distillation(together, draws) ** 2
    )
    overlaps = tuple(
        _overlap(together, index, draws, seed) for index in range(len(together.priors))
    )
    return Combination(result, result.log_z, error, overlaps, draws)


def _learning(together: Experiments, draws: Tensor) -> float:
    """Return the error of log R from the learning of all experiments but the first."""
    total = 0.0
    for index, prior in enumerate(together.priors[1:], start=1):
        if prior.spread is not None:
            weights = prior.learning_log_weights(together.part(draws, index))
            total += log_mean_exp(weights.double(), 0).square().sum().item()
    return math.sqrt(total)


def _distillation(together: Experiments, draws: Tensor) -> float:
    """Return by how much exact traces, in place of distilled densities, would move log R."""
    some = draws[:: max(1, len(draws) // _TRACES)]
    moved: Any = 0.0
    with torch.no_grad():
        for index, prior in enumerate(together.priors[1:], start=1):
            x = together.part(some, index)
            moved = moved + (exactly(prior).log_prob(x) - prior.log_prob(x)).double()
    moved = moved[torch.isfinite(moved)]
    return abs(log_mean_exp(moved).item()) if len(moved) else math.inf


def _overlap(together: Experiments, index: int, draws: Tensor, seed: int) -> Overlap:
    """Weight an experiment's own draws by what the combination says of what it shares.

    By normal laws of both: marginals of the others are not known where they have parameters of
    their own. That the combination lies in a hollow of the experiment, its alarms tell.
    """
    prior = together.priors[index]
    x = together.part(draws, index)
    alarm = torch.minimum(prior.tail_probability(x), prior.density_level(x))
    flagged = extrapolation(prior.alarm_level, alarm < prior.alarm_level)
    source = generator(seed, f"overlap of experiment {index}", prior.like.device)
    own = draws_of(prior, _DRAWS, source)
    here = together.shared_of(x, index).double()
    law = dist.MultivariateNormal(here.mean(0), _covariance(here))
    theirs = dist.MultivariateNormal(*_moments(together.shared_of(own, index).double()))
    at = together.shared_of(own, index).double()
    share = (effective_size((law.log_prob(at) - theirs.log_prob(at)).softmax(0)) / _DRAWS).item()
    known = math.inf if prior.reference is None else prior.reference.effective
    return Overlap(share, share * known, flagged.share, flagged.tolerated)


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), _covariance(values)


def _covariance(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    covariance = centred.mT @ centred / len(values)
    return covariance + 1e-9 * torch.diag(covariance.diagonal() + 1e-300)
