r"""Learned fields: a network on a Gaussian path, and a free-form continuous normalising flow."""

from __future__ import annotations

import math

import torch

from pyro_stad.paths import AbstractPath
from pyro_stad.teacher.base import AbstractAngularField, AbstractTrunkField
from pyro_stad.teacher.gate import Gate
from pyro_stad.teacher.network import Trunk

__all__ = ["FreeFormField", "PathField"]


class PathField(AbstractTrunkField, AbstractAngularField):
    """A network for the angular velocity on a Gaussian path.

    Arguments:
        path: the Gaussian path.
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.
        generator: source of the first weights, or None for torch's global one.
        gate: what holds the velocity to zero far out, or None.

    Example:
        >>> import torch
        >>> from pyro_stad.paths import OptimalTransport
        >>> field = PathField(OptimalTransport(), features=2, width=16, depth=2)
        >>> field.score(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self,
        path: AbstractPath,
        features: int,
        width: int,
        depth: int,
        generator: torch.Generator | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self._set_path(path, features)
        self.gate = gate
        self.trunk = Trunk(features, width, depth, features, generator)


class FreeFormField(AbstractTrunkField):
    """A free-form velocity: a continuous normalising flow without a path or a known score.

    Its time runs over the same quarter turn as the angle of a path, which means nothing here but
    lets both share a network.

    References:
        Chen et al. (2018), Neural Ordinary Differential Equations; Grathwohl et al. (2019),
        FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models.
    """

    t_min, t_max, data_scale = 0.0, 0.5 * math.pi, 1.0

    def __init__(
        self,
        features: int,
        width: int,
        depth: int,
        generator: torch.Generator | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self.features, self.gate = features, gate
        self.trunk = Trunk(features, width, depth, features, generator)
