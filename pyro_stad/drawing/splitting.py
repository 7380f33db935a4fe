r"""Splitting integrators: a composition is a string of steps.

The reverse dynamics in phase space are split into parts that are easy one by one; over a step h,
with s the score,

- A moves positions: :math:`x \mathrel{+}= \tfrac{h\beta}2 (a\Gamma x - r p + a\Gamma s_x)`;
- B moves momenta: :math:`p \mathrel{+}= \tfrac{h\beta}2 (r x + a\nu p + a\nu s_p)`;
- O renews both, exactly: :math:`x \leftarrow e^{-\beta\Gamma h/2} x +
  \sqrt{1 - e^{-\beta\Gamma h}}\, \xi`, and momenta with :math:`\nu`.

With an O among them they make up the reverse diffusion, and a = 2; without one, the
probability-flow ODE, and a = 1. A letter that comes twice takes half a step each time. So "OBA",
"BAO" and "OBAB" are stochastic, "BA" is symplectic Euler and "BAB" velocity Verlet.

A *naive* composition asks the network before every A and B. A *reduced* one asks once, and again
only for a B that comes after an A. Time goes on with A, and the network is told the share of it
that has gone.

Two options, both off by default, are for few steps, where reduced compositions draw too narrow a
law: O has raised the noise to that of t + h while the network is told t. It may be told t + h
instead (``ahead``). Or the noise of positions may be made more than its decay asks for, of
variance :math:`1 - e^{-\lambda \beta\Gamma h}` (``noise_scale``): with more steps the law is then
too wide. The published :math:`\lambda_s` is multiplied by the mean time of the step besides, and
so takes noise away near the data, where the spread is decided: of normal data, factors up to 16
made the law narrower still.

References:
    Pandey, Rudolph and Mandt (2024), Efficient Integrators for Diffusion Generative Models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_flag, check_positive
from pyro_stad.drawing.phase_walk import AbstractPhaseSampler, PhaseWalk, Score
from pyro_stad.registry import storable

__all__ = ["Part", "Splitting", "parts_of"]


class Part(NamedTuple):
    """A part of a step.

    Attributes:
        letter: A, B or O.
        share: of the step.
        asks: whether the network is asked before it.
        gone: the share of the step that positions have gone when it is asked.
    """

    letter: str
    share: float
    asks: bool
    gone: float


def parts_of(scheme: str, *, is_reduced: bool) -> list[Part]:
    """Return the parts of a step, and when the network is asked."""
    parts, is_known, gone = [], False, 0.0
    for letter in scheme:
        share = 1 / scheme.count(letter)
        stale = not is_known or not is_reduced or (letter == "B" and gone > 0)
        asks = letter != "O" and stale
        parts.append(Part(letter, share, asks, gone))
        is_known = is_known or asks
        gone += share if letter == "A" else 0.0
    return parts


@storable("sampler", "splitting")
@dataclass(frozen=True, repr=False)
class Splitting(AbstractPhaseSampler):
    """A composition of steps in phase space.

    Arguments:
        scheme: a string of A, B and O, with both A and B in it.
        reduced: whether one score serves several parts.
        ahead: whether the network is told the time of the noise that O has made.
        noise_scale: lambda, of the noise of positions; 1 for as much as it should be.
    """

    scheme: str = "OBA"
    reduced: bool = True
    ahead: bool = False
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        scheme = self.scheme
        if not isinstance(scheme, str) or set(scheme) - set("ABO") or not set("AB") <= set(scheme):
            raise ValueError(
                "`scheme` must be a string of A, B and O, with both A and B in it, such as 'OBA' "
                f"or 'BAB'; got {scheme!r:.80}"
            )
        check_flag(self.reduced, "reduced")
        check_flag(self.ahead, "ahead")
        check_positive(self.noise_scale, "noise_scale")
        if "O" not in scheme and (self.ahead or self.noise_scale != 1):
            raise ValueError(
                f"`ahead` and `noise_scale` are for the noise of O; `scheme` {scheme!r} has none. "
                "Leave them out"
            )

    @property
    def is_stochastic(self) -> bool:
        return "O" in self.scheme

    @property
    def calls_per_step(self) -> int:
        return sum(part.asks for part in parts_of(self.scheme, is_reduced=self.reduced))

    def moves(self, phase: PhaseWalk, z: Tensor, times: list[float]) -> Iterator[Tensor]:
        parts = parts_of(self.scheme, is_reduced=self.reduced)
        for before, after in pairwise(times):
            z = self._step(phase, parts, z, before, after)
            yield z

    def _step(
        self, phase: PhaseWalk, parts: list[Part], z: Tensor, before: float, after: float
    ) -> Tensor:
        position, momentum = z.unbind(1)
        score, rate = Score(position, momentum), 0.5 * self.path.beta * (before - after)
        both = 2 if self.is_stochastic else 1
        for part in parts:
            if part.asks:
                time = before - part.gone * (before - after)
                score = phase.score(
                    self._told(time, before - after), torch.stack([position, momentum], 1)
                )
            h, r, nu = part.share * rate, self.path.coupling, self.path.friction
            if part.letter == "A":
                own = both * self.path.gamma * (position + score.position)
                position = position + h * (own - r * momentum)
            elif part.letter == "B":
                own = both * nu * (momentum + score.momentum)
                momentum = momentum + h * (own + r * position)
            else:
                position, momentum = self._renewed(phase, position, momentum, h)
        return torch.stack([position, momentum], 1)

    def _told(self, time: float, step: float) -> float:
        """Return the time that the network is told."""
        return min(time + step, self.path.t_max) if self.ahead else time

    def _renewed(
        self, phase: PhaseWalk, position: Tensor, momentum: Tensor, h: float
    ) -> tuple[Tensor, Tensor]:
        """Return positions and momenta after O, over ``h``, half of beta times its time."""
        made = []
        for part, friction, more in (
            (position, self.path.gamma, self.noise_scale),
            (momentum, self.path.friction, 1.0),
        ):
            sd = math.sqrt(-math.expm1(-2 * more * friction * h))
            made.append(math.exp(-friction * h) * part + sd * phase.normal(part))
        return made[0], made[1]
