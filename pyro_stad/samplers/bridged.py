r"""From the posterior of a cheap likelihood to that of a dear one, of the same noise.

Tempered runs have come to :math:`N(u; 0, I)\, L_0(u)`, with a likelihood that is cheap and nearly
right. They go on through

.. math:: \pi_\beta(u) \propto N(u; 0, I)\, L_0(u)^{1 - \beta} L_1(u)^\beta ,

to the posterior of the likelihood that is meant, in steps that keep half of the effective sample
size: in one, as a rule, where the two are near. Weights make the evidence that of L_1,

.. math:: \log Z \mathrel{+}= \log \tfrac1N \sum_i (L_1(u_i) / L_0(u_i))^{\Delta\beta} ,

whatever L_0 is, and moves by L_1 make particles forget it; where weights are nearly alike they have
nothing to forget. Most of the way is gone cheaply; of L_1
no more is asked than the last stretch.

References:
    Del Moral, Doucet and Jasra (2006), Sequential Monte Carlo samplers; Christen and Fox (2005),
    Markov chain Monte Carlo Using an Approximation.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pyro_stad.samplers.normal import Normal
from pyro_stad.samplers.problem import Problem
from pyro_stad.samplers.tempering import Runs, arrived

__all__ = ["BridgedRuns", "bridge"]

_ALIKE = 0.95


def bridge(
    cheap: Runs, problem: Problem, *, progress: bool = False, checkpoint: Path | None = None
) -> BridgedRuns:
    """Return runs that have gone on from the posterior of one problem to that of another.

    Arguments:
        cheap: runs that have arrived, of likelihoods of the same noise.
        problem: the likelihoods that are meant.
        progress: whether to show a bar.
        checkpoint: file that is written at every step, and resumed from if it is there.

    Raises:
        CheckpointError: if the file belongs to another problem.
        EvidenceError: if there is no way from the one to the other in a thousand steps.
        ValueError: if the likelihood of an object is zero at all particles.
    """
    runs = BridgedRuns(cheap, problem)
    arrived(runs, "exact likelihood", progress=progress, checkpoint=checkpoint)
    return runs


class BridgedRuns(Runs):
    """Runs on their way from the posterior of a cheap likelihood to that of a dear one.

    Attributes:
        ground: log-likelihoods of the cheap one, ``(B, R, N)``; ``fit`` are those of the dear one.
        cheap_calls: how many of the cheap ones there were, ``(B,)``; ``calls`` are of the dear one.
        cheap_log_z, cheap_variance: log Z of the cheap one, and its variance, ``(B, R)``.
    """

    STATE = (*Runs.STATE, "ground", "cheap_calls", "cheap_log_z", "cheap_variance")
    KNOWN = ("fit", "ground")

    def __init__(self, cheap: Runs, problem: Problem) -> None:
        super().__init__(problem, cheap.particles, cheap.repeats, cheap.generator, cheap.kernel)
        self._cheap = cheap.problem
        self.u, self.ground = cheap.u.clone(), cheap.fit.clone()
        self.log_z, self.variance = cheap.log_z.clone(), cheap.variance.clone()
        self.cheap_log_z, self.cheap_variance = cheap.log_z, cheap.variance
        self.cheap_calls = cheap.calls.clone()
        self.scale, self.stuck = cheap.scale.clone(), cheap.stuck.clone()

    def start(self) -> None:
        """Ask for the dear likelihoods of the particles that there are."""
        everything = torch.arange(self.problem.objects, device=self.u.device)
        self.fit = super()._evaluated(everything, self.u)[0]
        self.check_alive("draws from the posterior by the generator")

    def _gain(self, at: Tensor) -> Tensor:
        return self.fit[at] - self.ground[at]

    def _move(self, at: Tensor, normal: Normal) -> None:
        """Move particles; where weights were nearly alike, they are where they should be."""
        uneven = self.effective[at] < _ALIKE * self.fit[0].numel()
        if uneven.any():
            super()._move(at[uneven], normal.of_objects(uneven))

    def _tempered(self, beta: Tensor, *known: Tensor) -> Tensor:
        fit, ground = known
        # Where the cheap one is zero nothing is, until it has no say any more.
        return beta * fit + torch.where(beta < 1, (1 - beta) * ground, 0.0)

    def _evaluated(self, which: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        ground = self._cheap.of_objects(which, u.flatten(1, 2)).reshape(u.shape[:-1])
        self.cheap_calls[which] += ground[0].numel()
        return (*super()._evaluated(which, u), ground)
