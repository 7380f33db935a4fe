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

at the end with the likelihood itself in place of the twist. So any twist that is positive where the
likelihood is gives the posterior of the chain's law, as particles become many, and the product of
the mean weights is an estimate of its evidence; without weights, tilted draws are of no known law.
(It would be unbiased, did the twist not depend a little on the particles.) What is left is that the
chain takes steps, which is an error that falls with their number.

The twist is that of :mod:`pyro_stad.samplers.twist`.

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
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad._progress import progress_bar
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.samplers.lineage import ancestors, relative_variance
from pyro_stad.samplers.resampling import systematic
from pyro_stad.samplers.twist import TwistedProblem, curvature, seen, tamed

__all__ = ["TwistedDraws", "twisted"]

_FEW = 64  # particles by which curvature and variance are known
_ESS = 0.5
_FARTHEST = 3.0  # by which proposals are moved at the most, in standard deviations
_GRADING = 2.0


class TwistedDraws(NamedTuple):
    """What runs have found.

    Attributes:
        x: whitened draws of equal weight, ``(R, N, *event_shape)``.
        log_z: log-evidence of each run, ``(R,)``, in float64.
        effective: effective number of the last weights of a run, the mean over runs.
        variance: of ``log_z``, by the weights of descendants of each first particle, ``(R,)``.
    """

    x: Tensor
    log_z: Tensor
    effective: float
    variance: Tensor


@dataclass
class _Particles:
    """Particles ``(R, N, ...)`` on their way: mean and variance of the data, and the twist.

    The twist is beta times ``log_l``, with a beta of each run, ``(R, 1)``. ``owed`` is what their
    weights are of besides: so a twist in between, however small, leaves no trace of rounding.
    ``origin`` is the particle of the first step that they descend from.
    """

    y: Tensor
    mean: Tensor
    variance: Tensor
    log_l: Tensor
    slope: Tensor
    beta: Tensor
    owed: Tensor
    origin: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Return the logarithms of the weights, ``(R, N)``, in float64."""
        return self.owed + (self.beta * self.log_l).double()

    def resampled(self, share: Tensor, which: Tensor, generator: torch.Generator) -> None:
        """Let runs of ``which``, ``(R,)``, go on with the particles that their shares choose."""
        index = systematic(share, generator)
        index = torch.where(which[:, None], index, ancestors(self.log_l))
        runs = torch.arange(len(index), device=index.device)[:, None]
        for name in ("y", "mean", "variance", "log_l", "slope", "owed", "origin"):
            setattr(self, name, getattr(self, name)[runs, index])
        fresh = -(self.beta * self.log_l).double()
        self.owed = torch.where(which[:, None], fresh, self.owed)


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
        steps: of the reverse diffusion; one call of the network each, with a gradient, and one more
            if the divergence takes products.
        generator: source of randomness.
        progress: whether to show a bar.
    """
    field = problem.field
    angles = [
        field.t_min + (field.t_max - field.t_min) * (1 - k / steps) ** _GRADING
        for k in range(steps + 1)
    ]
    at = _look(problem, angles[0], z, generator)
    log_z = at.log_weights.new_zeros(len(z))
    with progress_bar("twisted diffusion", steps, shown=progress) as bar:
        for index, (before, after) in enumerate(pairwise(angles)):
            old, is_last = at, index == steps - 1
            y, gain = _proposed(old, before, after, generator)
            at = (_end if is_last else _look)(problem, after, y, generator)
            at.owed, at.origin = old.owed + gain, old.origin
            log_w = at.log_weights
            # A run without any likelihood is lost, and says so by its evidence.
            share = torch.softmax(
                torch.where(log_w.amax(1, keepdim=True) > -math.inf, log_w, 0.0), 1
            )
            effective = effective_size(share, 1)
            which = effective < (math.inf if is_last else _ESS * z.shape[1])
            log_z = torch.where(which, log_z + log_mean_exp(log_w, 1), log_z)
            if is_last:
                variance = relative_variance(share[None], at.origin[None])[0]
            at.resampled(share, which, generator)
            bar.update(1)
    x = at.y / math.cos(angles[-1])
    return TwistedDraws(x, log_z, effective.mean().item(), variance)


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
    shift = width * beside(at.beta.expand(at.y.shape[:2]), at.y) * at.slope
    length = shift.flatten(2).norm(dim=-1) / math.sqrt(shift[0, 0].numel())
    shift = shift * beside(_FARTHEST / length.clamp_min(_FARTHEST), shift)
    noise = torch.randn(at.y.shape, generator=generator, dtype=at.y.dtype, device=at.y.device)
    gain = 0.5 * (noise.square() - (noise + shift).square()).double().flatten(2).sum(-1)
    return mean + width * (noise + shift), gain


def _end(problem: TwistedProblem, angle: float, y: Tensor, _: torch.Generator) -> _Particles:
    """Return particles at the data end, with the likelihood itself."""
    with torch.no_grad():
        parts = (y / math.cos(angle)).flatten(0, 1).split(4096)
        fit = torch.cat([problem.log_likelihood(x) for x in parts]).unflatten(0, y.shape[:2])
    none, ones = y.new_zeros(y.shape[:2]), y.new_ones(len(y), 1)
    fit = torch.nan_to_num(fit, nan=-math.inf, neginf=-math.inf)
    return _Particles(y, y, none, fit, y, ones, none.double(), ancestors(fit))


def _look(
    problem: TwistedProblem, angle: float, y: Tensor, generator: torch.Generator
) -> _Particles:
    """Return particles at points, with the twist there."""
    rows, shape = y.flatten(0, 1), y.shape[:2]
    found = [seen(problem, angle, part) for part in rows.split(problem.chunk_size)]
    mean, variance, fit, slope = (torch.cat(each).unflatten(0, shape) for each in zip(*found))
    few = slice(None, None, max(1, shape[1] // _FEW))
    curved = [
        curvature(problem, x[few], rho[few], generator) for x, rho in zip(mean, variance.sqrt())
    ]
    mean_variance = variance.mean(1, keepdim=True)
    beta = 1 / (1 + torch.stack(curved)[:, None] * mean_variance)
    none = torch.zeros_like(fit, dtype=torch.float64)
    fit = tamed(fit, beta, mean_variance)
    return _Particles(y, mean, variance, fit, slope, beta, none, ancestors(fit))
