r"""Priors as maps of standard normal noise.

A flow prior is one by construction; a normal is :math:`\mu + L u`; a transformed law is the
transform of its base; what was cut is the map without its cut, which belongs to the likelihood
(:mod:`pyro_stad.model.noise`); every other law in one dimension goes by its quantiles,
:math:`F^{-1}(\Phi(u))` (:mod:`pyro_stad.model.quantiles`).
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from pyro_stad.density import WhitenedPrior, unwrap
from pyro_stad.model.quantiles import has_quantile, quantile, resolved_until

__all__ = ["from_normal", "noise_limit"]


def from_normal(fn: Distribution, u: Tensor) -> Tensor:
    """Carry standard normal ``u`` to draws from ``fn``; both of its batch and event shape.

    Raises:
        NotImplementedError: if ``fn`` is neither a map of normals nor has quantiles.
    """
    # Before transforms: a half normal is the modulus of a normal, which has two modes in u.
    return quantile(fn, u) if has_quantile(fn) else _carried(fn, u)


@singledispatch
def _carried(fn: Any, u: Tensor) -> Tensor:
    """Carry noise by the law that this one is made from, or by what its author knows of it."""
    inner = unwrap(fn)
    if inner is not None:
        return from_normal(inner, u)
    smallest = torch.finfo(u.dtype).eps  # See noise_limit.
    return fn.icdf(torch.special.ndtr(u).clamp(smallest, 1 - smallest))


@_carried.register
def _(fn: Normal, u: Tensor) -> Tensor:
    return fn.loc + fn.scale * u


@_carried.register(MultivariateNormal)
@_carried.register(LowRankMultivariateNormal)
def _(fn: Any, u: Tensor) -> Tensor:
    return fn.loc + (fn.scale_tril @ u[..., None])[..., 0]


@_carried.register
def _(fn: dist.MaskedDistribution, u: Tensor) -> Tensor:
    raise NotImplementedError("a law that is masked has no mass of one")


@_carried.register
def _(fn: WhitenedPrior, u: Tensor) -> Tensor:
    return fn.prior.transforms[0](u)


@_carried.register
def _(fn: TransformedDistribution, u: Tensor) -> Tensor:
    x = from_normal(fn.base_dist, u)
    for transform in fn.transforms:
        x = transform(x)
    return x


def noise_limit(fn: Distribution, dtype: torch.dtype) -> float:
    """Return the noise up to which ``from_normal`` is right, infinite for most laws.

    A law's own ``icdf`` takes a probability, and one minus it has no digits left far out.
    """
    while not has_quantile(fn) and (inner := unwrap(fn)) is not None:
        fn = inner
    known = has_quantile(fn) or _carried.dispatch(type(fn)) is not _carried.dispatch(object)
    return torch.inf if known else resolved_until(dtype)
