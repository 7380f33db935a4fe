r"""Posterior sampling in the sampler: the reverse diffusion, twisted by the likelihood, weighted.

In own time and coordinates (:mod:`pyro_stad.drawing.base`) a step of the reverse diffusion from
angle :math:`\varphi` to a smaller one, :math:`\varphi'`, is that of ancestral sampling,

.. math:: y' \sim N(\mu, v), \qquad
    \mu = \frac{r \sin^2\varphi'\, y + \cos\varphi'\, q\, \hat x(y)}{\sin^2\varphi}, \qquad
    v = \frac{q \sin^2\varphi'}{\sin^2\varphi}
        + \Big(\frac{\cos\varphi'\, q}{\sin^2\varphi}\Big)^2 \rho^2(y), \qquad
    r = \frac{\cos\varphi}{\cos\varphi'}, \quad q = \sin^2\varphi - r^2 \sin^2\varphi' ,

with the network's mean :math:`\hat x` of the data given y, and their variance, the mean over
coordinates, which is known from the divergence by Tweedie's formula:
:math:`\rho^2 = \sin^2\varphi\,(1 - \tan\varphi\; \nabla\cdot w / D)`. With it the steps of a normal
law are exact, however long.

A *twist* :math:`\psi(y)` guesses the likelihood of what will become of y. Its gradient tilts the
teacher's score, so that proposals move :math:`v\,\nabla\log\psi(y)` farther, and particles are
weighted by

.. math:: w = \frac{N(y'; \mu, v)\, \psi'(y')}{N(y'; \mu + v\,\nabla\log\psi, v)\, \psi(y)} ,

at the end with the likelihood itself in place of the twist. So *any* twist gives the posterior of
the chain's law, as particles become many, and the product of the mean weights is an unbiased
estimate of its evidence; without weights, tilted draws are of no known law. What is left is that
the chain takes steps, which is an error that falls with their number.

*The twist.* The likelihood at :math:`\hat x`, as it is often taken, is too sure: it forgets how far
the data may still be from their mean. Were that normal with variance :math:`\rho^2`, and the
likelihood with variance :math:`1/\kappa`, the right one would have :math:`1/\kappa + \rho^2`; so

.. math:: \log\psi(y) = \beta\, \log L(\hat x(y)), \qquad \beta = \frac{1}{1 + \kappa\rho^2} .

The curvature is :math:`\kappa = E|Hv|^2 / E\,v\cdot Hv` with the Hessian H of :math:`-\log L` and
random signs v: of a likelihood that sees some coordinates only, the curvature of those. On a
mixture in 16 dimensions, half of them observed, the evidence from 512 particles had an error of 0.1
nat, and of 1.7 with :math:`\beta = 1`.

References:
    Wu, Trippe, Naesseth, Blei and Cunningham (2023), Practical and Asymptotically Exact Conditional
    Sampling in Diffusion Models; Chung, Kim, Mccann, Klasky and Ye (2023), Diffusion Posterior
    Sampling for General Noisy Inverse Problems; Ho, Jain and Abbeel (2020), Denoising Diffusion
    Probabilistic Models; Bao, Li, Zhu and Zhang (2022), Analytic-DPM: an Analytic Estimate of the
    Optimal Reverse Variance in Diffusion Probabilistic Models; Efron (2011), Tweedie's Formula and
    Selection Bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad._progress import progress_bar
from pyro_stad._random import signs
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.divergence import AbstractDivergence
from pyro_stad.fields import AbstractAngularField
from pyro_stad.ode import time_like
from pyro_stad.samplers.resampling import systematic

__all__ = ["TwistedDraws", "TwistedProblem", "twisted"]

_FEW = 64  # particles by which curvature and variance are known
_ESS = 0.5
_FARTHEST = 3.0  # by which proposals are moved at the most, in standard deviations
_GRADING = 2.0
# The cosine from which on a point says nothing of its data, and the most that they may vary.
_NOISE, _LARGEST = 1e-3, 4.0


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


class TwistedDraws(NamedTuple):
    """What runs have found.

    Attributes:
        x: whitened draws of equal weight, ``(R, N, *event_shape)``.
        log_z: log-evidence of each run, ``(R,)``, in float64.
        effective: effective number of the last weights of a run, the mean over runs.
    """

    x: Tensor
    log_z: Tensor
    effective: float


@dataclass
class _Particles:
    """Particles ``(R, N, ...)`` on their way: mean and variance of the data, and the twist."""

    y: Tensor
    mean: Tensor
    variance: Tensor
    log_l: Tensor
    slope: Tensor
    beta: float

    def taken(self, index: Tensor) -> None:
        """Let each run go on with its particles of ``index``, ``(R, N)``."""
        runs = torch.arange(len(index), device=index.device)[:, None]
        self.y, self.mean = self.y[runs, index], self.mean[runs, index]
        self.variance = self.variance[runs, index]
        self.log_l, self.slope = self.log_l[runs, index], self.slope[runs, index]


def twisted(
    problem: TwistedProblem,
    z: Tensor,
    steps: int,
    generator: torch.Generator,
    *,
    progress: bool = False,
) -> TwistedDraws:
    """Carry noise to draws of a posterior.

    Arguments:
        problem: field and likelihood.
        z: standard normal noise, ``(R, N, *event_shape)``: N particles of R runs.
        steps: of the reverse diffusion; one call of the network each, with a gradient.
        generator: source of randomness.
        progress: whether to show a bar.
    """
    field = problem.field
    angles = [
        field.t_min + (field.t_max - field.t_min) * (1 - k / steps) ** _GRADING
        for k in range(steps + 1)
    ]
    at = _look(problem, angles[0], z, generator)
    # The weights of noise are those of its twist.
    log_w = (at.beta * at.log_l).double()
    log_z = log_w.new_zeros(len(z))
    with progress_bar("twisted diffusion", steps, shown=progress) as bar:
        for index, (before, after) in enumerate(pairwise(angles)):
            old, is_last = at, index == steps - 1
            y, gain = _proposed(at, before, after, generator)
            if is_last:
                x = y / math.cos(after)
                fit = problem.log_likelihood(x.flatten(0, 1)).detach().unflatten(0, z.shape[:2])
                at = _Particles(y, y, at.variance, _tamed(fit), y, 1.0)
            else:
                at = _look(problem, after, y, generator)
            log_w = log_w + gain + (at.beta * at.log_l).double() - (old.beta * old.log_l).double()
            share = torch.softmax(log_w, 1)
            effective = effective_size(share, 1)
            if is_last or bool((effective < _ESS * z.shape[1]).any()):
                log_z = log_z + log_mean_exp(log_w, 1)
                at.taken(systematic(share, generator))
                log_w = torch.zeros_like(log_w)
            bar.update(1)
    return TwistedDraws(at.y / math.cos(angles[-1]), log_z, effective.mean().item())


def _proposed(
    at: _Particles, before: float, after: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return where particles go, and the ratio of chain to proposal, ``(R, N)``."""
    ratio, end = math.cos(before) / math.cos(after), math.sin(after) ** 2
    start = math.sin(before) ** 2
    spread = start - ratio**2 * end
    pull = math.cos(after) * spread / start
    mean = ratio * end / start * at.y + pull * at.mean
    width = beside((end * spread / start + pull**2 * at.variance).sqrt(), at.y)
    shift = width * at.beta * at.slope
    length = shift.flatten(2).norm(dim=-1) / math.sqrt(shift[0, 0].numel())
    shift = shift * beside(_FARTHEST / length.clamp_min(_FARTHEST), shift)
    noise = torch.randn(at.y.shape, generator=generator, dtype=at.y.dtype, device=at.y.device)
    gain = 0.5 * (noise.square() - (noise + shift).square()).double().flatten(2).sum(-1)
    return mean + width * (noise + shift), gain


def _look(
    problem: TwistedProblem, angle: float, y: Tensor, generator: torch.Generator
) -> _Particles:
    """Return particles at points, with the twist there."""
    cos, sin = math.cos(angle), math.sin(angle)
    rows, t = y.flatten(0, 1), time_like(y, angle)
    found: list[tuple[Tensor, ...]] = []
    for part in rows.split(problem.chunk_size):
        with torch.enable_grad():
            point = part.detach().requires_grad_()
            mean = cos * point - sin * problem.field.velocity(t, point)
            fit = problem.log_likelihood(mean)
            (slope,) = torch.autograd.grad(fit.sum(), point)
        slope = torch.nan_to_num(slope, 0.0, 0.0, 0.0)
        found.append((mean.detach(), _variance(problem, angle, part), _tamed(fit.detach()), slope))
    mean, variance, fit, slope = (torch.cat(each).unflatten(0, y.shape[:2]) for each in zip(*found))
    few = slice(None, None, max(1, len(rows) // _FEW))
    curvature = _curvature(problem, mean.flatten(0, 1)[few], generator)
    beta = 1 / (1 + curvature * variance.mean().item())
    return _Particles(y, mean, variance, fit, slope, beta)


def _tamed(fit: Tensor) -> Tensor:
    """Return log-likelihoods without NaN; far below all others, where there is none."""
    lowest = torch.finfo(fit.dtype).min / 1e6
    return torch.nan_to_num(fit, lowest, lowest, lowest).clamp_min(lowest)


def _variance(problem: TwistedProblem, angle: float, y: Tensor) -> Tensor:
    """Return the variance of a coordinate of the data given points, the mean of all, ``(B,)``."""
    if math.cos(angle) < _NOISE:
        return y.new_ones(len(y))  # of whitened data
    with torch.no_grad():
        trace = problem.divergence(problem.field, time_like(y, angle), y)
    found = math.sin(angle) ** 2 * (1 - math.tan(angle) * trace / y[0].numel())
    return torch.nan_to_num(found, 1.0, 1.0, 0.0).clamp(0.0, _LARGEST)


def _curvature(problem: TwistedProblem, x: Tensor, generator: torch.Generator) -> float:
    """Return the curvature of the log-likelihood at data, of the directions that it sees."""
    sign = signs(x.shape, generator, x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        fit = problem.log_likelihood(x)
        (slope,) = torch.autograd.grad(fit.sum(), x, create_graph=True)
        if not slope.requires_grad:
            return 0.0  # of a likelihood that is linear where it is not flat
        (product,) = torch.autograd.grad((slope * sign).sum(), x)
    square, form = product.square().sum().item(), -(sign * product).sum().item()
    found = square / form if form > 0 else 0.0
    return found if math.isfinite(found) else 0.0
