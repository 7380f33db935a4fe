r"""Where a sampler stops on its way from noise to data.

In own coordinates every Gaussian path is the same curve, so that a grid is a list of angles, and
the named ones of the literature are steps that are even, or graded, on some path's clock:

- *uniform*: even in the time of the variance preserving path (Song et al., 2021);
- *quadratic*: its steps grow in proportion to the distance from the data, by a power of 2;
- *log-SNR*: even in :math:`\log\cot\varphi`, the time of the variance exploding path;
- *EDM*: even in :math:`\sigma^{1/\rho}`, with :math:`\sigma = \tan\varphi` (Karras et al., 2022).

A grid knows no field: the angles that it gives end where those of the field end, or where the
clock's do. The law at a noise of 80 standard deviations of the data is normal to 1e-4.

References:
    Song et al. (2021), Score-Based Generative Modeling through Stochastic Differential Equations;
    Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models; Lu et
    al. (2022), DPM-Solver.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_positive
from pyro_stad._config import decode
from pyro_stad.paths import EDM, AbstractPath, VarianceExploding, VPLinear
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["GRIDS", "AbstractGrid", "Grid", "Knots", "as_numbers", "check_steps", "grid_of"]

_MOST_STEPS = 100_000
_DATA_END, _NOISE_END = 0.01, 80.0  # ratios of noise to data


class AbstractGrid(ABC):
    """A list of times from noise to data, on some path's clock."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number of steps."""

    @abstractmethod
    def angles(self, low: float, high: float) -> list[float]:
        """Return angles that fall within ``high`` and ``low``: one more than there are steps."""

    def times(self, clock: AbstractPath) -> list[float]:
        """Return the times of some path's clock at these angles, falling to its data end."""
        angles = torch.tensor(self.angles(*clock.angles()), dtype=torch.float64, device="cpu")
        return clock.time_at_angle(angles).tolist()


def check_steps(steps: Any) -> None:
    """Refuse what is no number of steps."""
    check_count(steps, "steps", most=_MOST_STEPS)


def as_numbers(part: Any) -> None:
    """Make numbers of numpy in a frozen dataclass those of Python, which files can hold."""
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, np.generic):
            object.__setattr__(part, f.name, value.item())


@storable("grid", "clock")
@dataclass(frozen=True, repr=False)
class Grid(AbstractGrid):
    """Steps that are even, or graded, on a path's clock.

    Arguments:
        count: number of steps.
        power: 1 for even steps; with 2, they grow in proportion to the distance from the data end.
        clock: the path whose time it is.

    Example:
        >>> [round(angle, 2) for angle in Grid(2, clock=VPLinear()).angles(0.01, 1.57)]
        [1.56, 1.29, 0.01]
    """

    count: int
    power: float = 1.0
    clock: AbstractPath = field(default_factory=VPLinear)

    def __post_init__(self) -> None:
        check_steps(self.count)
        check_positive(self.power, "power")
        as_numbers(self)
        if not isinstance(self.clock, AbstractPath):
            raise TypeError(f"`clock` must be a path, such as VPLinear(); got {self.clock!r}")

    def __repr__(self) -> str:
        power = "" if self.power == 1 else f", power={self.power:g}"
        usual = self.clock == type(self.clock)()
        clock = type(self.clock).__name__ if usual else repr(self.clock)
        return f"Grid({self.count}{power}, {clock})"

    def settings(self) -> dict[str, Any]:
        clock = describe(self.clock, "path")
        return {"count": self.count, "power": self.power, "clock": clock}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source | None) -> Grid:
        power = decode(float, settings["power"], "power")
        return cls(settings["count"], power, build(settings["clock"], "path"))

    @property
    def steps(self) -> int:
        return self.count

    def angles(self, low: float, high: float) -> list[float]:
        ends = torch.tensor([low, high], dtype=torch.float64, device="cpu")
        first, last = self.clock.time_at_angle(ends).tolist()
        return self.clock.polar(self._spread(first, last)).angle.clamp(low, high).tolist()

    def times(self, clock: AbstractPath) -> list[float]:
        if clock == self.clock:
            return self._spread(clock.t_min, clock.t_max).tolist()
        return super().times(clock)

    def _spread(self, first: float, last: float) -> Tensor:
        places = torch.linspace(1, 0, self.count + 1, dtype=torch.float64, device="cpu")
        return first + (last - first) * places**self.power


@storable("grid", "knots")
@dataclass(frozen=True)
class Knots(AbstractGrid):
    """Angles that the user has chosen.

    Arguments:
        knots: angles in radians, falling from noise, at most half a pi, to data.
    """

    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        try:
            knots = tuple(map(float, self.knots))
        except (TypeError, ValueError):
            knots = ()
        object.__setattr__(self, "knots", knots or self.knots)
        falls = all(after < before for before, after in pairwise(knots))
        if len(knots) < 2 or not falls or not 0 < knots[-1] or not knots[0] <= math.pi / 2:
            raise ValueError(
                "`knots` must be two angles at least, within (0, pi/2], each smaller than the one "
                f"before it: from noise to data; got {self.knots!r:.80}"
            )

    @property
    def steps(self) -> int:
        return len(self.knots) - 1

    def angles(self, low: float, high: float) -> list[float]:
        if self.knots[0] > high + 1e-9 or self.knots[-1] < low - 1e-9:
            raise ValueError(
                f"`knots` must lie within the angles of the field, {low} to {high}; got "
                f"{self.knots[-1]} to {self.knots[0]}"
            )
        return list(self.knots)


def _log_snr(steps: int) -> Grid:
    return Grid(steps, clock=VarianceExploding(sigma_min=_DATA_END, sigma_max=_NOISE_END))


def _edm(steps: int) -> Grid:
    return Grid(steps, clock=EDM(sigma_min=_DATA_END, sigma_max=_NOISE_END))


GRIDS: Mapping[str, Callable[[int], Grid]] = MappingProxyType(
    {
        "uniform": Grid,
        "quadratic": lambda steps: Grid(steps, power=2.0),
        "log-snr": _log_snr,
        "edm": _edm,
    }
)


def grid_of(name: str, steps: int) -> Grid:
    """Return a grid by the name that the literature has for it, one of ``GRIDS``."""
    check_choice(name, "grid", GRIDS)
    return GRIDS[name](steps)
