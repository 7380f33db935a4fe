r"""Coordinates: from parameters to the whitened events that a likelihood knows, and back.

.. math:: v = \mu + L x, \quad u = m^{-1}(v), \quad \theta = b(u),

with the whitening, the margins m of coordinates that are far from normal, and, for bounded
parameters, the bijection b; angles are wrapped in between, so that their density is a sum over
images.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_stad.data import (
    AbstractWhitening,
    Bounds,
    Margins,
    Wrap,
    open_box,
    outer_transforms,
    support_of,
)
from pyro_stad.likelihood import AbstractLikelihood

__all__ = ["Coordinates"]


class Coordinates:
    """The maps between whitened events and parameters.

    Arguments:
        whitening: the affine map to whitened events.
        bounds: of the parameters, wound, or None.
        margins: the maps of single coordinates, or None.

    Attributes:
        transforms: the maps, in the order from whitened events to parameters.
        stand_in: parameters that have a density, for those that have none.
        support: where there is a density.
    """

    def __init__(
        self, whitening: AbstractWhitening, bounds: Bounds | None, margins: Margins | None
    ) -> None:
        self.whitening, self.margins, loc = whitening, margins, whitening.loc
        bends: list[Any] = [] if margins is None else [margins]
        self.outer = outer_transforms(bounds, loc)
        self.transforms: list[Transform] = [self.whitening, *bends, *self.outer]
        self.support = support_of(bounds, loc)
        # Made once: log_prob is called for every leapfrog step.
        angles = [part for part in self.outer if isinstance(part, Wrap)]
        self.wrap: Wrap | None = angles[0] if angles else None
        self.is_open = bounds is None
        self._low, self._high = open_box(bounds, loc)
        self.stand_in = functools.reduce(lambda x, part: part(x), self.transforms[1:], loc)

    def given(self, whitening: AbstractWhitening) -> Coordinates:
        """Return the same maps around another whitening, such as one for each row."""
        new = copy.copy(self)
        new.whitening, new.transforms = whitening, [whitening, *self.transforms[1:]]
        return new

    def inside(self, theta: Tensor) -> Tensor:
        """Return which rows of ``theta``, shape ``(B, *event_shape)``, have a density."""
        # Open: at a bound the bijection is infinite. NaN and infinity are not inside either.
        return ((theta > self._low) & (theta < self._high)).flatten(1).all(-1)

    def log_prob(self, likelihood: AbstractLikelihood, theta: Tensor) -> Tensor:
        """Return the log-density of rows that have one."""
        u, log_det = theta, self.whitening.log_det
        for transform in reversed(self.outer):
            y, u = u, transform.inv(u)
            log_det = log_det + transform.log_abs_det_jacobian(u, y)
        on_line = functools.partial(self._on_line, likelihood)
        if self.wrap is None:
            return on_line(u) - log_det
        return torch.logsumexp(self.wrap.terms(on_line, u), 0) - log_det

    def _on_line(self, likelihood: AbstractLikelihood, u: Tensor) -> Tensor:
        """Return the log-density of unbounded, unrolled rows ``u``, but for the whitening's."""
        if self.margins is None:
            return likelihood.log_prob_before(self.whitening, u)
        v, log_slope = self.margins.to_normal(u)
        return likelihood.log_prob_before(self.whitening, v) + log_slope

    def images(self, likelihood: AbstractLikelihood, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whitened images ``(K, B, ...)`` of rows, and their shares of the density."""
        u = self._to_line(theta)
        if self.wrap is None:
            white = self._from_line(u)
            return white[None], white.new_ones(1, len(white))
        share = torch.softmax(self.wrap.terms(functools.partial(self._on_line, likelihood), u), 0)
        return self._from_line(self.wrap.images(u)[0]), share

    def whiten(self, theta: Tensor) -> Tensor:
        """Carry points to whitened events: an angle to its principal image."""
        return self._from_line(self._to_line(theta))

    def unroll(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Carry samples ``(N, D)`` to whitened ones: an angle to one of its images by chance."""
        u = self._to_line(theta)
        return self._from_line(u if self.wrap is None else self.wrap.unroll(u, generator))

    def _to_line(self, theta: Tensor) -> Tensor:
        for transform in reversed(self.outer):
            theta = transform.inv(theta)
        return theta

    def _from_line(self, u: Tensor) -> Tensor:
        return self.whitening.inv(u if self.margins is None else self.margins.inv(u))
