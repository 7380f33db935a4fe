r"""Tempered sequential Monte Carlo in the noise of a model: from the prior to the posterior.

Particles go from :math:`N(0, I)` to the posterior through the laws
:math:`\pi_\beta(u) \propto N(u; 0, I)\, L(u)^\beta`, with :math:`\beta` from 0 to 1 in steps that
keep half of the effective sample size. At every step

.. math:: \log Z \mathrel{+}= \log \tfrac1N \sum_i L(u_i)^{\Delta\beta} ,

particles are resampled and moved by the preconditioned Crank-Nicolson kernel about a mean m and
covariance C,

.. math:: u' = m + \sqrt{1 - s^2}\,(u - m) + s\,\xi, \qquad \xi \sim N(0, C),

which leaves N(m, C) as it is, so that only the ratio of the target to that normal law is accepted
or rejected: at s = 1 an independent proposal, at small s a local one. s follows the acceptance, and
moves go on until particles have forgotten where they were resampled, or never will.

All runs go through the same temperatures at the same time, in one batch, and every run is moved by
m and C of the *other* runs: particles that make their own proposals are pulled together, which in
50 dimensions cost 0.2 nat of log Z. C is a little too wide, by :math:`1 + 1 / (2 \sqrt D)`:
reweighted particles lack the tails of their law, and proposals that lack them too draw it together,
temperature by temperature, until log Z is wrong by any number of nats (a thousand, for 100
particles and a datum a hundred widths away). So each run is unbiased but for the common choice of
temperatures and s, and runs are independent to first order.

Many objects, data sets of one model, go side by side, each with temperatures and s of its own; an
object that has arrived, or whose particles have forgotten, costs nothing more.

References:
    Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers; Cotter, Roberts, Stuart and
    White (2013), MCMC methods for functions.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from pyro_stad._progress import progress_bar
from pyro_stad._weights import effective_size, log_mean_exp
from pyro_stad.errors import EvidenceError
from pyro_stad.samplers.kernels import AbstractKernel, CrankNicolson, State
from pyro_stad.samplers.lineage import ancestors, relative_variance
from pyro_stad.samplers.memory import memory
from pyro_stad.samplers.normal import Normal
from pyro_stad.samplers.problem import Problem
from pyro_stad.samplers.resampling import next_steps, systematic
from pyro_stad.samplers.resume import probe, restore, store

__all__ = ["Runs", "arrived", "temper"]

_FORGOTTEN = 0.1  # correlation with the start that counts as none
_MOST_MOVES = 100
_PATIENCE, _FADES = 10, 0.85
_MOST_TEMPERATURES = 1000
_RESOLUTION = 0.1  # nat


def temper(
    problem: Problem,
    particles: int,
    repeats: int,
    generator: torch.Generator,
    *,
    kernel: AbstractKernel | None = None,
    progress: bool = False,
    checkpoint: Path | None = None,
) -> Runs:
    """Return R runs of N particles of every object that have gone from prior to posterior.

    Arguments:
        problem: likelihoods of standard normal noise.
        particles, repeats: N and R.
        generator: source of randomness.
        kernel: how particles move; None for Crank and Nicolson's way.
        progress: whether to show a bar.
        checkpoint: file that is written at every temperature, and resumed from if it is there.

    Raises:
        CheckpointError: if the file belongs to another problem.
        EvidenceError: if the likelihood is too narrow to get there, or too large for its dtype.
        ValueError: if the likelihood of an object is zero at all draws from the prior.
    """
    runs = Runs(problem, particles, repeats, generator, kernel)
    return arrived(runs, "SMC", progress=progress, checkpoint=checkpoint)


@torch.no_grad()
def arrived(runs: Runs, label: str, *, progress: bool, checkpoint: Path | None) -> Runs:
    """Take runs to where they lead; see ``temper``."""
    if checkpoint is None or not restore(checkpoint, runs):
        runs.start()
    done = runs.beta.sum().item()
    with progress_bar(label, runs.problem.objects, shown=progress, done=done) as bar:
        for _ in range(_MOST_TEMPERATURES):
            if bool((runs.beta >= 1).all()):
                runs.check_resolution()
                return runs
            bar.update(runs.advance())
            if checkpoint is not None:
                store(checkpoint, runs)
    raise EvidenceError(
        f"{_MOST_TEMPERATURES} temperatures did not lead from the prior to the posterior: the "
        "likelihood is too narrow. Let the prior be nearer to what the data say, or use float64"
    )


class Runs:
    """B objects times R runs of N particles, on their way from prior to posterior.

    Attributes:
        u: particles ``(B, R, N, D)``.
        fit: their log-likelihoods, ``(B, R, N)``.
        beta, scale: inverse temperature and step s of every object, ``(B,)``.
        stuck: whether particles still remembered their start when their moves ended, ``(B,)``.
        log_z, variance: log Z so far, and its variance by the single-run formula, ``(B, R)``.
        ancestor, open: whom particles descend from since they last forgot where they were,
            ``(B, R, N)``, and what of the variance is theirs, ``(B, R)``.
        effective: effective sample size of the last weights, ``(B,)``.
        calls: likelihoods that these runs took, ``(B,)``.
    """

    STATE: tuple[str, ...] = (
        "u", "fit", "beta", "scale", "stuck", "log_z", "variance", "effective", "calls",
        "ancestor", "open",
    )  # fmt: skip
    # What is known of every particle beside where it is, (B, R, N) each.
    KNOWN: tuple[str, ...] = ("fit",)

    def __init__(
        self,
        problem: Problem,
        particles: int,
        repeats: int,
        generator: torch.Generator,
        kernel: AbstractKernel | None = None,
    ) -> None:
        self.problem, self.generator = problem, generator
        self.kernel = CrankNicolson() if kernel is None else kernel
        self.particles, self.repeats = particles, repeats
        objects, double = problem.objects, {"dtype": torch.float64, "device": problem.like.device}
        self.u = problem.like.new_zeros(objects, repeats, particles, problem.size)
        self.fit = problem.like.new_zeros(objects, repeats, particles)
        self.beta = torch.zeros(objects, **double)  # type: ignore[call-overload]
        self.scale = torch.full_like(self.beta, 0.7)
        self.stuck = torch.zeros_like(self.beta, dtype=torch.bool)
        self.effective = torch.zeros_like(self.beta)
        self.calls = torch.zeros_like(self.beta, dtype=torch.int64)
        self.log_z = torch.zeros(objects, repeats, **double)  # type: ignore[call-overload]
        self.variance = torch.zeros_like(self.log_z)
        self.open, self.ancestor = torch.zeros_like(self.log_z), ancestors(self.fit)

    @cached_property
    def probe(self) -> Tensor:
        """Log-likelihoods that mark the model in a file, evaluated once."""
        return probe(self.problem)

    def start(self) -> None:
        """Draw from the prior."""
        self.u = self._normal(self.u.shape)
        everything = torch.arange(self.problem.objects, device=self.u.device)
        (self.fit,) = self._evaluated(everything, self.u)
        self.check_alive("draws from the prior")

    def check_alive(self, what: str) -> None:
        """Refuse a likelihood that is zero at all particles, which are ``what``."""
        dead = ~torch.isfinite(self.fit).any(-1).all(-1)
        if dead.any():
            where = f" of object {int(dead.nonzero()[0])}" if len(dead) > 1 else ""
            raise ValueError(
                f"the likelihood{where} is zero at all of {self.particles} {what}; check the "
                "model, or use more particles"
            )

    def check_resolution(self) -> None:
        """Refuse log-likelihoods so large that their own dtype does not know them to a tenth."""
        size = torch.where(torch.isfinite(self.fit), self.fit, 0.0).abs().amax((1, 2))
        largest, which = (part.item() for part in size.max(0))
        resolution = largest * torch.finfo(self.fit.dtype).eps
        if resolution > _RESOLUTION:
            where = f" of object {which}" if len(size) > 1 else ""
            raise EvidenceError(
                f"log-likelihoods of the posterior{where} are of size {largest:.2g}, which "
                f"{self.fit.dtype} knows to {resolution:.2g} nat only; give the model data and "
                "priors in float64"
            )

    def advance(self) -> float:
        """Take all objects that have not arrived to their next temperature; return the sum."""
        at = (self.beta < 1).nonzero()[:, 0]
        gain, left = self._gain(at), 1 - self.beta[at]
        step = next_steps(gain, left)
        weights = step[:, None, None] * gain.double()
        self.log_z[at] += log_mean_exp(weights)
        share = torch.softmax(weights, -1)
        effective = effective_size(share)
        variance = relative_variance(share, self.ancestor[at])
        self.variance[at] += variance - self.open[at]
        self.open[at] = variance
        self.effective[at] = effective.sum(-1)
        self.beta[at] = torch.where(step >= left, 1.0, self.beta[at] + step)
        normal = Normal.of_others(self.u[at], share).widened(self.u.shape[-1])
        chosen = systematic(share, self.generator)
        self.u[at] = self.u[at].gather(2, chosen[..., None].expand_as(self.u[at]))
        self.ancestor[at] = self.ancestor[at].gather(2, chosen)
        self._know(at, tuple(known.gather(2, chosen) for known in self._known(at)))
        self._move(at, normal)
        settled = at[~self.stuck[at]]
        self.open[settled], self.ancestor[settled] = 0.0, ancestors(self.fit[settled])
        return step.sum().item()

    def _move(self, at: Tensor, normal: Normal) -> None:
        """Move particles of objects ``at`` until they have forgotten their start."""
        z = normal.to_unit(self.u[at])
        start = z
        enough = max(_FORGOTTEN, 4 / math.sqrt(self.particles))
        self.stuck[at] = True
        known = torch.ones_like(self.beta[at])
        for move in range(1, _MOST_MOVES + 1):
            z = self._step(at, z, normal)
            kept = memory(start, z).abs().amax((1, 2))
            remembers = kept >= enough
            self.stuck[at[~remembers]] = False
            if move % _PATIENCE == 0:
                # What fades more slowly than this, as the memory of a mode, never would in time.
                remembers &= kept < _FADES * known
                known = kept
            if not remembers.any():
                return
            at, z, start, known = at[remembers], z[remembers], start[remembers], known[remembers]
            normal = normal.of_objects(remembers)

    def _step(self, at: Tensor, z: Tensor, normal: Normal) -> Tensor:
        """Move particles once, and adapt the step; return where they are about ``normal``."""

        def state(of: Tensor, z: Tensor, u: Tensor, known: tuple[Tensor, ...]) -> State:
            # The law at this temperature, over the normal law about which z is standard.
            change = 0.5 * (z.square().sum(-1) - u.square().sum(-1))
            beta = self.beta[of, None, None].to(z)
            return State(z, self._tempered(beta, *known) + change, (u, *known))

        def law(z: Tensor, which: Tensor | None = None) -> State:
            which = torch.ones_like(at, dtype=torch.bool) if which is None else which
            u = normal.of_objects(which).from_unit(z)
            return state(at[which], z, u, self._evaluated(at[which], u))

        now = state(at, z, self.u[at], self._known(at))
        moved, taken, *_ = self.kernel.step(now, law, self.scale[at], self.generator)
        self.u[at] = moved.kept[0]
        self._know(at, moved.kept[1:])
        rate = taken.double().mean((1, 2))
        step = self.scale[at] * (rate - self.kernel.acceptance).exp()
        self.scale[at] = step.clamp(1e-3, self.kernel.longest)
        return moved.z

    def _gain(self, at: Tensor) -> Tensor:
        """Return what the logarithm of the law of particles grows by with the temperature."""
        return self.fit[at]

    def _tempered(self, beta: Tensor, *known: Tensor) -> Tensor:
        """Return the log-density, relative to N(0, I), of what is known of particles."""
        return beta * known[0]

    def _evaluated(self, which: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """Return what is known of particles ``u`` of objects ``which``."""
        rows = self.problem.of_objects(which, u.flatten(1, 2)).reshape(u.shape[:-1])
        self.calls[which] += rows[0].numel()
        return (rows,)

    def _known(self, at: Tensor) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name)[at] for name in self.KNOWN)

    def _know(self, at: Tensor, known: tuple[Tensor, ...]) -> None:
        for name, value in zip(self.KNOWN, known):
            getattr(self, name)[at] = value

    def _normal(self, shape: torch.Size) -> Tensor:
        like = self.problem.like
        return torch.randn(shape, generator=self.generator, dtype=like.dtype, device=like.device)
