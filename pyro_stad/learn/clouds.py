r"""Clouds: where a divergence is learned, and the score of the law of these places.

Three choices of the law p and its score S in :mod:`pyro_stad.learn.distil`:

- ``TeacherCloud``: the path's law with the teacher's own score; low variance, but the minimiser is
  :math:`\nabla\cdot v + v\cdot(S_\text{true} - S_\text{teacher})`.
- ``ConditionalCloud``: the path's law with the conditional score :math:`-\epsilon / s` of the pair
  that made the point; the minimiser is the divergence, whatever the teacher's error.
- ``PerturbedCloud``: any points (here, trajectories of the field itself) perturbed by
  :math:`h\,\epsilon`, with :math:`S = -\epsilon / h`; for fields without a score.

The last two draw the noise in antithetic pairs, which cancels the part of their variance that
grows like the inverse square of the noise scale. What is left at small noise is that of a
Hutchinson probe, :math:`\epsilon\cdot J\epsilon` in place of its mean, and most of that goes if the
noises of a datum are orthogonal: at equal cost the error of log p fell from 0.27 to 0.20 nat in 16
dimensions and from 0.35 to 0.32 in 32.

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad._events import beside, event_sum
from pyro_stad._joined import given
from pyro_stad.data.batches import Batches, balanced_noise, stratified
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractAngularField, AbstractField
from pyro_stad.learn.matching import Pairs, draw_pairs
from pyro_stad.ode import RK4, AbstractFixedGrid

__all__ = [
    "AbstractCloud",
    "AbstractPathCloud",
    "ConditionalCloud",
    "PerturbedCloud",
    "Points",
    "TeacherCloud",
    "cloud_for",
    "stein_residual",
]


class Points(NamedTuple):
    """Where to train: times ``(B,)``, points ``(B, D)``, scores ``(B, D)`` of their law.

    And, where the field has one, their context, ``(B, C)``.
    """

    t: Tensor
    x: Tensor
    score: Tensor
    context: Tensor | None = None


class AbstractCloud(ABC):
    """A law of points ``(t, x)`` with a score of that law at each of them."""

    field: AbstractField
    like: Tensor

    @abstractmethod
    def at(self, fraction: Tensor, generator: torch.Generator, *, frame: int = 1) -> Points:
        """Return points at ``fraction`` of the clock, shape ``(B,)``.

        There are ``2 B frame`` of them: about each of B centres, ``frame`` orthogonal noises, and
        then, as the second half, the same noises reversed.
        """

    def draw(self, count: int, generator: torch.Generator, *, frame: int = 1) -> Points:
        """Return at most ``count`` points, in whole frames, at stratified times."""
        centres = max(1, count // (2 * frame))
        return self.at(stratified(centres, generator, self.like), generator, frame=frame)


class AbstractPathCloud(AbstractCloud):
    """The law of a Gaussian path: data and noise, mixed at an angle.

    Arguments:
        field: a field on a Gaussian path.
        batches: the data, whitened.
    """

    def __init__(self, field: AbstractAngularField, batches: Batches) -> None:
        self.field: AbstractAngularField = field
        self.batches, self.like = batches, batches.values

    def at(self, fraction: Tensor, generator: torch.Generator, *, frame: int = 1) -> Points:
        pairs = draw_pairs(self.field, self.batches, fraction, generator, frame=frame)
        with torch.no_grad():
            noise = self._noise(pairs)
        score = -noise / beside(torch.sin(pairs.angle), noise)
        return Points(pairs.angle, pairs.y, score, pairs.context)

    @abstractmethod
    def _noise(self, pairs: Pairs) -> Tensor:
        """Return the noise whose negative, over its scale, is taken for the score."""


class TeacherCloud(AbstractPathCloud):
    """The path's law with the teacher's score; see ``AbstractPathCloud``."""

    def _noise(self, pairs: Pairs) -> Tensor:
        cos, sin = (beside(f(pairs.angle), pairs.y) for f in (torch.cos, torch.sin))
        velocity = given(self.field, pairs.context).velocity(pairs.angle, pairs.y)
        return sin * pairs.y + cos * velocity


class ConditionalCloud(AbstractPathCloud):
    r"""The path's law with each point's score given its data, :math:`-\epsilon / \sin\varphi`."""

    def _noise(self, pairs: Pairs) -> Tensor:
        return pairs.noise


class PerturbedCloud(AbstractCloud):
    """Perturbed trajectories of the field, for fields without a score.

    Arguments:
        field: any field.
        batches: the data, whitened.
        solver: a fixed grid; its knots are joined by straight lines.
        scale: standard deviation h of the perturbation. The law of the points is smoothed by it;
            the minimiser is the divergence all the same.
        pool: number of trajectories, computed once.
        generator: source of the trajectories' data.
    """

    def __init__(
        self,
        field: AbstractField,
        batches: Batches,
        solver: AbstractFixedGrid,
        *,
        scale: float = 0.1,
        pool: int = 4096,
        generator: torch.Generator,
    ) -> None:
        self.field, self.scale = field, scale
        start = batches.draw(pool, generator) * field.data_scale
        with torch.no_grad():
            self.times, self.like = solver.trajectory(
                field.velocity, start, field.t_min, field.t_max
            )

    def at(self, fraction: Tensor, generator: torch.Generator, *, frame: int = 1) -> Points:
        knots, times, t = self.like, self.times, self.field.at_fraction(fraction)
        left = torch.searchsorted(times, t, right=True).sub(1).clamp(0, len(times) - 2)
        share = (t - times[left]) / (times[left + 1] - times[left])
        row = torch.randint(
            knots.shape[1], fraction.shape, generator=generator, device=knots.device
        )
        start, end = knots[left, row], knots[left + 1, row]
        centre, event = torch.lerp(start, end, beside(share, start)), start.shape[1:]
        noise = balanced_noise(len(t), frame, event.numel(), generator, knots)
        noise = noise.reshape(-1, *event)
        x = torch.cat([centre.repeat_interleave(frame, 0)] * 2) + self.scale * noise
        return Points(t.repeat_interleave(frame).repeat(2), x, -noise / self.scale)


def cloud_for(field: AbstractField, batches: Batches, generator: torch.Generator) -> AbstractCloud:
    """Return the cloud of ``field`` whose score is known without error."""
    if field.has_score:
        return ConditionalCloud(cast(AbstractAngularField, field), batches)
    return PerturbedCloud(field, batches, RK4(16), generator=generator)


def stein_residual(
    divergence: AbstractDivergence, field: AbstractField, points: Points
) -> tuple[Tensor, Tensor]:
    r"""Estimate :math:`E_p[d + v\cdot S]`, which is zero for the true divergence.

    Arguments:
        divergence: the divergence under test.
        field: the field.
        points: points at one or several times, from a cloud.

    Returns:
        Mean and standard error, scalars, of the identity divided by :math:`\sqrt D`, the order
        of the divergence itself.
    """
    t, x, score, context = points
    with torch.no_grad():
        here = given(field, context)
        velocity, values = divergence.velocity_and_divergence(here, t, x)
        values = (values + event_sum(velocity * score)) / math.sqrt(field.features)
        # Antithetic halves are dependent; their means are not.
        values = values.reshape(2, -1).mean(0)
    return values.mean(), values.std() / math.sqrt(len(values))
