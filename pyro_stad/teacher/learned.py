r"""Learned fields: a network on a Gaussian path, and a free-form continuous normalising flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_stad.paths import AbstractPath, convert
from pyro_stad.teacher.base import AbstractPathField, AbstractTrunkField, DivergenceUnits
from pyro_stad.teacher.network import Hidden, Trunk

__all__ = ["FreeFormField", "PathField"]


class PathField(AbstractPathField, AbstractTrunkField):
    """A network for the angular velocity on a Gaussian path.

    Arguments:
        path: the Gaussian path.
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.

    Example:
        >>> from pyro_stad.paths import OptimalTransport
        >>> field = PathField(OptimalTransport(), features=2, width=16, depth=2)
        >>> field.velocity(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, path: AbstractPath, features: int, width: int, depth: int) -> None:
        super().__init__()
        self._set_path(path, features)
        self.trunk = Trunk(features, width, depth, features)

    def angular(self, t: Tensor, x: Tensor) -> Tensor:
        return self.trunk(*self.coordinates(t, x))

    def velocity_and_hidden(self, t: Tensor, x: Tensor) -> tuple[Tensor, Hidden]:
        w, hidden = self.trunk.with_hidden(*self.coordinates(t, x))
        return convert.angular_to_velocity(self.path, t, x, w), hidden


class FreeFormField(AbstractTrunkField):
    """A free-form velocity: a continuous normalising flow without a path or a known score.

    Time runs from 0 (data) to 1 (standard normal).

    References:
        Chen et al. (2018), Neural Ordinary Differential Equations; Grathwohl et al. (2019),
        FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models.
    """

    t_min, t_max, data_scale, terminal_scale = 0.0, 1.0, 1.0, 1.0

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.features = features
        self.trunk = Trunk(features, width, depth, features)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.trunk(*self.coordinates(t, x))

    def velocity_and_hidden(self, t: Tensor, x: Tensor) -> tuple[Tensor, Hidden]:
        return self.trunk.with_hidden(*self.coordinates(t, x))

    def coordinates(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * math.pi * t, x

    def divergence_units(self, t: Tensor) -> DivergenceUnits:
        return DivergenceUnits(torch.zeros_like(t), torch.ones_like(t))

    def times(self, fractions: Tensor) -> Tensor:
        return fractions
