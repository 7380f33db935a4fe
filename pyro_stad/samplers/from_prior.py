r"""Tempering in parameters, from draws of a prior that is no map of normal noise.

Particles go through :math:`\pi_\beta(x) \propto p(x)\, L(x)^\beta`, with p the density of the prior
in unconstrained coordinates: as in noise, but that p is asked for, and that the start are draws
which somebody else has made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_stad.samplers.tempering import Runs, arrived

__all__ = ["PriorRuns", "temper_draws"]

Parts = Callable[[Tensor], tuple[Tensor, Tensor]]


def temper_draws(
    parts: Parts, draws: Tensor, generator: torch.Generator, *, progress: bool
) -> PriorRuns:
    """Return runs of one object that have gone from draws of its prior to the posterior.

    Arguments:
        parts: of rows ``(n, K)``, log-densities of the prior and log-likelihoods, each ``(n,)``.
        draws: of the prior, ``(R, N, K)``.
        generator: source of randomness.
        progress: whether to show a bar.

    Raises:
        EvidenceError, ValueError: as of ``temper``.
    """
    runs = PriorRuns(parts, draws, generator)
    arrived(runs, "SMC", progress=progress, checkpoint=None)
    return runs


class _OneObject:
    """The problem of draws ``(R, N, K)``: what runs ask of one beside its likelihoods."""

    objects, calls = 1, 0
    data: tuple[str, ...] = ("",)

    def __init__(self, draws: Tensor) -> None:
        self.size, self.like = draws.shape[-1], draws

    def of_objects(self, which: Tensor, u: Tensor) -> Tensor:
        raise NotImplementedError("likelihoods come with densities of the prior")


class PriorRuns(Runs):
    """Runs whose prior has a density, and is no N(0, I).

    Attributes:
        ground: log-densities of the prior, relative to N(0, I), ``(1, R, N)``.
    """

    KNOWN = ("fit", "ground")

    def __init__(self, parts: Parts, draws: Tensor, generator: torch.Generator) -> None:
        super().__init__(_OneObject(draws), draws.shape[1], draws.shape[0], generator)
        self._parts, self.u = parts, draws[None]
        self.ground = torch.zeros_like(self.fit)

    def start(self) -> None:
        """Ask for what is known of the draws."""
        everything = torch.arange(1, device=self.u.device)
        self.fit, self.ground = self._evaluated(everything, self.u)
        self.check_alive("draws from the prior")

    def _tempered(self, beta: Tensor, *known: Tensor) -> Tensor:
        fit, ground = known
        return beta * fit + ground

    def _evaluated(self, which: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        prior, fit = (part.reshape(u.shape[:-1]) for part in self._parts(u.flatten(0, 2)))
        self.calls[which] += fit.numel()
        return fit, prior + 0.5 * u.square().sum(-1)
