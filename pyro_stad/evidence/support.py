r"""What an evidence owes to samples: the samples of a learned prior, reweighted by the likelihood.

A flow may put mass where there are no samples, in a hollow or between modes, and a likelihood that
pulls there makes much of it. The samples that a prior keeps (:mod:`pyro_stad.data.reference`)
tell, without any density:

.. math:: Z \approx \frac1M \sum_i L(\theta_i), \qquad \theta_i \text{ samples, all other latent
    sites from their priors.}

Many likelihoods are too sharp for that: hardly a sample is left. They are taken to a power
:math:`\beta`, the largest at which draws of the flow itself are worth at least fifty, by Kish's
effective sample size :math:`(\sum w)^2/\sum w^2`, w being :math:`L^\beta`. At that power,

.. math:: \delta = \log \frac{\overline{L(\theta_i)^\beta}}{\overline{L(\theta'_j)^\beta}},
    \qquad \epsilon^2 = \frac{1}{\mathrm{ess}} + \frac{f}{\mathrm{ess}'},

with :math:`\theta'_j` the flow's draws and ess their effective size, is zero but for chance if
samples and flow have the same law around the posterior; :math:`\mathrm{ess}'` is what as many draws
as there are samples would have, f the number of samples that are worth one. :math:`\exp\delta`
says how much more mass the samples have there. Where :math:`\beta = 1` it is the whole posterior's,
and the flow's mean is known better from the estimate itself. A smaller power says that the flow has
interpolated between samples, at a scale that they do not resolve; that is what it is for.

What follows for an evidence, by one rule:

- the *error of learning*, as far as samples can tell it, is in the error of log Z. Of a flow that
  may be off by :math:`\tau` here, the error has, with that for a prior,
  the mean :math:`-\delta\, \tau^2 / (\tau^2 + \epsilon^2)` and the variance
  :math:`\tau^2 \epsilon^2 / (\tau^2 + \epsilon^2)`, and the mean of its square is their sum.
  :math:`\tau` is what the members of the fit make of the posterior: the root of the sum of the
  squared shifts of its log-evidence (:mod:`pyro_stad.learn.spread`). For a prior without members
  it is that of many places, as wide as a hundred draws (:mod:`pyro_stad.density.typical`). What
  :math:`\delta^2` has above four times what both allow is added to :math:`\tau^2`:
  samples are believed rather than members. And :math:`\tau^2` is no less than 1/N for samples worth
  N, nor, where nearly all of them count, than :math:`(N/\mathrm{ess} - 1)/N`: under a wide
  likelihood a flow has no more to say than the samples that it has learned;
- an answer with :math:`|\delta|` above three :math:`\epsilon` and half a nat is refused: there is
  mass where there are no samples.

References:
    Kish (1965), Survey Sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.density import typical_error
from pyro_stad.evidence.support_record import Support
from pyro_stad.learn import shifts
from pyro_stad.model.noise import LatentProblem

__all__ = ["SupportNoise", "sample_support", "support"]

_ENOUGH, _HALVINGS = 50.0, 30
_MOST_ROWS, _MOST_LOOPS, _FEWEST_DRAWS, _CHUNK = 10_000, 1000, 1000, 1000
# Where one of the two has no mass at all, in nats.
_NOTHING = 100.0


class SupportNoise(NamedTuple):
    """Noise of samples, ``(M, D)``, and of draws; and what is known of the samples.

    Attributes:
        samples_a_row: how many samples are worth one.
        typical: error of learning at other places, in nats, where members do not tell it.
        learning: log-weights of the draws for the error of learning, ``(M, K)``, or None.
    """

    samples: Tensor
    draws: Tensor
    samples_a_row: float
    typical: float
    learning: Tensor | None

    @staticmethod
    def of(problem: LatentProblem, seed: int, most: int = _MOST_ROWS) -> SupportNoise | None:
        """Return the noise of ``most`` samples at the most, for all problems with these priors.

        None if they kept no samples.
        """
        found = [flow.prior.reference for flow in problem.flows]
        kept = [reference for reference in found if reference is not None]
        if not kept or len(kept) < len(found):
            return None
        source = generator(seed, "support", problem.like.device)
        if problem.model.loops:
            most = min(most, _MOST_LOOPS)
        count = min(most, *(len(reference.rows) for reference in kept))
        # Draws can be had: there are no fewer for a prior that keeps few samples.
        samples, draws = (
            torch.randn(
                rows, problem.size, generator=source, dtype=problem.like.dtype,
                device=problem.like.device,
            )
            for rows in (count, max(_FEWEST_DRAWS, most // 2))
        )  # fmt: skip
        variance, learning = 0.0, None
        if all(flow.prior.spread is not None for flow in problem.flows):
            learning = problem.learning(draws, problem.white(draws))
        for flow, reference in zip(problem.flows, kept):
            with torch.no_grad():
                noise = flow.prior.transport.pull(reference.rows).to(samples)
            # Each copy in a plate gets them in another order: independent draws of one law.
            copies = range(flow.columns.start, flow.columns.stop, flow.features)
            for start in copies:
                order = torch.randperm(len(noise), generator=source, device=source.device)
                samples[:, start : start + flow.features] = noise[order[:count]]
            if learning is None:
                variance += len(copies) * typical_error(flow.prior, reference) ** 2
        a_row = max(len(r.rows) / r.effective for r in kept)
        return SupportNoise(samples, draws, a_row, math.sqrt(variance), learning)


def support(problem: LatentProblem, noise: SupportNoise, learning: Tensor | None = None) -> Support:
    """Return what the posterior of ``problem`` owes to samples.

    Arguments:
        problem: the problem.
        noise: of samples and draws.
        learning: log-weights of posterior draws for the error of learning, ``(N, K)``, if there
            are any: better than the draws from the priors, reweighted.
    """
    with torch.no_grad():
        # In parts: with many data, a likelihood of all rows at once would not fit into memory.
        samples, draws = (
            torch.cat([problem.log_likelihood(part).double() for part in u.split(_CHUNK)])
            for u in noise[:2]
        )
    found = _compared(samples, draws, noise)
    expected = found.expected if learning is None else _norm(torch.nan_to_num(shifts(learning)))
    return replace(found, expected=max(expected, _least(found, noise)))


@own_context()
def sample_support(
    model: Callable[..., Any], *args: Any, seed: int = 0, **kwargs: Any
) -> Support | None:
    """Say how much of a model's posterior rests on the samples of its learned priors.

    For a posterior by NUTS or SVI, as ``log_evidence`` does it for its own: the samples that each
    learned prior keeps, reweighted by the model's likelihood, against draws of the flow.

    Arguments:
        model: a Pyro model with learned priors among its latent sites.
        args, kwargs: what it is called with, its observations among them.
        seed: of everything random.

    Returns:
        The comparison, whose ``trouble`` is None where samples and flow agree; or None if the model
        has no learned priors, or they kept no samples, as those of older files.

    Raises:
        TypeError, ValueError: for a model that ``log_evidence`` does not take.

    References:
        Kish (1965), Survey Sampling.
    """
    problem = LatentProblem(model, *args, **kwargs)
    noise = SupportNoise.of(problem, check_seed(seed))
    return None if noise is None else support(problem, noise)


def _compared(samples: Tensor, draws: Tensor, noise: SupportNoise) -> Support:
    """Compare log-likelihoods ``(M,)`` at samples and at draws of the flow."""
    power = _power(draws)
    # Samples that are worth one, for each draw that there is.
    alike = noise.samples_a_row * len(draws) / len(samples)
    by_samples, by_draws = (log_mean_exp(_tempered(x, power)).item() for x in (samples, draws))
    # Where neither has any, nothing is known, and nothing is said against the estimate.
    neither = math.isinf(by_samples) and math.isinf(by_draws)
    ratio = 0.0 if neither else min(max(by_samples - by_draws, -_NOTHING), _NOTHING)
    worth = max(_effective(draws, power), 1.0)
    ess = _effective(samples, 1.0)
    return Support(
        rows=len(samples),
        ess=ess,
        power=power,
        log_ratio=ratio,
        error=math.sqrt((1 + alike) / worth),
        expected=_expected(draws, power, noise),
        log_z=log_mean_exp(samples).item(),
        # That of the flow's draws: of the samples' own weights, few would not know of the rest.
        log_z_err=math.sqrt(alike / worth) if power == 1.0 else math.inf,
    )


def _expected(draws: Tensor, power: float, noise: SupportNoise) -> float:
    """Return the error of learning that is expected of the tempered posterior, in nats."""
    if noise.learning is None:
        return noise.typical
    shares = torch.softmax(_tempered(draws, power), 0)
    return _norm(torch.nan_to_num(shares @ noise.learning.to(shares)))


def _least(found: Support, noise: SupportNoise) -> float:
    """Return how well samples can tell a smooth functional of their law, in nats."""
    worth = found.rows / noise.samples_a_row
    spread = found.rows / max(found.ess, 1.0) - 1
    return math.sqrt(min(max(spread, 0.0), 1.0) / worth)


def _norm(shift: Tensor) -> float:
    return shift.square().sum().sqrt().item()


def _power(draws: Tensor) -> float:
    """Return the largest power at which the weights of draws are worth enough, by bisection."""
    if _effective(draws, 1.0) >= _ENOUGH:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(draws, middle) >= _ENOUGH else (low, middle)
    return low


def _tempered(log_likelihood: Tensor, power: float) -> Tensor:
    # To the power zero, what is impossible stays so.
    tempered = power * log_likelihood
    return torch.where(torch.isneginf(log_likelihood), -math.inf, tempered)


def _effective(log_likelihood: Tensor, power: float) -> float:
    share = torch.softmax(_tempered(log_likelihood, power), 0)
    found = effective_size(share).item()
    return 0.0 if math.isnan(found) else found
