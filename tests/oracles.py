"""Closed forms that the tests check against: whitened mixtures and their fields."""

import torch

from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.paths import PATHS


def gaussian(features):
    """Return the standard normal in the form of a mixture."""
    return (
        torch.ones(1, dtype=torch.float64),
        torch.zeros(1, features, dtype=torch.float64),
        torch.eye(features, dtype=torch.float64)[None],
    )


def mixture_sample(count, features, seed=0):
    """Draw from the whitened five-component mixture in ``features`` dimensions."""
    return sample_mixture(random_mixture(features, seed=seed), count, seed)


def field_on(path_name, parts):
    """Return the exact field of a mixture on a named path."""
    return GaussianMixtureField(PATHS[path_name](), *parts)
