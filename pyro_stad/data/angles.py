r"""Angles: coordinates of which both ends of a period are one point, unrolled onto the line.

A flow learns laws on the line. Cut at a seam, the law of an angle has two cliffs there; so it is
unrolled without one. Let c be a centre, half a period P away from the seam, and w a smooth window
about zero whose copies add up to one, :math:`\sum_k w(d + k P) = 1`: it is one up to
:math:`P/2 - h` and falls to zero at :math:`P/2 + h`. Then

.. math:: q(u) = p(u \bmod P)\, w(u - c)

is a law on the line, as smooth as p is, which wraps to p exactly. A sample of p becomes one of q by
taking each image :math:`\phi + k P` with probability :math:`w(\phi + k P - c)`. The seam is put
where the samples are fewest, and the overlap h shrinks with their density there: an angle that is
known well is not touched at all. Whatever smoothing q suffers, p suffers the same, for smoothing
and wrapping commute.

Back on the circle, with :math:`d \in [-P/2, P/2]` the offset from the centre,

.. math:: p(\phi) = q(c + d) + g(P - |d|)\, q(c + d \mp P),

with a gate g that is one where the window is not zero, and itself zero a quarter of a period
further out. So p is continuous across the seam, where two images change places, and at the centre,
where the further image does and has no weight; and what a network says far out, where it has seen
nothing, can't come round. All pieces are made of :math:`S(t) = t^3 (10 - 15 t + 6 t^2)`, which has
two continuous derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad._checks import is_transformed

__all__ = ["Angle", "Periodic", "Wrap"]

_BINS = 360
_NARROW, _WIDE = 100.0, 2.0  # concentrations of the kernels that look for the seam
_WIDE_SHARE = 0.05
_CROWDED = 0.2  # density at the seam, in units of the uniform one, from which the overlap is whole


class Periodic(NamedTuple):
    """The ends of one period of an angle: ``low`` and ``high`` are the same point."""

    low: float
    high: float


@dataclass(frozen=True)
class Angle:
    """An angle, and how it is unrolled.

    Attributes:
        low, high: ends of the period in which draws are reported, ``low`` among them.
        centre: middle of the unrolled period; the seam is half a period away.
        overlap: how far copies reach over the seam, on either side; at most a quarter of a period.
    """

    low: float
    high: float
    centre: float
    overlap: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise ValueError(f"an angle's period must be finite; got {self}")
        if not (math.isfinite(self.centre) and 0 <= self.overlap <= 0.2500001 * self.period):
            raise ValueError(f"an angle's overlap is at most a quarter of its period; got {self}")

    @property
    def period(self) -> float:
        """Length of the period."""
        return self.high - self.low

    @staticmethod
    def plain(ends: Periodic) -> Angle:
        """Return the angle with its seam at the ends, and the whole overlap."""
        low, high = ends
        return Angle(low, high, 0.5 * (low + high), 0.25 * (high - low))

    @staticmethod
    def of_samples(ends: Periodic, values: Tensor, weights: Tensor | None) -> Angle:
        """Return the angle with its seam where samples ``(N,)`` are fewest.

        Arguments:
            ends: where draws are reported.
            values: samples, of any period.
            weights: their weights with shape ``(N,)``, or None.
        """
        low, period = ends.low, ends.high - ends.low
        place = torch.remainder((values - low) / period, 1.0).double()
        bins = (place * _BINS).long().clamp_max(_BINS - 1)
        share = torch.bincount(bins, None if weights is None else weights.double(), _BINS).double()
        share = share / share.sum()
        turn = 2 * math.pi * (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS
        cosine = torch.cos(turn[:, None] - turn)
        density = _smoothed(share, cosine, _NARROW)
        # In a wide gap the narrow kernel sees nothing anywhere: the wide one finds its middle.
        score = density + _WIDE_SHARE * _smoothed(share, cosine, _WIDE)
        seam = int(score.argmin())
        overlap = 0.25 * period * min(1.0, density[seam].item() / _CROWDED)
        centre = low + period * (((seam + 0.5) / _BINS + 0.5) % 1.0)
        return Angle(*ends, centre, overlap)


def _smoothed(share: Tensor, cosine: Tensor, concentration: float) -> Tensor:
    """Return the density of binned samples, in units of the uniform one, by a von Mises kernel."""
    kernel = (concentration * (cosine - 1)).exp()
    return (kernel / kernel[0].mean()) @ share


class Wrap(Transform):
    """From the line to the circle, in the coordinates that are angles; others pass.

    Many points of the line are one of the circle. The inverse gives the principal one, within half
    a period of the centre, so that it is a right inverse.

    Arguments:
        angles: one for each coordinate, None where it is none; D in all.
        like: a tensor, for dtype and device.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = False

    def __init__(self, angles: tuple[Angle | None, ...], like: Tensor) -> None:
        super().__init__()
        self.turns = torch.tensor([a is not None for a in angles], device=like.device)
        # A coordinate that is no angle gets any numbers: what is computed of it is not used.
        known = [a or Angle(0.0, 1.0, 0.5, 0.25) for a in angles]
        columns = ("low", "high", "period", "centre", "overlap")
        self.low, self.high, self.period, self.centre, self.overlap = (
            torch.tensor([getattr(a, name) for a in known], dtype=torch.float64).to(like)
            for name in columns
        )
        count = int(self.turns.sum())
        sides = torch.cartesian_prod(*[torch.tensor([False, True])] * count).reshape(-1, count)
        self.sides = torch.zeros(len(sides), len(angles), dtype=torch.bool, device=like.device)
        self.sides[:, self.turns] = sides.to(like.device)

    def with_cache(self, cache_size: int = 1) -> Wrap:
        """Return self: there is nothing to cache."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        y = x - self.period * torch.floor((x - self.low) / self.period)
        # By rounding, a point just below an end can come out at the other one, or beyond.
        y = torch.where((y >= self.high) | (y < self.low), self.low, y)
        return torch.where(self.turns, y, x)

    def _inverse(self, y: Tensor) -> Tensor:
        principal = y - self.period * torch.round((y - self.centre) / self.period)
        return torch.where(self.turns, principal, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return zero: locally it is a shift."""
        return torch.zeros_like(x[..., 0])

    def unroll(self, u: Tensor, generator: torch.Generator) -> Tensor:
        """Take each principal point ``u``, shape ``(N, D)``, to an image by the window's chance.

        Rows that are equal go to the same image: they may be one state of a chain, and are to stay
        together when a sample is split.
        """
        _, row = torch.unique(u, dim=0, return_inverse=True)
        chance = torch.rand(
            u.shape, generator=generator, dtype=torch.float64, device=generator.device
        ).to(u)[row]
        offset = (u - self.centre).abs()
        # Without an overlap the window is a step, and every principal point stays.
        stays = _smooth_step((0.5 * self.period + self.overlap - offset) / (2 * self.overlap))
        goes = self.turns & (self.overlap > 0) & (chance >= stays)
        return torch.where(goes, self._other(u), u)

    def images(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return all images of principal points ``u``, shape ``(B, D)``, that can have weight.

        Returns:
            For m angles, images with shape ``(2 ** m, B, D)``, the principal one first, and the
            logarithms of their gates, ``(2 ** m, B)``.
        """
        sides = self.sides[:, None, :]
        near = (u - self.centre).abs()
        gate = _smooth_step((near + self.overlap) / (0.25 * self.period) - 1)
        is_open = gate > 0
        log_gate = torch.where(is_open, torch.where(is_open, gate, 1.0).log(), -torch.inf)
        return torch.where(sides, self._other(u), u), torch.where(sides, log_gate, 0.0).sum(-1)

    def terms(self, log_prob: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
        """Return the logarithms of what each image adds to the density, ``(2 ** m, B)``.

        Arguments:
            log_prob: log-density on the line, of rows ``(B, D)``.
            u: principal points with shape ``(B, D)``.
        """
        points, log_gate = self.images(u)
        is_open = torch.isfinite(log_gate)
        if is_transformed(u):
            # Without a look at the content: all images, closed ones at a place that is harmless.
            points = torch.where(is_open[..., None], points, u)
            return log_gate + log_prob(points.flatten(0, 1)).reshape(log_gate.shape)
        # Well inside the window, one image is all there is.
        found = torch.full_like(log_gate, -torch.inf)
        found[is_open] = log_prob(points[is_open])
        return log_gate + found

    def _other(self, u: Tensor) -> Tensor:
        """Return the second nearest image of principal points."""
        return u + torch.where(u < self.centre, self.period, -self.period)


def _smooth_step(t: Tensor) -> Tensor:
    """Return zero below zero, one above one, and a step with two derivatives between."""
    t = t.clamp(0.0, 1.0)
    return t**3 * (10 - 15 * t + 6 * t.square())
