r"""Priors as maps of standard normal noise.

A flow prior is one by construction; a normal is :math:`\mu + L u`; a transformed law is the
transform of its base; every other law in one dimension goes by its quantiles,
:math:`F^{-1}(\Phi(u))`, in which both tails are kept: where u is positive, by the upper tail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import special
from torch import Tensor
from torch.distributions import (
    Beta,
    Distribution,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    Uniform,
)

__all__ = ["from_normal"]


def from_normal(fn: Distribution, u: Tensor) -> Tensor:
    """Carry standard normal ``u`` to draws from ``fn``; both of its batch and event shape.

    Raises:
        NotImplementedError: if ``fn`` is neither a map of normals nor has quantiles.
    """
    if isinstance(fn, Independent):
        return from_normal(fn.base_dist, u)
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * u
    if isinstance(fn, MultivariateNormal):
        return fn.loc + (fn.scale_tril @ u[..., None])[..., 0]
    if isinstance(fn, TransformedDistribution) and _maps_one_to_one(fn):
        x = from_normal(fn.base_dist, u)
        for transform in fn.transforms:
            x = transform(x)
        return x
    if isinstance(fn, Gamma):
        return _quantile(special.gammaincinv, special.gammainccinv, u, fn.concentration) / fn.rate
    if isinstance(fn, Beta):
        # The upper tail of x is the lower one of 1 - x.
        a, b = fn.concentration1, fn.concentration0
        return torch.where(
            u < 0,
            _quantile(_beta_quantile, _beta_quantile, -u.abs(), a, b),
            1 - _quantile(_beta_quantile, _beta_quantile, -u.abs(), b, a),
        )
    if isinstance(fn, StudentT):
        # Symmetric: the lower tail is enough.
        lower = _quantile(_student_quantile, _student_quantile, -u.abs(), fn.df)
        return fn.loc - fn.scale * torch.sign(u) * lower
    # The far tails of float arithmetic: quantiles of 0 and 1 may be infinite.
    smallest = torch.finfo(u.dtype).eps
    return fn.icdf(torch.special.ndtr(u).clamp(smallest, 1 - smallest))


def _maps_one_to_one(fn: TransformedDistribution) -> bool:
    """Whether ``fn`` maps noise one to one, and not a uniform, which has quantiles anyway."""
    base = fn.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    return not isinstance(base, Uniform) and all(t.bijective for t in fn.transforms)


def _quantile(
    lower: Callable[..., Any], upper: Callable[..., Any], u: Tensor, *shapes: Tensor
) -> Tensor:
    """Return quantiles that SciPy knows, from the nearer tail."""
    # In float64 on the CPU, where SciPy is; nobody differentiates an evidence.
    parts = (t.detach().double().cpu().numpy() for t in torch.broadcast_tensors(u, *shapes))
    z, *numbers = parts
    tail = special.ndtr(-abs(z))
    below, above = (torch.as_tensor(tail_of(*numbers, tail)).to(u) for tail_of in (lower, upper))
    return torch.where(u < 0, below, above)


def _beta_quantile(a: Any, b: Any, tail: Any) -> Any:
    return special.betaincinv(a, b, tail)


def _student_quantile(freedom: Any, tail: Any) -> Any:
    return special.stdtrit(freedom, tail)
