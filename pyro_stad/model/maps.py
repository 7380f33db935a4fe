r"""Priors as maps of standard normal noise.

A flow prior is one by construction; a normal is :math:`\mu + L u`; a transformed law is the
transform of its base; what was cut is the map without its cut, which belongs to the likelihood
(:mod:`pyro_stad.model.noise`); every other law in one dimension goes by its quantiles,
:math:`F^{-1}(\Phi(u))` (:mod:`pyro_stad.model.quantiles`).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_stad.density import TruncatedPrior
from pyro_stad.model.quantiles import has_quantile, quantile, resolved_until

__all__ = ["from_normal", "noise_limit"]

_WRAPPERS = (Independent, dist.ExpandedDistribution, TransformedDistribution, TruncatedPrior)


def from_normal(fn: Distribution, u: Tensor) -> Tensor:
    """Carry standard normal ``u`` to draws from ``fn``; both of its batch and event shape.

    Raises:
        NotImplementedError: if ``fn`` is neither a map of normals nor has quantiles.
    """
    if isinstance(fn, (Independent, dist.ExpandedDistribution)):
        return from_normal(fn.base_dist, u)
    if isinstance(fn, TruncatedPrior):
        return from_normal(fn.prior, u)
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * u
    if isinstance(fn, (MultivariateNormal, LowRankMultivariateNormal)):
        return fn.loc + (fn.scale_tril @ u[..., None])[..., 0]
    # Before transforms: a half normal is the modulus of a normal, which has two modes in u.
    if has_quantile(fn):
        return quantile(fn, u)
    if isinstance(fn, TransformedDistribution):
        x = from_normal(fn.base_dist, u)
        for transform in fn.transforms:
            x = transform(x)
        return x
    # A law that only its author knows; see noise_limit.
    smallest = torch.finfo(u.dtype).eps
    return fn.icdf(torch.special.ndtr(u).clamp(smallest, 1 - smallest))


def noise_limit(fn: Distribution, dtype: torch.dtype) -> float:
    """Return the noise up to which ``from_normal`` is right, infinite for most laws.

    A law's own ``icdf`` takes a probability, and one minus it has no digits left far out.
    """
    while isinstance(fn, _WRAPPERS) and not has_quantile(fn):
        fn = fn.prior if isinstance(fn, TruncatedPrior) else fn.base_dist
    normal = isinstance(fn, (Normal, MultivariateNormal, LowRankMultivariateNormal))
    return torch.inf if normal or has_quantile(fn) else resolved_until(dtype)
