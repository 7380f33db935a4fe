r"""Fields: what a teacher is to the rest of the package.

A field is a time-dependent velocity :math:`v(t, x)` whose flow carries a Gaussian
:math:`N(0, \text{terminal\_scale}^2 I)` at ``t_max`` into the data at ``t_min``. Everything
downstream (divergences, solvers, likelihoods) sees only this. A field on a Gaussian path has four
more faces, all conversions of its angular velocity (:mod:`pyro_stad.paths.base`).

A field also says in which *units* its divergence is best learned: :math:`\nabla\cdot v =
\text{offset}(t) + \text{unit}(t)\, r(t, x)`, where ``offset`` is the divergence of the linear
Gaussian baseline and :math:`r` is of order :math:`\sqrt D` at every time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_stad.paths import AbstractPath, convert
from pyro_stad.teacher.network import Hidden, Trunk

__all__ = ["AbstractField", "AbstractPathField", "AbstractTrunkField", "DivergenceUnits"]


class DivergenceUnits(NamedTuple):
    """Offset and unit of a field's divergence at times ``t``; both have the shape of ``t``."""

    offset: Tensor
    unit: Tensor


class AbstractField(nn.Module, ABC):
    """A velocity field between data at ``t_min`` and a centred Gaussian at ``t_max``.

    Attributes every leaf provides:
        features: the dimension D of a point.
        t_min, t_max: the data end and the noise end.
        data_scale: the field's variable at ``t_min`` is ``data_scale`` times the data.
        terminal_scale: standard deviation of each coordinate at ``t_max``.
    """

    features: int
    t_min: float
    t_max: float
    data_scale: float
    terminal_scale: float

    @abstractmethod
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`v(t, x)` for ``t`` of shape ``()`` or ``(B,)`` and ``x`` of shape ``(B, D)``."""

    @abstractmethod
    def coordinates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return an angle in [0, pi/2] and a point of unit scale: what a network wants to see."""

    @abstractmethod
    def divergence_units(self, t: Tensor) -> DivergenceUnits:
        """Return the units in which the divergence at ``t`` is of order one."""

    @abstractmethod
    def times(self, fractions: Tensor) -> Tensor:
        """Map ``fractions`` in [0, 1] to times, equally spaced in the field's natural clock."""


class AbstractPathField(AbstractField):
    """A field on a Gaussian path; leaves define ``angular`` and inherit all four faces."""

    path: AbstractPath

    @abstractmethod
    def angular(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the angular velocity :math:`w` with the shape of ``x``."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return convert.angular_to_velocity(self.path, t, x, self.angular(t, x))

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`\\nabla \\log p_t(x)`."""
        return convert.angular_to_score(self.path, t, x, self.angular(t, x))

    def noise(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`E[\\epsilon | x_t = x]`."""
        return convert.angular_to_noise(self.path, t, x, self.angular(t, x))

    def denoised(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`E[x_0 | x_t = x]`."""
        return convert.angular_to_denoised(self.path, t, x, self.angular(t, x))

    def coordinates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.path.polar(t)
        return p.angle, x / p.scale[..., None]

    def divergence_units(self, t: Tensor) -> DivergenceUnits:
        p = self.path.polar(t)
        return DivergenceUnits(self.features * p.log_scale_rate, p.angle_rate)

    def times(self, fractions: Tensor) -> Tensor:
        low, high = self.path.angles()
        times = self.path.time_at_angle(low + (high - low) * fractions)
        # The inverse clock rounds; the ends must not.
        times = torch.where(fractions <= 0, torch.full_like(times, self.t_min), times)
        return torch.where(fractions >= 1, torch.full_like(times, self.t_max), times)

    def _set_path(self, path: AbstractPath, features: int) -> None:
        """Fill in what the path determines."""
        self.path, self.features = path, features
        self.t_min, self.t_max = path.t_min, path.t_max
        low, _ = path.angles()
        ends = path.polar(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
        self.data_scale = ends.scale[0].item() * math.cos(low)
        self.terminal_scale = ends.scale[1].item()


class AbstractTrunkField(AbstractField):
    """A field whose network shows its hidden layers, so that a divergence head can share them."""

    trunk: Trunk

    @abstractmethod
    def velocity_and_hidden(self, t: Tensor, x: Tensor) -> tuple[Tensor, Hidden]:
        """Return the velocity, shape ``(B, D)``, and the trunk's hidden layers."""

    def hidden_and_tangent(
        self, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Hidden, Hidden]:
        """Return the trunk's hidden layers and their derivative along ``tangent`` of x."""
        angle, y = self.coordinates(t, x)
        # Coordinates are linear in x.
        return self.trunk.hidden_and_tangent(angle, y, self.coordinates(t, tangent)[1])
