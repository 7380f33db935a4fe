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
only for a B that comes after an A, when time has gone on.

Two options, both off by default, mend that reduced compositions draw too narrow a law in few steps:
O has raised the noise to that of t + h while the network is told t. It may be told t + h instead
(``ahead``), or the noise of positions may be made more (``noise_scale``, the published
:math:`\lambda_s`): of variance :math:`1 - e^{-\bar t \lambda_s \beta\Gamma h}`, with
:math:`\bar t` the mean time of the step.

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

from pyro_stad._checks import check_positive
from pyro_stad.drawing.phase_walk import AbstractPhaseSampler, PhaseWalk, Score
from pyro_stad.registry import storable

__all__ = ["Part", "Splitting", "parts_of"]


class Part(NamedTuple):
    """A part of a step.

    Attributes:
        letter: A, B or O.
        share: of the step.
        asks: whether the network is asked before it.
        is_late: whether it is asked at the time at which the step ends.
    """

    letter: str
    share: float
    asks: bool
    is_late: bool


def parts_of(scheme: str, *, is_reduced: bool) -> list[Part]:
    """Return the parts of a step, and when the network is asked."""
    parts, is_known, has_moved = [], False, False
    for letter in scheme:
        stale = not is_known or not is_reduced or (letter == "B" and has_moved)
        asks = letter != "O" and stale
        parts.append(Part(letter, 1 / scheme.count(letter), asks, has_moved))
        is_known = is_known or asks
        has_moved = has_moved or letter == "A"
    return parts


@storable("sampler", "splitting")
@dataclass(frozen=True, repr=False)
class Splitting(AbstractPhaseSampler):
    """A composition of steps in phase space.

    Arguments:
        scheme: a string of A, B and O, with both A and B in it.
        reduced: whether one score serves several parts.
        ahead: whether the network is told the time of the noise that O has made.
        noise_scale: the published lambda of the noise of positions, or None for that of O.
    """

    scheme: str = "OBA"
    reduced: bool = True
    ahead: bool = False
    noise_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        scheme = self.scheme
        if not isinstance(scheme, str) or set(scheme) - set("ABO") or not set("AB") <= set(scheme):
            raise ValueError(
                "`scheme` must be a string of A, B and O, with both A and B in it, such as 'OBA' "
                f"or 'BAB'; got {scheme!r:.80}"
            )
        if self.noise_scale is not None:
            check_positive(self.noise_scale, "noise_scale")

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
                time = after if part.is_late else before
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
                position, momentum = self._renewed(phase, position, momentum, h, before + after)
        return torch.stack([position, momentum], 1)

    def _told(self, time: float, step: float) -> float:
        """Return the time that the network is told."""
        return min(time + step, self.path.t_max) if self.ahead else time

    def _renewed(
        self, phase: PhaseWalk, position: Tensor, momentum: Tensor, h: float, twice_mean: float
    ) -> tuple[Tensor, Tensor]:
        """Return positions and momenta after O, over ``h``, half of beta times its time."""
        made = []
        scale = 1.0 if self.noise_scale is None else 0.5 * twice_mean * self.noise_scale
        for part, friction, more in (
            (position, self.path.gamma, scale),
            (momentum, self.path.friction, 1.0),
        ):
            sd = math.sqrt(-math.expm1(-2 * more * friction * h))
            made.append(math.exp(-friction * h) * part + sd * phase.normal(part))
        return made[0], made[1]
