"""Posteriors of the laws of nuts.py, observed with normal noise: in closed form, or by weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from nuts import Mixture
from torch import Tensor

__all__ = ["NormalMixture", "known_posterior", "most_even"]


class NormalMixture(NamedTuple):
    """Weights (J,), means (J, D) and covariances (J, D, D), in float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def near(cls, law: Any) -> NormalMixture | None:
        """Return what a law is, or, of a Student t law, what is near to it; None of others."""
        if isinstance(law, Mixture):
            parts = law.component_distribution
            weights = law.mixture_distribution.probs
            return cls(*(t.double() for t in (weights, parts.mean, parts.covariance_matrix)))
        if isinstance(law, dist.MultivariateStudentT):
            tril = law.scale_tril.double()
            return cls(torch.ones(1).double(), law.loc.double()[None], (tril @ tril.mT)[None])
        return None

    def seen(self, y: Tensor, noise: float) -> NormalMixture:
        """Return the posteriors given observations ``(..., D)`` with normal noise."""
        total = self.covariances + noise**2 * torch.eye(self.means.shape[1]).double()
        apart = y.double()[..., None, :] - self.means
        gain = self.covariances @ torch.linalg.inv(total)
        log_weights = self.weights.log() + self.normal(total).log_prob(apart)
        means = self.means + (gain @ apart[..., None])[..., 0]
        left = self.covariances - gain @ self.covariances
        return NormalMixture(log_weights.softmax(-1), means, left)

    @staticmethod
    def normal(covariances: Tensor) -> Any:
        zero = torch.zeros(covariances.shape[-1]).double()
        return torch.distributions.MultivariateNormal(zero, covariances)

    def joint(self, x: Tensor) -> Tensor:
        """Return the log-densities of the weighted parts at ``(N, D)``: ``(N, J)``."""
        return self.weights.log() + self.normal(self.covariances).log_prob(x[:, None] - self.means)

    def sample(self, count: int) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True)
        noise = torch.randn(count, self.means.shape[1], 1).double()
        return self.means[which] + (torch.linalg.cholesky(self.covariances)[which] @ noise)[..., 0]


def most_even(law: Any, samples: Tensor, noise: float) -> Tensor:
    """Return the sample whose posterior is spread over the modes most evenly."""
    mixture = NormalMixture.near(law)
    assert mixture is not None
    weights = mixture.seen(samples, noise).weights
    return samples[torch.distributions.Categorical(weights).entropy().argmax()]


def known_posterior(law: Any, seen: Tensor, noise: float, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and sd of the posterior: of draws that are weighed to it."""
    pyro.set_rng_seed(7)
    mixture = NormalMixture.near(law)
    if mixture is None:
        x = torch.cat([law.sample((count // 20,)) for _ in range(20)]).double()
        log_weights = dist.Normal(x, noise).to_event(1).log_prob(seen.double())
    else:
        # The likelihood is in both, and cancels: what is left is near to one.
        x = mixture.seen(seen, noise).sample(count)
        log_weights = law.log_prob(x.to(seen)).double() - mixture.joint(x).logsumexp(1)
    weights = log_weights.softmax(0)
    mean = weights @ x
    return mean, (weights @ (x - mean).square()).sqrt()
