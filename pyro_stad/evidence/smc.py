r"""Tempered sequential Monte Carlo in the noise of a model.

Particles go from :math:`N(0, I)` to the posterior through the laws
:math:`\pi_\beta(u) \propto N(u; 0, I)\, L(u)^\beta`, with :math:`\beta` from 0 to 1 in steps that
keep half of the effective sample size. At every step

.. math:: \log Z \mathrel{+}= \log \tfrac1N \sum_i L(u_i)^{\Delta\beta} ,

particles are resampled and moved by the preconditioned Crank-Nicolson kernel about the particles'
own mean m and covariance C,

.. math:: u' = m + \sqrt{1 - s^2}\,(u - m) + s\,\xi, \qquad \xi \sim N(0, C),

which leaves N(m, C) as it is, so that only the ratio of the target to that normal law is accepted
or rejected: at s = 1 an independent proposal, at small s a local one. s follows the acceptance, and
moves go on until particles have forgotten where they were resampled.

All runs go through the same temperatures at the same time, in one batch, and every run is moved by
m and C of the *other* runs: particles that make their own proposals are pulled together, which in
50 dimensions cost 0.2 nat of log Z. So each run is unbiased but for the common choice of
temperatures and s, and runs are independent to first order. The error is that of their mean, or the
single-run formula, whichever is larger: four runs know their own spread badly.

References:
    Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers; Cotter, Roberts, Stuart and
    White (2013), MCMC methods for functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_stad.evidence.latent import LatentProblem
from pyro_stad.evidence.result import EvidenceResult

__all__ = ["Normal", "pilot", "smc", "warnings_of"]

_ESS = 0.5
_ACCEPTANCE = 0.35
_FORGOTTEN = 0.1  # correlation with the start that counts as none
_MOST_MOVES = 100
_MOST_EXTRAPOLATED = 0.01


def smc(
    problem: LatentProblem,
    *,
    particles: int,
    repeats: int,
    generator: torch.Generator,
    progress: bool,
) -> EvidenceResult:
    """Estimate the evidence of a problem by tempered SMC.

    Arguments:
        problem: likelihood of standard normal noise.
        particles: particles N of each run.
        repeats: runs R.
        generator: source of randomness.
        progress: whether to show a bar.

    Raises:
        ValueError: if the likelihood is zero at all draws from the prior.
    """
    before = problem.calls
    with torch.no_grad():
        runs = _finished(problem, particles, repeats, generator, progress=progress)
        noise = runs.u.reshape(-1, problem.size)
        draws = problem.values(noise)
        extrapolated = problem.extrapolated(noise).double().mean().item()
    # Unbiased is Z, not its logarithm.
    log_z = (torch.logsumexp(runs.log_z, 0) - math.log(repeats)).item()
    variance = max(runs.log_z.var().item(), runs.variance.mean().item())
    stuck = (
        f"particles still remembered where they were resampled after {_MOST_MOVES} moves; take "
        "more of them",
    )
    return EvidenceResult(
        log_z=log_z,
        log_z_err=math.sqrt(variance / repeats),
        method="smc",
        repeats=tuple(runs.log_z.tolist()),
        likelihood_calls=problem.calls - before,
        data=problem.data,
        extrapolated=extrapolated,
        warnings=(stuck if runs.stuck else ()) + warnings_of(extrapolated),
        draws=draws,
    )


def pilot(
    problem: LatentProblem,
    particles: int,
    repeats: int,
    generator: torch.Generator,
    *,
    progress: bool,
) -> Tensor:
    """Return the noise of posterior draws, ``(R, N, D)``."""
    with torch.no_grad():
        return _finished(problem, particles, repeats, generator, progress=progress).u


def warnings_of(extrapolated: float) -> tuple[str, ...]:
    """Return what is to be said of the share of the posterior where flow priors extrapolate."""
    if extrapolated <= _MOST_EXTRAPOLATED:
        return ()
    return (
        f"{extrapolated:.0%} of the posterior is where a flow prior has hardly seen a sample: "
        "the evidence is that of its extrapolation",
    )


def _finished(
    problem: LatentProblem,
    particles: int,
    repeats: int,
    generator: torch.Generator,
    *,
    progress: bool,
) -> _Runs:
    runs = _Runs(problem, particles, repeats, generator)
    with tqdm(total=1.0, desc="SMC", disable=not progress, leave=False) as bar:
        while runs.beta < 1:
            bar.update(runs.advance())
    return runs


class _Runs:
    """R runs of N particles, on their common way from prior to posterior.

    Attributes:
        u: particles ``(R, N, D)``.
        fit: their log-likelihoods, ``(R, N)``.
        log_z, variance: log Z so far, and its variance by the single-run formula, ``(R,)``.
    """

    def __init__(
        self, problem: LatentProblem, count: int, repeats: int, generator: torch.Generator
    ) -> None:
        self.problem, self.generator = problem, generator
        self.u = self._normal((repeats, count, problem.size))
        self.fit = self._log_likelihood(self.u)
        if not torch.isfinite(self.fit).any(1).all():
            raise ValueError(
                f"the likelihood is zero at all of {count} draws from the prior; check the model, "
                "or use more particles"
            )
        self.beta, self.scale, self.stuck = 0.0, 0.7, False
        self.log_z = torch.zeros(repeats, dtype=torch.float64)
        self.variance = torch.zeros(repeats, dtype=torch.float64)

    def advance(self) -> float:
        """Go to the next temperature; return the step."""
        step = _next_step(self.fit, 1 - self.beta)
        weights, count = step * self.fit.double(), self.fit.shape[1]
        self.log_z += (torch.logsumexp(weights, 1) - math.log(count)).cpu()
        share = torch.softmax(weights, 1)
        self.variance += (share.square().sum(1) - 1 / count).cpu()
        self.beta = 1.0 if step >= 1 - self.beta else self.beta + step
        normal = Normal.of_others(self.u, share)
        chosen = _systematic(share, self.generator)
        self.u = self.u.gather(1, chosen[..., None].expand_as(self.u))
        self.fit = self.fit.gather(1, chosen)
        self._move(normal)
        return step

    def _move(self, normal: Normal) -> None:
        """Move particles until they have forgotten their start."""
        z = normal.to_unit(self.u)
        start = z - z.mean(1, keepdim=True)
        now = self._target(self.u, z, self.fit)
        for _ in range(_MOST_MOVES):
            z_new = math.sqrt(1 - self.scale**2) * z + self.scale * self._normal(z.shape)
            u_new = normal.from_unit(z_new)
            fit_new = self._log_likelihood(u_new)
            new = self._target(u_new, z_new, fit_new)
            taken = self._uniform(now.shape).log() < new - now
            self.u, z = (
                torch.where(taken[..., None], a, b) for a, b in ((u_new, self.u), (z_new, z))
            )
            self.fit, now = (torch.where(taken, a, b) for a, b in ((fit_new, self.fit), (new, now)))
            rate = taken.double().mean().item()
            self.scale = min(1.0, max(1e-3, self.scale * math.exp(rate - _ACCEPTANCE)))
            if _memory(start, z) < max(_FORGOTTEN, 4 / math.sqrt(z.shape[1])):
                return
        self.stuck = True

    def _target(self, u: Tensor, z: Tensor, fit: Tensor) -> Tensor:
        """Return the log-density of the target over that of the normal law, ``(R, N)``."""
        return self.beta * fit + 0.5 * (z.square().sum(-1) - u.square().sum(-1))

    def _log_likelihood(self, u: Tensor) -> Tensor:
        rows = self.problem.log_likelihood(u.reshape(-1, u.shape[-1]))
        return rows.reshape(u.shape[:-1])

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        like = self.problem.like
        return torch.randn(shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def _uniform(self, shape: tuple[int, ...]) -> Tensor:
        like = self.problem.like
        return torch.rand(shape, generator=self.generator, dtype=like.dtype, device=like.device)


def _memory(start: Tensor, z: Tensor) -> float:
    """Return the largest correlation of a coordinate, ``(R, N, D)``, with its start."""
    now = z - z.mean(1, keepdim=True)
    product = (start * now).sum(1) / start.square().sum(1).clamp_min(1e-30)
    return product.abs().max().item()


def _next_step(fit: Tensor, most: float) -> float:
    """Return the step of the temperature that keeps the effective sample size, by bisection."""

    def effective(step: float) -> Tensor:
        return 1 / torch.softmax(step * fit.double(), 1).square().sum(1)

    # Points without a likelihood go in the first step, however small.
    target = _ESS * torch.isfinite(fit).sum(1)

    def keeps(step: float) -> bool:
        return (effective(step) / target).mean().item() >= 1

    if keeps(most):
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return max(low, torch.finfo(torch.float64).tiny)


class Normal(NamedTuple):
    """The normal laws about which the runs move: means ``(R, 1, D)``, factors ``(R, D, D)``."""

    mean: Tensor
    tril: Tensor

    @staticmethod
    def of_others(u: Tensor, share: Tensor) -> Normal:
        """Return, for each run, that of the others' weighted particles."""
        share = share.to(u)
        runs, _, size = u.shape
        eye = torch.eye(size, dtype=u.dtype, device=u.device)
        means, trils = [], []
        for run in range(runs):
            others = [other for other in range(runs) if other != run]
            # Each run has the same say: shares sum to one within a run.
            weights, rows = share[others].reshape(-1) / len(others), u[others].reshape(-1, size)
            mean = weights @ rows
            centred = rows - mean
            covariance = (weights[:, None] * centred).mT @ centred
            # Shrunk to a ball as far as particles are few.
            shrink = size / (size + 1 / weights.square().sum())
            level = shrink * covariance.diagonal().mean() + 1e-6
            means.append(mean)
            trils.append(torch.linalg.cholesky((1 - shrink) * covariance + level * eye))
        return Normal(torch.stack(means)[:, None], torch.stack(trils))

    def to_unit(self, u: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.tril, (u - self.mean).mT, upper=False).mT

    def from_unit(self, z: Tensor) -> Tensor:
        return self.mean + z @ self.tril.mT


def _systematic(share: Tensor, generator: torch.Generator) -> Tensor:
    """Return the indices of a systematic resampling of every run, ``(R, N)``."""
    runs, count = share.shape
    offset = torch.rand((runs, 1), generator=generator, dtype=share.dtype, device=share.device)
    places = (torch.arange(count, dtype=share.dtype, device=share.device) + offset) / count
    return torch.searchsorted(share.cumsum(1), places).clamp_max(count - 1)
