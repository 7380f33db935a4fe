r"""The distilled divergence: a scalar network in place of the trace.

The network predicts :math:`r` in :math:`\nabla\cdot v = \sqrt D\, r(t, x)`, in the field's own
time and coordinates, where an untrained network (:math:`r = 0`) is the exact divergence of the
Gaussian baseline. Two leaves: a head that reads the hidden layers of the
teacher's trunk, so that one pass yields velocity and divergence, and a separate network for
fields that show no layers.

Both are made of SiLU units, whose activations grow at most linearly in x and whose derivatives are
bounded, so :math:`r` grows at most linearly. That keeps :math:`p\, r\, v` in the Stein class
whenever p has Gaussian tails (:mod:`pyro_stad.divergence.distil`).

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.teacher.base import AbstractField, AbstractTrunkField
from pyro_stad.teacher.network import (
    ANGLE_FEATURES,
    Trunk,
    perceptron_and_slope,
)

__all__ = ["AbstractDivergenceNetwork", "SeparateNetwork", "Stein", "TrunkHead"]


class AbstractDivergenceNetwork(nn.Module, ABC):
    r"""A scalar network for the divergence over :math:`\\sqrt D`."""

    @abstractmethod
    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity ``(B, D)`` and :math:`r(t, x)`, shape ``(B,)``."""

    @abstractmethod
    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return r and its derivative along ``tangent``, a direction of x; both ``(B,)``."""


class TrunkHead(AbstractDivergenceNetwork):
    r"""A head on the hidden layers of the teacher's trunk.

    The sum of a perceptron on all activations :math:`h_l` and of a *derivative chain*

    .. math:: c_1 = \lambda_1, \qquad c_{l+1} = \lambda_{l+1} \odot (A_l c_l + a_l), \qquad
        r = \langle o, c_L \rangle + \mathrm{MLP}(h_1, \dots, h_L),

    where :math:`\lambda_l` are the derivatives of layer l. The trace of the trunk's Jacobian is
    multilinear in the :math:`\lambda_l`; the chain has that form, contains the trace itself for
    trunks of one and two layers, and its best rank-one coupling for deeper ones.

    Arguments:
        trunk_width: units of each layer of the trunk.
        trunk_depth: number of hidden layers of the trunk.
        width: units of each of the perceptron's two hidden layers.
    """

    def __init__(self, trunk_width: int, trunk_depth: int, width: int) -> None:
        super().__init__()
        self.trunk_width, self.trunk_depth, self.width = trunk_width, trunk_depth, width
        self.perceptron = nn.Sequential(
            nn.Linear(trunk_width * trunk_depth, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        self.links = nn.ModuleList(
            nn.Linear(trunk_width, trunk_width) for _ in range(trunk_depth - 1)
        )
        self.chain_out = nn.Linear(trunk_width, 1, bias=False)
        self.clock = Clock(width)
        for parameter in (*self.perceptron[-1].parameters(), self.chain_out.weight):
            nn.init.zeros_(parameter)

    @staticmethod
    def for_field(field: AbstractField, width: int) -> TrunkHead:
        """Return an untrained head that fits the trunk of ``field``."""
        trunk = _with_trunk(field).trunk
        return TrunkHead(trunk.width, trunk.depth, width)

    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, hidden = _with_trunk(field).velocity_and_hidden(t, x)
        chain = hidden.derivatives[0]
        for link, derivative in zip(self.links, hidden.derivatives[1:]):
            chain = derivative * link(chain)
        residual = self.chain_out(chain) + self.perceptron(torch.cat(hidden.activations, dim=-1))
        return velocity, residual[..., 0] + self.clock(hidden.angle)

    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            hidden, dot = _with_trunk(field).trunk.hidden_and_tangent(t, x, tangent)
        chain, chain_dot = hidden.derivatives[0], dot.derivatives[0]
        for link, value, value_dot in zip(self.links, hidden.derivatives[1:], dot.derivatives[1:]):
            linked = link(chain)
            chain, chain_dot = (
                value * linked,
                value_dot * linked + value * (chain_dot @ link.weight.mT),
            )
        h, h_dot = torch.cat(hidden.activations, dim=-1), torch.cat(dot.activations, dim=-1)
        inner, inner_dot = perceptron_and_slope(self.perceptron, h, h_dot)
        residual = self.chain_out(chain) + inner
        slope = self.chain_out(chain_dot) + inner_dot
        return residual[..., 0] + self.clock(hidden.angle), slope[..., 0]


class Clock(nn.Module):
    """A function of the angle alone: the mean of the divergence over space, learned apart.

    The mean is several times larger than the spread about it, and a network that has to make it
    up from activations spends most of its training on that.

    It takes angles as the trunk embeds them.

    Arguments:
        width: units of the hidden layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(ANGLE_FEATURES, width), nn.Linear(width, 1)
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


class SeparateNetwork(AbstractDivergenceNetwork):
    """A network of its own, for fields that show no layers.

    Arguments:
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.
    """

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.features, self.width, self.depth = features, width, depth
        self.trunk = Trunk(features, width, depth, 1)

    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        return field.velocity(t, x), self.trunk(t, x)[..., 0]

    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden, dot = self.trunk.hidden_and_tangent(t, x, tangent)
        residual = self.trunk.out(hidden.activations[-1])
        return residual[..., 0], (dot.activations[-1] @ self.trunk.out.weight.mT)[..., 0]


class Stein(AbstractDivergence, nn.Module):
    """The divergence distilled into a network: deterministic, approximate, no Jacobian.

    Arguments:
        network: the distilled network; see ``pyro_stad.divergence.distil``.
    """

    is_exact = False
    is_stochastic = False

    def __init__(self, network: AbstractDivergenceNetwork) -> None:
        super().__init__()
        self.network = network

    def passes(self, features: int) -> int:
        return 0

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, residual = self.network.velocity_and_residual(field, t, x)
        return velocity, math.sqrt(field.features) * residual
