r"""The distilled divergence: a scalar network in place of the trace.

The network predicts :math:`r` in :math:`\nabla\cdot v = \sqrt D\, r(t, x)`, in the field's own
time and coordinates, where an untrained network (:math:`r = 0`) is the exact divergence of the
Gaussian baseline. Two leaves: a head that reads the hidden layers of the
teacher's trunk, so that one pass yields velocity and divergence, and a separate network for
fields that show no layers.

The head is bounded, and the separate network, a perceptron of SiLU units, grows at most linearly
in x; either keeps :math:`p\, r\, v` in the Stein class whenever p has Gaussian tails
(:mod:`pyro_stad.learn.distil`).

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractField, AbstractTrunkField
from pyro_stad.fields.networks.conditional import ConditionalTrunk
from pyro_stad.fields.networks.perceptron import ANGLE_FEATURES, Trunk, linear, trunk_sizes
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["AbstractDivergenceNetwork", "SeparateNetwork", "Stein", "TrunkHead"]


class AbstractDivergenceNetwork(nn.Module, ABC):
    r"""A scalar network for the divergence over :math:`\sqrt D`."""

    def settings(self) -> dict[str, Any]:
        """Return what builds a network of this size again, for a field that is there."""
        return {}

    @abstractmethod
    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity ``(B, D)`` and :math:`r(t, x)`, shape ``(B,)``, without a gate."""

    @abstractmethod
    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return r and its derivative along ``tangent``, a direction of x; both ``(B,)``."""


@storable("divergence network", "head")
class TrunkHead(AbstractDivergenceNetwork):
    r"""A head on the hidden layers of the teacher's trunk: a chain of their derivatives.

    .. math:: c_1 = \lambda_1, \qquad
        c_{l+1} = \lambda_{l+1} \odot (A_l c_l + a_l(\varphi)), \qquad
        r = \langle o(\varphi), c_L \rangle + \mathrm{clock}(\varphi),

    where :math:`\lambda_l` are the derivatives of layer l. The trace of the trunk's Jacobian is
    multilinear in the :math:`\lambda_l`, and so is the chain: it contains the trace itself for
    trunks of one and two layers, and the best coupling of rank one for deeper ones, one for each
    angle as far as a and o can turn with it. (Constant a and o leave 1.4 times the error in 16
    dimensions.) A perceptron on all activations, added to the chain, changed the error by a few
    percent in either direction and cost more, so it was left out. The derivatives are bounded, and
    so is r.

    Arguments:
        trunk_width: units of each layer of the trunk.
        trunk_depth: number of hidden layers of the trunk.
        generator: source of the first weights, or None for torch's global one.
    """

    def __init__(
        self, trunk_width: int, trunk_depth: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.width = trunk_width
        self.links = nn.ModuleList(
            linear(trunk_width, trunk_width, generator, bias=False) for _ in range(trunk_depth - 1)
        )
        # The a of every link, then o.
        self.turning = linear(ANGLE_FEATURES, trunk_width * trunk_depth, generator)
        self.clock = Clock(generator)
        nn.init.zeros_(self.turning.weight)
        nn.init.zeros_(self.turning.bias)

    @staticmethod
    def for_field(field: AbstractField, generator: torch.Generator | None = None) -> TrunkHead:
        """Return an untrained head that fits the trunk of ``field``."""
        trunk = _with_trunk(field).trunk
        return TrunkHead(trunk.width, trunk.depth, generator)

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> TrunkHead:
        return cls.for_field(source.given["field"], torch.Generator(), **settings)

    def _at(self, embedded: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        """Return transposed matrix and bias of every link, o, and the clock, at an angle."""
        *biases, out = self.turning(embedded).split(self.width, dim=-1)
        weights = (cast(Tensor, link.weight).mT for link in self.links)
        return list(zip(weights, biases)), out, self.clock(embedded)

    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, hidden = _with_trunk(field).velocity_and_hidden(t, x)
        links, out, clock = self._at(hidden.angle)
        chain, *derivatives = hidden.derivatives
        for (weight, bias), derivative in zip(links, derivatives):
            chain = derivative * torch.addmm(bias, chain, weight)
        return velocity, _dot(chain, out) + clock

    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            trunk = _with_trunk(field).trunk
            _, _, hidden, hidden_dot = trunk.hidden_and_tangent(t, x, tangent)
        links, out, clock = self._at(hidden.angle)
        (chain, *values), (chain_dot, *dots) = hidden.derivatives, hidden_dot
        for (weight, bias), value, dot in zip(links, values, dots):
            linked = torch.addmm(bias, chain, weight)
            chain_dot = dot * linked + value * (chain_dot @ weight)
            chain = value * linked
        return _dot(chain, out) + clock, _dot(chain_dot, out)


def _dot(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the products of rows ``(B, W)`` with one vector ``(W,)`` or with one for each."""
    return rows @ weights if weights.ndim == 1 else (rows * weights).sum(-1)


class Clock(nn.Module):
    """A function of the angle alone: the mean of the divergence over space, learned apart.

    The mean is several times larger than the spread about it, and a network that has to make it
    up from activations spends most of its training on that.

    It takes angles as the trunk embeds them.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.inner = linear(ANGLE_FEATURES, 32, generator)
        self.outer = linear(32, 1, generator)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, embedded: Tensor) -> Tensor:
        return self.outer(functional.silu(self.inner(embedded)))[..., 0]


def _with_trunk(field: AbstractField) -> AbstractTrunkField:
    if not isinstance(field, AbstractTrunkField):
        raise TypeError(
            f"TrunkHead needs a field that shows its layers; got {type(field).__name__}. "
            "Use SeparateNetwork"
        )
    return field


@storable("divergence network", "separate")
class SeparateNetwork(AbstractDivergenceNetwork):
    """A network of its own, for fields that show no layers.

    Arguments:
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.
        generator: source of the first weights, or None for torch's global one.
        context: dimension C of a context that the field depends on, 0 for none.
    """

    def __init__(
        self,
        features: int,
        width: int,
        depth: int,
        generator: torch.Generator | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.features, self.width, self.depth, self.context = features, width, depth, context
        self.trunk: Trunk
        if context:
            self.trunk = ConditionalTrunk(features, context, width, depth, 1, generator)
        else:
            self.trunk = Trunk(features, width, depth, 1, generator)

    def settings(self) -> dict[str, Any]:
        return {"width": self.width, "depth": self.depth, "context": self.context}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> SeparateNetwork:
        field = source.given["field"]
        context = settings.get("context", 0)
        known = field.context_shape.numel() if field.context_shape else 0
        if context != known:
            raise ValueError(f"`context` of a divergence network is {context}, the field's {known}")
        sizes = trunk_sizes(settings, source.under("trunk"))
        return cls(field.features, **sizes, generator=torch.Generator(), context=context)

    def _given(self, field: AbstractField) -> Trunk:
        """Return the trunk, given what the field was given."""
        if not self.context:
            return self.trunk
        if field.context is None:
            raise ValueError("this divergence depends on a context: use field.given(context)")
        return cast(ConditionalTrunk, self.trunk).given(field.context.flatten(1))

    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        return field.ungated().velocity(t, x), self._given(field)(t, x)[..., 0]

    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        residual, slope, _, _ = self._given(field).hidden_and_tangent(t, x, tangent)
        return residual[..., 0], slope[..., 0]


@storable("divergence", "stein-head", "stein-image-head", "stein-image-separate", "stein-separate")
class Stein(AbstractDivergence, nn.Module):
    """The divergence distilled into a network: deterministic, approximate, no Jacobian.

    Arguments:
        network: the distilled network; see ``pyro_stad.learn.distil``.
    """

    is_exact = False
    is_stochastic = False

    def __init__(self, network: AbstractDivergenceNetwork) -> None:
        super().__init__()
        self.network = network

    def passes(self, features: int) -> int:
        return 0

    def stored_name(self) -> str:
        return f"stein-{describe(self.network, 'divergence network')['name']}"

    def settings(self) -> dict[str, Any]:
        return self.network.settings()

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> Stein:
        config = {"name": name.removeprefix("stein-"), **settings}
        return cls(build(config, "divergence network", source.under("network")))

    def __repr__(self) -> str:
        return f"Stein({type(self.network).__name__})"

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, residual = self.network.velocity_and_residual(field, t, x)
        return field.gated(x, velocity, math.sqrt(field.features) * residual)
