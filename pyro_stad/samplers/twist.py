r"""The twist: a guess, at a noisy point, of the likelihood of the data that will become of it.

The likelihood at :math:`\hat x`, as it is often taken, is too sure: it forgets how far
the data may still be from their mean. Were that normal with variance :math:`\rho^2`, and the
likelihood with variance :math:`1/\kappa`, the right one would have :math:`1/\kappa + \rho^2`; so

.. math:: \log\psi(y) = \beta\, \log L(\hat x(y)), \qquad \beta = \frac{1}{1 + \kappa\rho^2} .

The curvature is :math:`\kappa = E|Hv|^2 / E\,v\cdot Hv` with the Hessian H of :math:`-\log L` and
random signs v: of a likelihood that sees some coordinates only, the curvature of those. It is
taken where the data may be, about their mean, which may lie between two modes. On a
mixture in 16 dimensions, half of them observed, the evidence from 512 particles had an error of 0.1
nat, and of 1.7 with :math:`\beta = 1`.

References:
    Chung, Kim, Mccann, Klasky and Ye (2023), Diffusion Posterior Sampling for General Noisy Inverse
    Problems; Efron (2011), Tweedie's Formula and Selection Bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad._random import signs
from pyro_stad.divergence import AbstractDivergence
from pyro_stad.fields import AbstractAngularField
from pyro_stad.ode import time_like

__all__ = ["TwistedProblem", "curvature", "seen", "tamed"]

# The cosine from which on a point says nothing of its data, and the most that they may vary.
_NOISE, _LARGEST = 1e-3, 4.0
_DEEPEST = 30.0  # below the largest, in nats, a twist goes no farther


class TwistedProblem(NamedTuple):
    """What is sampled.

    Attributes:
        field: a field on a Gaussian path.
        divergence: of the field, for the variance of the data given a point.
        log_likelihood: of whitened data, ``(N, *event_shape)`` to ``(N,)``, differentiable.
        chunk_size: network rows worked on at a time.
    """

    field: AbstractAngularField
    divergence: AbstractDivergence
    log_likelihood: Callable[[Tensor], Tensor]
    chunk_size: int


def seen(problem: TwistedProblem, angle: float, y: Tensor) -> tuple[Tensor, ...]:
    """Return mean and variance of the data, log-likelihood there, and its slope in ``y``."""
    t, divergence = time_like(y, angle), problem.divergence
    known = math.cos(angle) >= _NOISE
    # One pass for both, unless the trace takes products, of which no graph must be kept.
    both = known and not divergence.passes(problem.field.features)
    trace = None
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        if both:
            velocity, trace = divergence.velocity_and_divergence(problem.field, t, point)
        else:
            velocity = problem.field.velocity(t, point)
        mean = math.cos(angle) * point - math.sin(angle) * velocity
        fit = problem.log_likelihood(mean)
        if not fit.requires_grad:
            raise ValueError(
                "the likelihood has no gradient in the latent site (is it detached in the model?), "
                "and without one there is nothing to tilt by. Use method='smc'"
            )
        (slope,) = torch.autograd.grad(fit.sum(), point)
    if known and trace is None:
        with torch.no_grad():
            trace = divergence(problem.field, t, y)
    slope = torch.nan_to_num(slope, 0.0, 0.0, 0.0)
    return mean.detach(), _variance(angle, y, trace), fit.detach(), slope


def tamed(fit: Tensor, beta: Tensor, variance: Tensor) -> Tensor:
    """Return log-likelihoods of runs, of which the twist is nowhere far below the largest.

    A mean of the data may be where there is no likelihood, and the data not: the farther they may
    be from it, the less is a twist below the others there.
    """
    some = torch.isfinite(fit)
    top = torch.where(some, fit, -math.inf).amax(1, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    wall = (1 / variance).clamp_max(_DEEPEST)
    return torch.where(some, torch.maximum(fit, top - _DEEPEST / beta), top - wall / beta)


def _variance(angle: float, y: Tensor, trace: Tensor | None) -> Tensor:
    """Return the variance of a coordinate of the data given points, the mean of all, ``(B,)``."""
    if trace is None:
        return y.new_ones(len(y))  # of whitened data
    found = math.sin(angle) ** 2 * (1 - math.tan(angle) * trace.detach() / y[0].numel())
    return torch.nan_to_num(found, 1.0, 1.0, 0.0).clamp(0.0, _LARGEST)


def curvature(
    problem: TwistedProblem, mean: Tensor, rho: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the curvature of the log-likelihood where data may be, ``()``.

    Arguments:
        problem: field and likelihood.
        mean, rho: means ``(N, *event_shape)`` and standard deviations ``(N,)`` of the data.
        generator: source of randomness.
    """
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    x = mean + beside(rho, mean) * noise
    sign = signs(x.shape, generator, x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        fit = problem.log_likelihood(x)
        (slope,) = torch.autograd.grad(fit.sum(), x, create_graph=True)
        if not slope.requires_grad:
            return x.new_zeros(())  # of a likelihood that is linear where it is not flat
        (product,) = torch.autograd.grad((slope * sign).sum(), x)
    product = torch.nan_to_num(product, 0.0, 0.0, 0.0)
    square, form = product.square().sum(), -(sign * product).sum()
    return torch.where(form > 0, square / form.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
