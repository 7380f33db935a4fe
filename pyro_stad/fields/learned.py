"""A learned field on a Gaussian path."""

from __future__ import annotations

from typing import Any

import torch

from pyro_stad.fields.base import AbstractAngularField, AbstractTrunkField
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.networks.perceptron import Trunk
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["PathField"]


@storable("field", "path")
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
        self._set_path(path, (features,))
        self.gate = gate
        self.trunk = Trunk(features, width, depth, features, generator)

    def settings(self) -> dict[str, Any]:
        return {"path": describe(self.path, "path"), **self.sizes()}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> PathField:
        return cls(build(settings["path"], "path"), **cls.parts_from(settings, source))
