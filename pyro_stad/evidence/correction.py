r"""From the distilled density to the exact trace: what it does to the evidence and the posterior.

With the draws of a posterior under distilled priors :math:`\hat p`, and the exact-trace densities p
of the same flows,

.. math:: \log Z_p - \log Z_{\hat p} = \log E_{\hat p(\theta | y)} \exp \sum_{sites}
    \big(\log p(\theta) - \log \hat p(\theta)\big),

about a thousand exact traces. The same weights carry the draws to the posterior under the exact
densities. The Pareto shape of the weights says whether their mean can be believed.

References:
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_stad._weights import log_mean_exp, smoothed
from pyro_stad.data.effective import ess
from pyro_stad.density import FlowPrior

__all__ = ["Correction", "correct", "distilled", "thinned", "weighed"]

_MOST_DRAWS = 1000


class Correction(NamedTuple):
    """What the exact trace changes.

    Attributes:
        value, error: of log Z, in nats, with its standard error.
        khat: Pareto shape of the weights.
        weights: of the draws that were used, ``(n,)``; they sum to one.
        used: their places among the draws of all chains, one chain after the other, ``(n,)``.
        effective: draws of equal weight that they are worth, before they were smoothed.
    """

    value: float
    error: float
    khat: float
    weights: Tensor
    used: Tensor
    effective: float


def distilled(flows: dict[str, tuple[FlowPrior, Tensor]]) -> list[tuple[FlowPrior, Tensor]]:
    """Return those of the learned priors whose density is not by the exact trace."""
    return [(prior, draws) for prior, draws in flows.values() if not prior.likelihood.is_exact]


def correct(
    flows: list[tuple[FlowPrior, Tensor]],
    count: int,
    length: int,
    more: Callable[[Tensor], Tensor] | None = None,
) -> Correction:
    """Measure what exact laws change.

    At most about a thousand draws are used, evenly spaced in every chain.

    Arguments:
        flows: learned priors, with draws in their coordinates, chain after chain,
            ``(count * length, ..., D)``.
        count, length: number of chains, and draws of each.
        more: what else there is in the ratio of exact to distilled, of the draws at some places.
    """
    places = thinned(count, length)
    log_ratio: Any = 0.0 if more is None else more(places)
    for prior, draws in flows:
        log_ratio = log_ratio + _exact_less_distilled(prior, draws[places.to(draws.device)])
    return weighed(log_ratio, places, count)


def thinned(count: int, length: int, most: int = _MOST_DRAWS) -> Tensor:
    """Return the places of about ``most`` draws among those of all chains, evenly in each."""
    thin = max(1, math.ceil(count * length / most))
    return torch.arange(count * length).reshape(count, length)[:, ::thin].reshape(-1)


def weighed(log_ratio: Tensor, places: Tensor, count: int) -> Correction:
    """Return what log-ratios of densities do to log Z and to draws.

    Arguments:
        log_ratio: of each draw, chain after chain, ``(n,)``.
        places: of these draws among all.
        count: number of chains.
    """
    log_ratio = log_ratio.double()
    found = smoothed(log_ratio)
    # The factor that smoothing takes away with the normalisation.
    value = log_mean_exp(log_ratio).item()
    ratios = np.exp((log_ratio - log_ratio.max()).cpu().numpy()).reshape(count, -1)
    independent = ess(torch.as_tensor(ratios)) if ratios.std() > 0 else ratios.size
    relative = ratios.std() / ratios.mean() / math.sqrt(independent)
    # Equal weights have no tail; of them the fit of one says infinity.
    shape = found.khat.item() if bool((log_ratio != log_ratio[0]).any()) else -math.inf
    weights = found.log_weights.exp()
    return Correction(value, float(relative), shape, weights, places, found.effective.item())


def _exact_less_distilled(prior: FlowPrior, values: Tensor) -> Tensor:
    """Return log p - log p-hat of one site at its values ``(n, ..., D)``, summed: ``(n,)``."""
    # One density, whatever plates it is in.
    alone = prior.with_likelihood(prior.likelihood)
    exact = alone.exact()
    with torch.no_grad():
        difference = exact.log_prob(values) - alone.log_prob(values)
    return difference.reshape(len(values), -1).sum(-1)
