r"""A draw under way in phase space: positions and momenta side by side, and their scores.

Pairs have shape ``(B, 2, *event_shape)``. The network is that of the field, of positions alone; see
:mod:`pyro_stad.paths.phase` for how it knows the score of both. Momenta begin as noise, and are
dropped at the end: what is drawn is :math:`u / \cos\varphi`, of which the data are a part, at the
last time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad.drawing.base import AbstractSampler
from pyro_stad.drawing.grids import AbstractGrid, Grid
from pyro_stad.drawing.walk import Walk
from pyro_stad.fields.base import AbstractField
from pyro_stad.ode import time_like
from pyro_stad.paths import PSLD, PhaseLaw
from pyro_stad.registry import build, describe

__all__ = ["AbstractPhaseSampler", "PhaseWalk", "Score", "mixed"]


class Score(NamedTuple):
    """The score of the law of positions and momenta, each ``(B, *event_shape)``."""

    position: Tensor
    momentum: Tensor


class PhaseWalk:
    """What a sampler in phase space needs on its way.

    Arguments:
        way: the field, its calls and its noise.
        path: the diffusion.
    """

    def __init__(self, way: Walk, path: PSLD) -> None:
        self.way, self.path = way, path

    def law(self, t: float) -> PhaseLaw:
        """Return the law of the pair at a time, in float64, on the CPU."""
        return self.path.law(torch.tensor(t, dtype=torch.float64, device="cpu"))

    def asked(self, law: PhaseLaw, z: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return u, the angular velocity there, and the angle: one call of the network."""
        bounded = law.angle.clamp(self.way.field.t_min, self.way.field.t_max).item()
        u = mixed(law.weights / torch.cos(law.angle), z)
        return u, self.way.velocity(time_like(u, bounded), u), law.angle.item()

    def score(self, t: float, z: Tensor) -> Score:
        """Return the score at a time: one call of the network."""
        law = self.law(t)
        _, w, _ = self.asked(law, z)
        pull = law.weights / torch.sin(law.angle)
        found = (-mixed(row, z) - by * w for row, by in zip(law.precision, pull.tolist()))
        return Score(*found)

    def normal(self, like: Tensor) -> Tensor:
        return self.way.normal(like)


def mixed(weights: Tensor, z: Tensor) -> Tensor:
    """Return a combination of positions and momenta, by weights ``(2,)``, or two by ``(2, 2)``."""
    weights = weights.to(z)
    if weights.ndim == 1:
        return weights[0] * z[:, 0] + weights[1] * z[:, 1]
    return torch.stack([mixed(row, z) for row in weights], 1)


@dataclass(frozen=True, repr=False)
class AbstractPhaseSampler(AbstractSampler):
    """A way to draw by the reverse of a phase-space Langevin diffusion.

    Arguments:
        grid: where it stops; or a number of steps, in the time of the diffusion: quadratic with
            noise on the way, and even without, as was truest on most laws of
            ``benchmarks/samplers.py``.
        denoise: whether the mean of the data at the last stop is returned, for one more call.
        path: the diffusion.
    """

    path: PSLD = field(default_factory=PSLD)

    def __post_init__(self) -> None:
        if not isinstance(self.path, PSLD):
            raise TypeError(f"`path` must be a PSLD; got {self.path!r}")
        super().__post_init__()

    def usual(self, steps: int) -> AbstractGrid:
        return Grid(steps, 2.0 if self.is_stochastic else 1.0, self.path)

    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        phase = PhaseWalk(way, self.path)
        yield from self.moves(phase, torch.stack([y, way.normal(y)], 1), times)

    @abstractmethod
    def moves(self, phase: PhaseWalk, z: Tensor, times: list[float]) -> Iterator[Tensor]:
        """Yield positions and momenta after each step."""

    def drawn(self, way: Walk, y: Tensor, time: float) -> Tensor:
        phase = PhaseWalk(way, self.path)
        law = phase.law(time)
        cos = torch.cos(law.angle)
        if not self.denoise:
            return mixed(law.weights / cos**2, y)
        u, w, _ = phase.asked(law, y)
        return cos.item() * u - torch.sin(law.angle).item() * w

    def times(self, field: AbstractField) -> list[float]:
        return self.stops.times(self.path)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "path": describe(self.path, "path")}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Any) -> Any:
        path = build(settings["path"], "path")
        return super().from_settings(name, {**settings, "path": path}, source)
