"""Closed forms that the tests check against: whitened mixtures and their fields."""

import torch

from pyro_stad.paths import PATHS
from pyro_stad.teacher import GaussianMixtureField


def mixture(features, components=5, seed=0):
    """Return weights, means and covariances of a mixture with mean zero and covariance I."""
    g = torch.Generator().manual_seed(seed)
    real = {"generator": g, "dtype": torch.float64}
    weights = torch.softmax(0.5 * torch.randn(components, **real), 0)
    means = 1.5 * torch.randn(components, features, **real)
    factors = 0.15 * torch.randn(components, features, features, **real)
    factors = factors + torch.diag_embed(0.5 + 0.5 * torch.rand(components, features, **real))
    covariances = factors @ factors.mT
    mean = weights @ means
    centred = means - mean
    total = torch.einsum("k,kij->ij", weights, covariances)
    total = total + torch.einsum("k,ki,kj->ij", weights, centred, centred)
    whiten = torch.linalg.inv(torch.linalg.cholesky(total))
    covariances = whiten @ covariances @ whiten.mT
    return weights, centred @ whiten.mT, 0.5 * (covariances + covariances.mT)


def gaussian(features):
    """Return the standard normal in the form of a mixture."""
    return (
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, features, dtype=torch.float64),
        torch.eye(features, dtype=torch.float64)[None],
    )


def sample(parts, count, seed=0):
    """Draw from a mixture."""
    weights, means, covariances = parts
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(weights, count, replacement=True, generator=g)
    noise = torch.randn(count, means.shape[1], generator=g, dtype=torch.float64)
    return means[which] + torch.einsum(
        "nij,nj->ni", torch.linalg.cholesky(covariances)[which], noise
    )


def mixture_sample(count, features, seed=0):
    """Draw from the whitened five-component mixture in ``features`` dimensions."""
    return sample(mixture(features, seed=seed), count, seed)


def field_on(path_name, parts):
    """Return the exact field of a mixture on a named path."""
    return GaussianMixtureField(PATHS[path_name](), *parts)
