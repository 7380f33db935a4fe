r"""Quantiles of standard normal noise, right in both tails.

A law with distribution function F takes noise u to :math:`F^{-1}(\Phi(u))`. Written like this it
ends where one minus a probability is one, at u = 5.4 in single precision and 8.3 in double: far
data then pull at a prior that has no tail. So each law is written here in whichever of

.. math:: \Phi(u), \quad 1 - \Phi(u) = \Phi(-u), \quad \log\Phi(u), \quad \log\Phi(-u)

keeps its digits, always in float64. A law that is not here goes by its own ``icdf``, and
:func:`resolved_until` says how far that holds.

References:
    Johnson, Kotz and Balakrishnan (1994, 1995), Continuous Univariate Distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from scipy import special
from torch import Tensor
from torch.distributions import Distribution

from pyro_stad.model.quantiles_scipy import shaped_quantile

__all__ = ["has_quantile", "quantile", "resolved_until"]


@dataclass(frozen=True)
class _Noise:
    """Standard normal noise in float64, with the probabilities on either side of it.

    Attributes:
        u: the noise.
        below: whether the lower tail is the nearer one.
    """

    u: Tensor

    @property
    def below(self) -> Tensor:
        return self.u < 0

    # Not by torch's ndtr, which is two percent off at eight standard deviations.
    @property
    def lower(self) -> Tensor:
        return self.log_lower.exp()

    @property
    def upper(self) -> Tensor:
        return self.log_upper.exp()

    @property
    def log_lower(self) -> Tensor:
        return _log_ndtr(self.u)

    @property
    def log_upper(self) -> Tensor:
        return _log_ndtr(-self.u)

    @property
    def nearer(self) -> Tensor:
        """The probability of the nearer tail, at most one half."""
        return _log_ndtr(-self.u.abs()).exp()


def _log_ndtr(u: Tensor) -> Tensor:
    """Return the logarithm of the normal distribution function; torch's can't be vmapped."""
    half = u / math.sqrt(2)
    far = torch.log(0.5 * torch.special.erfcx(-half.clamp(max=0))) - half.square()
    return torch.where(u < 0, far, torch.log1p(-0.5 * torch.erfc(half)))


def has_quantile(fn: Distribution) -> bool:
    """Return whether ``fn`` is a law that is written here."""
    return _kind(fn) is not None


def quantile(fn: Distribution, u: Tensor) -> Tensor:
    """Return the quantiles of a law that is written here, at noise ``u``.

    They are of the dtype of ``u``, and inside the open support.
    """
    kind = _kind(fn) or type(fn)
    return _inside(kind, fn, _QUANTILES[kind](fn, _Noise(u.double())).to(u.dtype))


def _kind(fn: Distribution) -> type | None:
    """Return the class of ``fn``, or the nearest of its bases, that is written here."""
    return next((kind for kind in type(fn).__mro__ if kind in _QUANTILES), None)


def resolved_until(dtype: torch.dtype) -> float:
    """Return the noise up to which one minus a probability, in ``dtype``, keeps two digits."""
    return -float(special.ndtri(100 * torch.finfo(dtype).eps))


def _inside(kind: type, fn: Any, x: Tensor) -> Tensor:
    """Move quantiles that were rounded to an end of the support back to its inside."""
    if kind in _POSITIVE:
        return x.clamp_min(torch.finfo(x.dtype).tiny)
    if kind not in _BOUNDED:
        return x
    low, high = (torch.as_tensor(end).to(x) for end in _BOUNDED[kind](fn))
    step = torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
    # Towards zero floating-point numbers are dense.
    first = torch.where(low == 0, torch.finfo(x.dtype).tiny, low + step)
    last = torch.where(high == 0, -torch.finfo(x.dtype).tiny, high - step)
    return torch.minimum(torch.maximum(x, first), last)


def _uniform(fn: Any, at: _Noise) -> Tensor:
    low, high = fn.low.double(), fn.high.double()
    width = high - low
    return torch.where(at.below, low + width * at.lower, high - width * at.upper)


def _exponential(fn: Any, at: _Noise) -> Tensor:
    return -at.log_upper / fn.rate


def _weibull(fn: Any, at: _Noise) -> Tensor:
    return fn.scale * (-at.log_upper) ** (1 / fn.concentration.double())


def _pareto(fn: Any, at: _Noise) -> Tensor:
    return fn.scale * torch.exp(-at.log_upper / fn.alpha)


def _generalised_pareto(fn: Any, at: _Noise) -> Tensor:
    shape = fn.concentration.double()
    flat = shape.abs() < 1e-12
    bent = torch.expm1(-shape * at.log_upper) / torch.where(flat, 1.0, shape)
    return fn.loc + fn.scale * torch.where(flat, -at.log_upper, bent)


def _kumaraswamy(fn: Any, at: _Noise) -> Tensor:
    a, b = fn.concentration1.double(), fn.concentration0.double()
    # 1 - x^a is the upper tail to the power 1 / b.
    return (-torch.expm1(at.log_upper / b)) ** (1 / a)


def _gumbel(fn: Any, at: _Noise) -> Tensor:
    return fn.loc - fn.scale * torch.log(-at.log_lower)


def _half_normal(fn: Any, at: _Noise) -> Tensor:
    far = -torch.special.ndtri(0.5 * at.upper)
    near = math.sqrt(2) * torch.special.erfinv(at.lower)
    return fn.scale * torch.where(at.below, near, far)


def _half_cauchy(fn: Any, at: _Noise) -> Tensor:
    quarter = 0.5 * math.pi
    return fn.scale * torch.where(
        at.below, torch.tan(quarter * at.lower), 1 / torch.tan(quarter * at.upper)
    )


def _cauchy(fn: Any, at: _Noise) -> Tensor:
    return fn.loc + fn.scale * torch.sign(at.u) / torch.tan(math.pi * at.nearer)


def _laplace(fn: Any, at: _Noise) -> Tensor:
    return fn.loc - fn.scale * torch.sign(at.u) * torch.log(2 * at.nearer)


def _asymmetric_laplace(fn: Any, at: _Noise) -> Tensor:
    left, right = fn.left_scale.double(), fn.right_scale.double()
    below = left * (at.log_lower - torch.log(left / (left + right)))
    above = -right * (at.log_upper - torch.log(right / (left + right)))
    return fn.loc + torch.where(below < 0, below, above)


def _soft_laplace(fn: Any, at: _Noise) -> Tensor:
    return fn.loc - fn.scale * torch.sign(at.u) * torch.log(torch.tan(0.5 * math.pi * at.nearer))


def _logistic(fn: Any, at: _Noise) -> Tensor:
    return fn.loc + fn.scale * (at.log_lower - at.log_upper)


def _skew_logistic(fn: Any, at: _Noise) -> Tensor:
    # The distribution function is that of a logistic law to the power a.
    log_root = at.log_lower / fn.asymmetry.double()
    return fn.loc + fn.scale * (log_root - torch.log(-torch.expm1(log_root)))


def _continuous_bernoulli(fn: Any, at: _Noise) -> Tensor:
    # F(x) = (exp(h x) - 1) / (exp(h) - 1), with h the log-odds; from the right, with -h.
    h = fn.logits.double()
    flat = h.abs() < 1e-6
    h = torch.where(flat, 1.0, h)
    left = torch.where(flat, at.lower, torch.log1p(at.lower * torch.expm1(h)) / h)
    right = torch.where(flat, at.upper, -torch.log1p(at.upper * torch.expm1(-h)) / h)
    return torch.where(at.below, left, 1 - right)


def _gamma(fn: Any, at: _Noise) -> Tensor:
    return shaped_quantile("gamma", at.u, fn.concentration) / fn.rate


def _beta(fn: Any, at: _Noise) -> Tensor:
    return shaped_quantile("beta", at.u, fn.concentration1, fn.concentration0)


def _student(fn: Any, at: _Noise) -> Tensor:
    return fn.loc + fn.scale * shaped_quantile("student", at.u, fn.df)


_QUANTILES: dict[type, Callable[[Any, _Noise], Tensor]] = {
    dist.AsymmetricLaplace: _asymmetric_laplace,
    torch.distributions.Beta: _beta,
    torch.distributions.Cauchy: _cauchy,
    torch.distributions.ContinuousBernoulli: _continuous_bernoulli,
    torch.distributions.Exponential: _exponential,
    torch.distributions.Gamma: _gamma,
    torch.distributions.Gumbel: _gumbel,
    torch.distributions.HalfCauchy: _half_cauchy,
    torch.distributions.HalfNormal: _half_normal,
    torch.distributions.Kumaraswamy: _kumaraswamy,
    torch.distributions.Laplace: _laplace,
    dist.Logistic: _logistic,
    torch.distributions.Pareto: _pareto,
    dist.SkewLogistic: _skew_logistic,
    dist.SoftLaplace: _soft_laplace,
    torch.distributions.StudentT: _student,
    torch.distributions.Uniform: _uniform,
    torch.distributions.Weibull: _weibull,
}
if "GeneralizedPareto" in torch.distributions.__all__:  # since torch 2.9
    _QUANTILES[torch.distributions.GeneralizedPareto] = _generalised_pareto
_POSITIVE = (
    torch.distributions.Exponential,
    torch.distributions.Gamma,
    torch.distributions.HalfCauchy,
    torch.distributions.HalfNormal,
    torch.distributions.Weibull,
)
_BOUNDED: dict[type, Callable[[Any], tuple[Any, Any]]] = {
    torch.distributions.Beta: lambda fn: (0.0, 1.0),
    torch.distributions.ContinuousBernoulli: lambda fn: (0.0, 1.0),
    torch.distributions.Kumaraswamy: lambda fn: (0.0, 1.0),
    torch.distributions.Uniform: lambda fn: (fn.low, fn.high),
}
