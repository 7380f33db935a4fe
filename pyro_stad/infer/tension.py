r"""``tension``: whether two experiments agree, from their chains alone.

With :math:`p_1, p_2` the posteriors of both under the common prior :math:`\pi` of what they share,
and :math:`\ell_i = \log p_i - \log \pi`,

- the *Bayes ratio* :math:`R = Z_{12} / (Z_1 Z_2) = \int p_1 p_2 / \pi`: how much more probable the
  data of both are together than apart. It grows with the volume of the prior.
- the *suspiciousness* :math:`\log S = E_{12}[\ell_1 + \ell_2] - E_1[\ell_1] - E_2[\ell_2]`, which
  is log R less what the prior's volume does to it. Of normal laws in d dimensions
  :math:`d - 2 \log S \sim \chi^2_d`, with :math:`d = d_1 + d_2 - d_{12}` and the Bayesian
  dimensions :math:`d_i = 2\,\mathrm{Var}_i(\ell_i)`: a probability, and so a number of sigma.
- the *parameter shift*: how far the difference of independent draws of both is from zero, by its
  normal law, :math:`\chi^2` of as many dimensions as parameters are shared.

Priors of parameters that only one of them has are taken to be flat where its posterior is; then
they cancel.

R is an evidence, with one experiment for the prior and the other for the likelihood, and estimated
either way round: the two are held against each other.

References:
    Handley and Lemos (2019), Quantifying Tensions in Cosmological Parameters; Handley and Lemos
    (2019), Quantifying Dimensionality: Bayesian Cosmological Model Complexities; Lemos et al.
    (2021), Assessing Tension Metrics with Dark Energy Survey and Planck Data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from scipy import special
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.density import FlowPrior, draws_of
from pyro_stad.infer.combine import Overlap, combined_evidence
from pyro_stad.infer.experiments import Experiments
from pyro_stad.infer.shared import SharedPrior

__all__ = ["Tension", "tension"]

_DRAWS = 4096


@dataclass(frozen=True)
class Tension:
    """What two experiments say of each other.

    Attributes:
        log_ratio, log_ratio_err: log R, in nats.
        log_suspiciousness, log_suspiciousness_err: log S, in nats.
        dimension: Bayesian dimensions that both constrain, d.
        shift, shift_err: of the parameters, in sigma of a normal law.
        parameters: number of shared parameters.
        overlaps: how much of each experiment's samples is where the other puts it.
        troubles: why the numbers are not to be believed; none if they are.
    """

    log_ratio: float
    log_ratio_err: float
    log_suspiciousness: float
    log_suspiciousness_err: float
    dimension: float
    shift: float
    shift_err: float
    parameters: int
    overlaps: tuple[Overlap, Overlap]
    troubles: tuple[str, ...] = ()

    @property
    def sigma(self) -> float:
        """The tension by suspiciousness, in sigma; NaN where both constrain no dimension."""
        if not self.dimension > 0.1:
            return math.nan
        chi = max(self.dimension - 2 * self.log_suspiciousness, 0.0)
        return _sigma(chi, self.dimension)

    @property
    def is_reliable(self) -> bool:
        """Whether both experiments have been where the other puts them."""
        return not self.troubles

    def sentence(self) -> str:
        """Return what it means, in a plain sentence."""
        if not self.is_reliable:
            return (
                f"The experiments are about {self.shift:.1f} sigma apart, too far for their "
                f"samples to say how probable they are together ({'; '.join(self.troubles)})."
            )
        found = self.sigma if math.isfinite(self.sigma) else self.shift
        odds = (
            f"together their data are {_factor(self.log_ratio)} probable than apart, under this "
            "prior"
        )
        if found < 1.5:
            return f"The experiments agree ({found:.1f} sigma); {odds}."
        if found < 3:
            return f"The experiments differ by {found:.1f} sigma, which happens by chance; {odds}."
        return f"The experiments are in tension, {found:.1f} sigma; {odds}."

    def summary(self) -> str:
        """Return the numbers, and what they mean, as text."""
        lines = [
            self.sentence(),
            f"  log R = {self.log_ratio:+.3f} +- {self.log_ratio_err:.2g}",
            f"  log S = {self.log_suspiciousness:+.3f} +- {self.log_suspiciousness_err:.2g}, in "
            f"{self.dimension:.1f} dimensions: {self.sigma:.2f} sigma",
            f"  shift of {self.parameters} shared parameters: {self.shift:.2f} +- "
            f"{self.shift_err:.2g} sigma",
        ]
        for index, overlap in enumerate(self.overlaps, start=1):
            lines.append(
                f"  experiment {index}: {overlap.effective:.0f} effective samples where both are, "
                f"{overlap.flagged:.0%} of the draws extrapolated"
            )
        return "\n".join([*lines, *(f"  WARNING: {trouble}" for trouble in self.troubles)])


def tension(
    first: FlowPrior,
    second: FlowPrior,
    *,
    shared_prior: Any,
    shared: Sequence[str] | None = None,
    particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Tension:
    """Return how well two experiments agree.

    Arguments:
        first, second: their posteriors, learned from chains; parameters go by name.
        shared_prior, shared: as of ``combine``.
        particles: of each run of the evidence.
        seed: of everything random.
        progress: whether to show a bar.

    Returns:
        Bayes ratio, suspiciousness and shift, with their errors. Where one experiment has hardly
        been where the other puts it, ``troubles`` say so, and ``is_reliable`` is false.

    Raises:
        TypeError, ValueError: as ``combine``.
    """
    common = SharedPrior.of(shared_prior, shared)
    ways = [Experiments.of(pair, common) for pair in ((first, second), (second, first))]
    one, other = (combined_evidence(way, particles, seed, progress=progress) for way in ways)
    # Either may be the prior: they are two estimates of one number.
    apart = abs(one.log_ratio - other.log_ratio) / 2
    error = math.hypot(max(one.log_ratio_err, other.log_ratio_err), apart)
    moments = _moments(ways[0], one.draws, seed)
    troubles = [text.replace("experiment 0", "the first") for text in one.troubles]
    troubles = [text.replace("experiment 1", "the second") for text in troubles]
    if apart > 3 * math.hypot(one.log_ratio_err, other.log_ratio_err):
        troubles.append(
            f"log R is {one.log_ratio:.2f} with the first for a prior, {other.log_ratio:.2f} with "
            "the second"
        )
    shift, shift_err = _shift(ways[0], seed)
    return Tension(
        log_ratio=(one.log_ratio + other.log_ratio) / 2,
        log_ratio_err=error,
        log_suspiciousness=moments.log_s,
        log_suspiciousness_err=moments.error,
        dimension=moments.dimension,
        shift=shift,
        shift_err=shift_err,
        parameters=len(common.names),
        overlaps=(one.overlaps[0], one.overlaps[1]),
        troubles=tuple(troubles),
    )


class _Moments(NamedTuple):
    log_s: float
    error: float
    dimension: float


def _moments(together: Experiments, draws: Tensor, seed: int) -> _Moments:
    """Return log S with its error, and the dimensions that both constrain."""
    log_s, variance, dimension = 0.0, 0.0, 0.0
    both: Any = 0.0
    for index, prior in enumerate(together.priors):
        source = generator(seed, f"tension of {index}", prior.like.device)
        own_draws = draws_of(prior, _DRAWS, source)
        own = _log_likelihood(together, index, own_draws)
        own = own[torch.isfinite(own)]
        known = _DRAWS if prior.reference is None else prior.reference.effective
        log_s -= own.mean().item()
        # The mean is of the flow, which knows its law as well as its samples do.
        variance += own.var().item() * (1 / len(own) + 1 / known)
        variance += _learning(prior, own_draws, together.part(draws, index))
        dimension += 2 * own.var().item()
        both = both + _log_likelihood(together, index, together.part(draws, index))
    finite = both[torch.isfinite(both)]
    log_s += finite.mean().item()
    variance += finite.var().item() / len(finite)
    return _Moments(log_s, math.sqrt(variance), dimension - 2 * finite.var().item())


def _learning(prior: FlowPrior, own: Tensor, both: Tensor) -> float:
    """Return the variance by learning of how much likelier own draws are than those of both."""
    if prior.spread is None:
        return 0.0
    here, there = (prior.learning_log_weights(x).double().mean(0) for x in (own, both))
    return (here - there).square().sum().item()


def _log_likelihood(together: Experiments, index: int, value: Tensor) -> Tensor:
    """Return the log-likelihood of an experiment, but for its evidence: ``(N,)``."""
    with torch.no_grad():
        found = together.priors[index].log_prob(value)
        common = together.common.log_prob(together.shared_of(value, index))
    return (found - common).double()


def _shift(together: Experiments, seed: int) -> tuple[float, float]:
    """Return how many sigma the parameters of both are apart, and the error of that."""
    means, covariances, known = [], [], []
    for index, prior in enumerate(together.priors):
        source = generator(seed, f"shift of {index}", prior.like.device)
        x = together.shared_of(draws_of(prior, _DRAWS, source), index).double().cpu()
        means.append(x.mean(0))
        covariances.append(torch.cov(x.mT).reshape(len(x[0]), -1))
        known.append(_DRAWS if prior.reference is None else prior.reference.effective)
    apart, size = means[0] - means[1], len(means[0])
    chi = (apart @ torch.linalg.solve(covariances[0] + covariances[1], apart)).item()
    # Of a distance of covariance known from n samples, and of means with an error of their own.
    error = math.sqrt(chi) * math.sqrt(0.5 / min(known)) + 1 / math.sqrt(min(known))
    return _sigma(chi, size), error


def _sigma(chi: float, dimension: float) -> float:
    """Return the two-sided sigma of a normal law of a chi-square of so many dimensions."""
    # By the logarithm of the chance: that of ten sigma is no number in double precision.
    chance = special.gammaincc(0.5 * dimension, 0.5 * chi)
    if chance > 1e-300:
        return abs(float(special.ndtri(0.5 * chance)))
    return math.sqrt(chi)


def _factor(log_ratio: float) -> str:
    size = abs(log_ratio)
    word = "more" if log_ratio > 0 else "less"
    return f"{math.exp(size):.2g} times {word}" if size < 20 else f"exp({size:.0f}) times {word}"
