r"""The Stein integral along the constant curve, fused: tables at the nodes, gradient by hand.

Inside NUTS a density is asked for one point at a time, and what it costs is the number of tensor
operations. For a trunk with a head on it (:mod:`pyro_stad.teacher.network`,
:mod:`pyro_stad.divergence.stein`), both frozen, all that depends on the nodes alone is tabulated
once, and the gradient needs about thirty operations instead of the hundred of automatic
differentiation. With :math:`\omega_k` the weights, at node k

.. math::
    I = \sum_k \omega_k \big[\sqrt D\,(\langle o, \lambda_L \odot m_L\rangle + \mathrm{clock})
        - w\cdot(y + \cot\varphi\, w)\big], \qquad
    m_1 = 1,\; m_{l+1} = A_l(\lambda_l \odot m_l) + a_l ,

and back, with the gated SiLU's value h, slope :math:`\lambda` and bend
:math:`\lambda' = (1 - s)(2\lambda - h)`. A second derivative, a trace and a transform go forward by
the same operations and leave the way back to autograd.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pyro_stad._checks import is_transformed
from pyro_stad.divergence import AbstractDivergence, Stein, TrunkHead
from pyro_stad.teacher.base import AbstractAngularField, AbstractField, AbstractTrunkField
from pyro_stad.teacher.network import Trunk, angle_features, gated_silu

if TYPE_CHECKING:
    from pyro_stad.likelihood.stein_path import SteinPath

__all__ = ["Fused"]


class _Tables(NamedTuple):
    """What depends on the K nodes alone. ``W`` is the width, ``L`` the depth of the trunk."""

    biases: Tensor  # (K, L W)
    gates: Tensor  # (K, L W)
    turning: Tensor  # (K, L W); the last W, o, are weighted by sqrt(D) omega
    weights: Tensor  # (K, 1)
    cotangents: Tensor  # (K, 1)


class _Layer(NamedTuple):
    """What the pass back needs of one layer, each ``(rows, W)``."""

    value: Tensor
    slope: Tensor
    sigmoid: Tensor
    factor: Tensor | None  # m, or None in the first layer, where it is one


class Fused:
    """Evaluates the integral of a ``SteinPath`` along its constant curve.

    Arguments:
        path: the path, with a trunk and a head on it.
    """

    def __init__(self, path: SteinPath) -> None:
        self.path = path
        self.parameters = tuple(path.parameters())
        self.key: tuple[Any, ...] = ()
        self.tables: _Tables | None = None
        self.clock = torch.zeros(())

    @staticmethod
    def fits(field: AbstractField, divergence: AbstractDivergence) -> bool:
        """Whether field and divergence are networks of the kinds that are fused here."""
        trunk = isinstance(field, AbstractTrunkField) and isinstance(field, AbstractAngularField)
        return trunk and isinstance(divergence, Stein) and isinstance(divergence.network, TrunkHead)

    def ready(self, y: Tensor) -> bool:
        """Whether ``y`` can be evaluated here: all is frozen, and of one dtype."""
        if torch.compiler.is_compiling() or y.dtype != self.path.times.dtype:
            return False
        if any(p.requires_grad for p in self.parameters):
            return False
        # Where the parameters lie, and how often they were written to: tables can't get stale.
        key = (self.path.times.data_ptr(), *((p.data_ptr(), p._version) for p in self.parameters))
        if key != self.key:
            self._tabulate()
            self.key = key
        return True

    def integral(self, y: Tensor) -> Tensor:
        """Return the integral, shape ``(B,)``, from points ``y``, ``(B, D)``, that stay."""
        if is_transformed(y):
            return self.by_autograd(y)
        return cast(Tensor, _Integral.apply(y, self))

    def by_autograd(self, y: Tensor) -> Tensor:
        """Return the integral as operations that can be traced, and differentiated again."""
        tables = self.for_rows(len(y))
        values, _, _ = _forward(*_networks(self.path), tables, _rows(y, tables))
        return values.reshape(len(y), -1).sum(-1) + self.clock

    def for_rows(self, points: int) -> _Tables:
        """Return the tables for ``points`` points, whose nodes lie side by side."""
        tables = cast(_Tables, self.tables)
        if points == 1:
            return tables
        return _Tables(*(table.repeat(points, 1) for table in tables))

    def _tabulate(self) -> None:
        path = self.path
        trunk, head = _networks(path)
        omega, root = path.weights[:, None], math.sqrt(path.field.features)
        embedded = angle_features(path.times)
        turning = head.turning(embedded)
        *links, out = turning.split(trunk.width, dim=-1)
        self.clock = root * (path.weights * head.clock(embedded)).sum()
        self.tables = _Tables(
            biases=trunk.biases(embedded),
            gates=trunk.gates(embedded),
            turning=torch.cat([*links, root * omega * out], dim=-1),
            weights=omega,
            cotangents=1 / torch.tan(path.times)[:, None],
        )


class _Integral(torch.autograd.Function):
    """The integral with its pass back."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, fused: Fused) -> Tensor:
        tables = fused.for_rows(len(y))
        values, velocity, layers = _forward(*_networks(fused.path), tables, _rows(y, tables))
        ctx.fused = fused
        ctx.save_for_backward(y, velocity, *chain.from_iterable(layers))
        return values.reshape(len(y), -1).sum(-1) + fused.clock

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, velocity, *saved = ctx.saved_tensors
        fused: Fused = ctx.fused
        if torch.is_grad_enabled():
            again = torch.autograd.grad(fused.by_autograd(y), y, grad, create_graph=True)
            return *again, None
        layers = [_Layer(*saved[i : i + 4]) for i in range(0, len(saved), 4)]
        tables = fused.for_rows(len(y))
        networks = _networks(fused.path)
        slopes = _backward(*networks, tables, _rows(y, tables), velocity, layers)
        return grad[:, None] * slopes.reshape(len(y), -1, y.shape[-1]).sum(1), None


def _rows(y: Tensor, tables: _Tables) -> Tensor:
    """Repeat points ``(B, D)`` for their nodes, which lie side by side."""
    return y.repeat_interleave(len(tables.gates) // len(y), 0)


def _networks(path: SteinPath) -> tuple[Trunk, TrunkHead]:
    field, divergence = cast(AbstractTrunkField, path.field), cast(Stein, path.divergence)
    return field.trunk, cast(TrunkHead, divergence.network)


def _forward(
    trunk: Trunk, head: TrunkHead, tables: _Tables, y: Tensor
) -> tuple[Tensor, Tensor, list[_Layer]]:
    """Return the weighted integrand of rows ``y``, ``(rows,)``, velocities, and layers."""
    inputs = torch.addmm(tables.biases, y, trunk.enter.weight.mT)
    terms, gates, turns = (
        part.split(trunk.width, dim=-1) for part in (inputs, tables.gates, tables.turning)
    )
    h, slope, sigmoid = gated_silu(terms[0], gates[0])
    layers, coupled = [_Layer(h, slope, sigmoid, None)], slope
    for index, (link, head_link) in enumerate(zip(_weights(trunk.links), _weights(head.links))):
        pre = torch.addmm(terms[index + 1], h, link.mT)
        h, slope, sigmoid = gated_silu(pre, gates[index + 1])
        factor = torch.addmm(turns[index], coupled, head_link.mT)
        layers.append(_Layer(h, slope, sigmoid, factor))
        coupled = slope * factor
    velocity = trunk.out(h)
    drift = velocity * torch.addcmul(y, velocity, tables.cotangents)
    values = (coupled * turns[-1]).sum(-1) - (tables.weights * drift).sum(-1)
    return values, velocity, layers


def _backward(
    trunk: Trunk,
    head: TrunkHead,
    tables: _Tables,
    y: Tensor,
    velocity: Tensor,
    layers: list[_Layer],
) -> Tensor:
    """Return the derivatives of the weighted integrand with respect to rows ``y``."""
    links, head_links = _weights(trunk.links), _weights(head.links)
    # Minus the derivative by the value of a layer, and the derivative by its coupled slopes.
    minus = torch.addcmul(y, velocity, tables.cotangents, value=2) * tables.weights
    minus = minus @ trunk.out.weight
    coupled = tables.turning[:, -trunk.width :]
    deltas: list[Tensor] = []
    for index in reversed(range(len(layers))):
        value, slope, sigmoid, factor = layers[index]
        by_slope = coupled if factor is None else coupled * factor
        minus_bend = torch.sub(value, slope, alpha=2) * (1 - sigmoid)
        deltas.insert(0, torch.addcmul(minus * slope, by_slope, minus_bend))
        if index:
            minus = deltas[0] @ links[index - 1]
            coupled = (coupled * slope) @ head_links[index - 1]
    entering = torch.cat(deltas, dim=-1) @ trunk.enter.weight
    return -torch.addcmul(entering, tables.weights, velocity)


def _weights(links: nn.ModuleList) -> list[Tensor]:
    return [cast(Tensor, link.weight) for link in links]
