"""A learned field on a Gaussian path that depends on a context."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._joined import repeat_rows
from pyro_stad.fields.base import AbstractAngularField, AbstractTrunkField
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.networks.conditional import ConditionalTrunk
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["ConditionalPathField"]


@storable("field", "conditional-path")
class ConditionalPathField(AbstractTrunkField, AbstractAngularField):
    """A network for the angular velocity on a Gaussian path, given a context.

    Arguments:
        path: the Gaussian path.
        features: dimension D of a point.
        context: dimension C of a context.
        width: units of each hidden layer.
        depth: number of hidden layers.
        generator: source of the first weights, or None for torch's global one.
        gate: what holds the velocity to zero far out, or None.

    Raises:
        ValueError: where a velocity is asked for and no context was given.

    Example:
        >>> from pyro_stad.paths import OptimalTransport
        >>> field = ConditionalPathField(OptimalTransport(), 2, context=3, width=16, depth=2)
        >>> field.given(torch.zeros(7, 3)).score(torch.tensor(0.5), torch.zeros(7, 2)).shape
        torch.Size([7, 2])
    """

    trunk: ConditionalTrunk

    def __init__(
        self,
        path: AbstractPath,
        features: int,
        context: int,
        width: int,
        depth: int,
        generator: torch.Generator | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__()
        self._set_path(path, (features,))
        self.context_shape, self.gate = torch.Size([context]), gate
        self.trunk = ConditionalTrunk(features, context, width, depth, features, generator)

    def given(self, context: Tensor) -> Self:
        new = copy.copy(self)
        # Of its own: a shallow copy shares the dictionary of its parts.
        new._modules = {**self._modules, "trunk": self.trunk.given(context)}
        new.context = context
        return new

    def repeated(self, count: int) -> Self:
        # What was encoded is repeated, and not what is to be encoded.
        if self.context is None:
            return self
        new = copy.copy(self)
        new._modules = {**self._modules, "trunk": self.trunk.repeated(count)}
        new.context = repeat_rows(self.context, count)
        return new

    def settings(self) -> dict[str, Any]:
        context = self.context_shape.numel()
        return {"path": describe(self.path, "path"), "context": context, **self.sizes()}

    @classmethod
    def from_settings(
        cls, name: str, settings: dict[str, Any], source: Source
    ) -> ConditionalPathField:
        context = settings["context"]
        check_count(context, "context", most=source["trunk.encoder.enter.weight"].shape[1])
        return cls(
            build(settings["path"], "path"), context=context, **cls.parts_from(settings, source)
        )
