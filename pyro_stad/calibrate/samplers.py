r"""Which sampler draws truest for a number of network calls: measured on the field itself.

The energy distance of two laws,
:math:`2 E\lVert x - y\rVert - E\lVert x - x'\rVert - E\lVert y - y'\rVert`, is zero for equal laws
alone, and has no parameter to choose. It is taken between draws of a sampler and those of a long
solve, both whitened, in blocks of independent draws: the scatter of blocks is its error. Every
sampler meets the same blocks of the reference, so that two are compared by the differences of their
blocks.

Many samplers are within chance of the best. Of those, one without noise on the way is preferred:
its draws are a smooth function of the noise that goes in, and how far they are from those of the
long solve, from the same noise, is known to many digits (the *displacement*; it bounds what any
mean, quantile or standard deviation is off by, see :mod:`pyro_stad.calibrate.draws`). The one of
the smallest displacement is taken; without any, the one with the smallest distance.

References:
    Szekely and Rizzo (2013), Energy Statistics: A Class of Statistics Based on Distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import decode, encode
from pyro_stad._progress import progress_bar
from pyro_stad.drawing import ODE, AbstractPhaseSampler, AbstractSampler
from pyro_stad.fields.base import AbstractField
from pyro_stad.registry import build, describe

__all__ = ["SamplerTrial", "Sampling", "choose_sampler_of", "energy_distance"]

_BLOCKS, _ROWS = 8, 500
_REFERENCE_STEPS = 64
_ERRORS = 2.0


@dataclass(frozen=True)
class SamplerTrial:
    """A sampler that was tried.

    Attributes:
        sampler: its repr.
        sequential_calls: network calls, one after the other, of a draw.
        distance, distance_error: energy distance to draws of a long solve, whitened, with its
            standard error; zero, within the error, for draws of the same law.
        displacement: root mean square of how far draws are from those of the long solve, from the
            same noise, a whitened coordinate; NaN for a sampler that adds noise of its own.
    """

    sampler: str
    sequential_calls: int
    distance: float
    distance_error: float
    displacement: float = math.nan

    def __post_init__(self) -> None:
        check_count(self.sequential_calls, "sequential_calls")

    def text(self) -> str:
        """Return it as a line of text."""
        apart = "" if math.isnan(self.displacement) else f", displacement {self.displacement:.2g}"
        return (
            f"  draws by {self.sampler}, {self.sequential_calls} sequential calls: energy distance "
            f"{self.distance:+.2g} +- {self.distance_error:.1g} to a long solve{apart}"
        )


@dataclass(frozen=True)
class Sampling:
    """How a prior draws, and what was tried, if anything was.

    Attributes:
        sampler: the sampler.
        trials: all that were tried, the one that was taken first.
    """

    sampler: AbstractSampler
    trials: tuple[SamplerTrial, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {"sampler": describe(self.sampler, "sampler"), "trials": encode(self.trials)}

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> Sampling:
        """Return what ``to_dict`` described."""
        trials = decode(tuple[SamplerTrial, ...], stored["trials"], "trials")
        return Sampling(build(stored["sampler"], "sampler"), trials)

    def text(self) -> str:
        """Return it as a line of text."""
        if self.trials:
            return self.trials[0].text()
        calls = self.sampler.sequential_calls()
        return f"  draws by {self.sampler!r}, {calls} sequential calls: not measured"


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance of two samples of independent points, ``(n, ...)``: unbiased."""
    x, y = x.flatten(1).double(), y.flatten(1).double()

    def within(points: Tensor) -> float:
        return 2 * torch.pdist(points).mean().item()

    across = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean().item()
    return 2 * across - 0.5 * (within(x) + within(y))


def choose_sampler_of(
    field: AbstractField,
    like: Tensor,
    tried: Sequence[AbstractSampler],
    generator: torch.Generator,
    *,
    progress: bool,
) -> Sampling:
    """Return the sampler that draws truest from a field.

    Arguments:
        field: the field, which has closed over its context if it has one.
        like: whitened data, for their dtype and device.
        tried: the samplers.
        generator: source of randomness.
        progress: whether to show a bar.
    """
    shape = (_BLOCKS * _ROWS, *field.event_shape)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    with torch.no_grad():
        z, other = noise(), noise()
        long = ODE(_REFERENCE_STEPS, rule="rk4")
        truth, others = long.draw(field, z), long.draw(field, other)
        blocks = []
        with progress_bar("samplers", len(tried), shown=progress) as bar:
            for sampler in tried:
                x = sampler.draw(field, z, generator)
                pairs = zip(x.split(_ROWS), others.split(_ROWS))
                distances = [energy_distance(a, b) for a, b in pairs]
                apart = math.nan
                if not (sampler.is_stochastic or isinstance(sampler, AbstractPhaseSampler)):
                    apart = (x - truth).double().square().mean().sqrt().item()
                blocks.append((sampler, torch.tensor(distances, dtype=torch.float64), apart))
                bar.update(1)
    return _taken(blocks)


def _taken(blocks: list[tuple[AbstractSampler, Tensor, float]]) -> Sampling:
    """Return the choice between samplers, from their distances by block and displacements."""
    finite = [block for block in blocks if bool(block[1].isfinite().all())]
    if not finite:
        raise ValueError("no sampler gave finite draws of this field; allow more network calls")
    best = min(finite, key=lambda block: block[1].mean().item())
    alike = [block for block in finite if _is_alike(block[1], best[1])]
    known = [block for block in alike if not math.isnan(block[2])]
    taken = min(known, key=lambda block: block[2]) if known else best
    order = [taken, *sorted((b for b in finite if b is not taken), key=lambda b: b[1].mean())]
    return Sampling(taken[0], tuple(_trial(*block) for block in order))


def _is_alike(distances: Tensor, best: Tensor) -> bool:
    """Tell whether a sampler is within chance of the best one, by their differences."""
    more = distances - best
    return bool(more.mean() <= _ERRORS * more.std() / math.sqrt(len(more)))


def _trial(sampler: AbstractSampler, distances: Tensor, apart: float) -> SamplerTrial:
    error = distances.std().item() / math.sqrt(len(distances))
    return SamplerTrial(
        repr(sampler), sampler.sequential_calls(), distances.mean().item(), error, apart
    )
