"""A free-form field: a continuous normalising flow."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyro_stad.fields.base import AbstractTrunkField
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.networks.perceptron import Trunk
from pyro_stad.registry import Source, storable

__all__ = ["FreeFormField"]


@storable("field", "free-form")
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
        self.event_shape, self.gate = torch.Size([features]), gate
        self.trunk = Trunk(features, width, depth, features, generator)

    def settings(self) -> dict[str, Any]:
        return self.sizes()

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> FreeFormField:
        return cls(**cls.parts_from(settings, source))
