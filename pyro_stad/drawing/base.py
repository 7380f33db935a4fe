r"""What every sampler shares: noise goes in, draws come out, and the network calls are known.

In own time and coordinates (:mod:`pyro_stad.paths.base`) a point is
:math:`y = \cos\varphi\, x_0 + \sin\varphi\, \epsilon`, and one call of the network gives the means
of both parts given y,

.. math:: \hat x = \cos\varphi\, y - \sin\varphi\, w, \qquad
    \hat\epsilon = \sin\varphi\, y + \cos\varphi\, w, \qquad
    \nabla\log p_\varphi(y) = -\hat\epsilon / \sin\varphi .

So a sampler does not see on which path a field was trained, and every sampler draws from every
field. Some simulate the dynamics of a path: that path is an option of theirs, the ``clock`` of
their grid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_flag, check_generator
from pyro_stad._progress import progress_bar
from pyro_stad.drawing.grids import AbstractGrid, as_numbers, check_steps, grid_of
from pyro_stad.drawing.walk import Walk
from pyro_stad.fields.base import AbstractAngularField, AbstractField
from pyro_stad.paths import VPCosine
from pyro_stad.registry import Source, build, describe, registered

__all__ = ["SAMPLERS", "AbstractSampler", "sampler_of"]

# A field that is on no path has a time that is to it what the angle is to others.
_FREE = VPCosine()


@dataclass(frozen=True, repr=False)
class AbstractSampler(ABC):
    """A way to draw from a field.

    Arguments:
        grid: where it stops; or a number of steps, on the sampler's usual grid.
        denoise: whether the mean of the data at the last stop is returned, for one more call.
            What a field describes is its data blurred by one percent of a standard deviation; a
            density is that of the blurred ones.

    Class attributes:
        usual_grid: a name in ``GRIDS``, for a number of steps: the truest one on most laws of
            ``benchmarks/samplers.py``.
        needs_score: whether the field must be on a Gaussian path.
    """

    grid: Any = 50
    denoise: bool = False

    usual_grid: ClassVar[str] = "quadratic"
    needs_score: ClassVar[bool] = True

    def __post_init__(self) -> None:
        as_numbers(self)
        if not isinstance(self.grid, AbstractGrid):
            if not isinstance(self.grid, Integral):
                raise TypeError(
                    "`grid` must be a number of steps or a grid, such as grid_of('edm', 20); got "
                    f"{self.grid!r:.80}"
                )
            check_steps(self.grid)
        check_flag(self.denoise, "denoise")

    @property
    def stops(self) -> AbstractGrid:
        """The grid, or the usual one of so many steps."""
        return self.grid if isinstance(self.grid, AbstractGrid) else self.usual(self.grid)

    def usual(self, steps: int) -> AbstractGrid:
        """Return the sampler's usual grid of so many steps."""
        return grid_of(self.usual_grid, steps)

    @property
    def is_stochastic(self) -> bool:
        """Whether noise is added on the way."""
        return False

    @property
    def calls_per_step(self) -> int:
        """Return how many network calls a step takes; most samplers take one."""
        return 1

    @abstractmethod
    def walk(self, way: Walk, y: Tensor, times: list[float]) -> Iterator[Tensor]:
        """Yield where noise ``y`` has come to after each step, from one time to the next."""

    def sequential_calls(self) -> int:
        """Return the network calls, one after the other, of a draw."""
        return self.stops.steps * self.calls_per_step + self.denoise

    def steps_within(self, calls: int) -> int:
        """Return the most steps that take no more than so many network calls."""
        return (calls - self.denoise) // self.calls_per_step

    def draw(
        self,
        field: AbstractField,
        z: Tensor,
        generator: torch.Generator | None = None,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Carry standard normal noise to draws.

        Differentiable in ``z``, and in the weights and context of the field.

        Arguments:
            field: the field, given its context if it has one.
            z: noise with shape ``(B, *event_shape)``.
            generator: source of the noise on the way, and of momenta; None for torch's global one.
                Go on with the one that drew ``z``: another one of its seed would draw the same
                numbers again.
            progress: whether to show a bar.

        Returns:
            Draws in the coordinates of the field's data, ``(B, *event_shape)``.

        Raises:
            TypeError: if the field is of a kind from which this sampler can't draw.
            ValueError: for noise of a wrong shape, or a generator of another device.
        """
        self._check(field, z, generator)
        way = Walk(field, generator)
        y, times = z, self.times(field)
        with progress_bar(type(self).__name__, self.stops.steps, shown=progress) as bar:
            for after in self.walk(way, z, times):
                y = after
                bar.update(1)
        return self.drawn(way, y, times[-1])

    def drawn(self, way: Walk, y: Tensor, time: float) -> Tensor:
        """Return the draws of what the walk has come to at its last time."""
        if self.denoise:
            return way.parts(time, y)[0]
        is_angle = isinstance(way.field, AbstractAngularField)
        return y / (math.cos(time) if is_angle else way.field.data_scale)

    def times(self, field: AbstractField) -> list[float]:
        """Return the stops in the field's own time, which is the angle if it is on a path."""
        if isinstance(field, AbstractAngularField):
            return self.stops.angles(field.t_min, field.t_max)
        low, high = _FREE.angles()
        share = (field.t_max - field.t_min) / (high - low)
        return [field.t_min + share * (angle - low) for angle in self.stops.angles(low, high)]

    def _check(self, field: AbstractField, z: Tensor, generator: torch.Generator | None) -> None:
        if not isinstance(field, AbstractField):
            raise TypeError(
                f"`field` must be a field, such as prior.likelihood.field; got {field!r:.80}"
            )
        if self.needs_score and not isinstance(field, AbstractAngularField):
            raise TypeError(
                f"{type(self).__name__} needs a field on a Gaussian path, whose score is known; "
                f"got {type(field).__name__}. Use ODE(steps), or fit with another `path`"
            )
        check_noise(field, z, generator)

    def __repr__(self) -> str:
        # What is as it usually is goes without saying.
        others = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name != "grid" and getattr(self, f.name) != _default(f)
        )
        return f"{type(self).__name__}({', '.join([repr(self.grid), *others])})"

    def settings(self) -> dict[str, Any]:
        """Return what a file says of the sampler."""
        others = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "grid"}
        grid = self.grid if isinstance(self.grid, int) else describe(self.grid, "grid")
        return {"grid": grid, **others}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source | None) -> Self:
        """Return the sampler that ``settings`` has described."""
        grid = settings["grid"]
        return cls(**{**settings, "grid": grid if isinstance(grid, int) else build(grid, "grid")})


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def check_noise(field: Any, z: Tensor, generator: torch.Generator | None) -> None:
    """Refuse noise of another shape, and a generator of another device."""
    wanted = f"(B, {', '.join(map(str, field.event_shape))})"
    if not isinstance(z, Tensor):
        raise TypeError(f"`z` must be a tensor of shape {wanted}; got {type(z).__name__}")
    if z.shape[1:] != field.event_shape:
        raise ValueError(
            f"`z` must have shape {wanted}, as events of the field have; got {tuple(z.shape)}. "
            "Draw it by torch.randn"
        )
    check_generator(generator, z.device)


SAMPLERS: Mapping[str, type[AbstractSampler]] = registered("sampler")


def sampler_of(name: str, calls: int, grid: str | None = None) -> AbstractSampler:
    """Return a sampler by name that takes at most so many network calls.

    Arguments:
        name: one of ``SAMPLERS``.
        calls: network calls, one after the other.
        grid: a name in ``GRIDS``, or None for the sampler's usual one.

    Raises:
        ValueError: for an unknown name, or if ``calls`` are too few for a step.
    """
    check_choice(name, "sampler", SAMPLERS)
    check_count(calls, "calls", least=0)
    kind = SAMPLERS[name]
    steps = kind(1).steps_within(calls)
    if steps < 1:
        raise ValueError(
            f"`calls` must be {kind(1).calls_per_step} at least for {name}; got {calls}"
        )
    return kind(steps if grid is None else grid_of(grid, steps))
