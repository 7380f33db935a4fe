r"""The Stein path along the constant curve, fused: tables at the nodes, gradient by hand.

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
:math:`\lambda' = (1 - s)(2\lambda - h)`. A second derivative and a transform go forward by the same
operations and leave the way back to autograd; a trace holds both passes.

A point does not move along the constant curve, so that the field's gate g, which depends on
:math:`s = \lVert y\rVert^2` alone, comes out of the sums. With D the sum of the divergences, A of
:math:`\omega\, y\cdot w` and C of :math:`\omega \cot\varphi\, w\cdot w`,

.. math:: I = g D + (2 g' - g) A - g^2 C .
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad._checks import is_transformed
from pyro_stad._context import full_precision
from pyro_stad._rows import ROWS
from pyro_stad.divergence import AbstractDivergence, Stein, TrunkHead
from pyro_stad.likelihood.known_gradient import with_gradient
from pyro_stad.teacher import AbstractField, AbstractTrunkField, PathField
from pyro_stad.teacher.gate import GateValues
from pyro_stad.teacher.network import angle_features, gated_silu

if TYPE_CHECKING:
    from pyro_stad.likelihood.stein_path import SteinPath

__all__ = ["Fused"]


class _Tables(NamedTuple):
    """What depends on the K nodes alone; W is the width, L the depth of the trunk."""

    biases: Tensor  # (K, L W)
    gates: Tensor  # (K, L W)
    turning: Tensor  # (K, L W); the last W, o, are weighted by sqrt(D) omega
    weights: Tensor  # (K, 1)
    cotangents: Tensor  # (K, 1)

    @torch.inference_mode(mode=False)
    def repeated(self, points: int) -> _Tables:
        """Return the tables for several points."""
        return self if points == 1 else _Tables(*(table.repeat(points, 1) for table in self))


class _Weights(NamedTuple):
    """The matrices, to be multiplied by from the left."""

    enter: Tensor  # (D, L W)
    entering: Tensor  # (L W, D), its transpose, laid out so that rows do not see their places
    links: list[Tensor]
    couplings: list[Tensor]  # the head's links
    out: Tensor  # (W, D)
    out_bias: Tensor


class _Layer(NamedTuple):
    """What the pass back needs of one layer, each ``(rows, W)``."""

    value: Tensor
    slope: Tensor
    sigmoid: Tensor
    factor: Tensor | None  # m, or None in the first layer, where it is one


class _Sums(NamedTuple):
    """What a pass forward gathers over the nodes, each ``(B,)``."""

    inside: Tensor  # of the divergence, without the clock
    across: Tensor  # of y w
    along: Tensor  # of cot w w


class Fused:
    """Evaluates a ``SteinPath`` along its constant curve.

    Arguments:
        path: the path, with a trunk and a head on it.
    """

    of_nodes: _Tables
    of_few: dict[int, _Tables]
    weights: _Weights
    clock: Tensor
    constant: Tensor

    def __init__(self, path: SteinPath) -> None:
        self.path = path
        self.parameters = tuple(path.parameters())
        self.key: tuple[Any, ...] = ()

    @staticmethod
    def fits(field: AbstractField, divergence: AbstractDivergence) -> bool:
        """Whether field and divergence are the very networks that are fused here."""
        # Exact types: what a subclass computes otherwise would be passed over in silence.
        fused = type(field) is PathField and type(divergence) is Stein
        return fused and type(cast(Stein, divergence).network) is TrunkHead

    def ready(self, x: Tensor) -> bool:
        """Whether ``x`` can be evaluated here: all is frozen, and of one dtype."""
        if torch.compiler.is_compiling() or x.dtype != self.path.times.dtype:
            return False
        if any(p.requires_grad for p in self.parameters):
            return False
        # Where the parameters lie, and how often they were written to: tables can't get stale.
        path, written = self.path, ((p.data_ptr(), p._version) for p in self.parameters)
        key = (path.times.data_ptr(), path.log_mass, *written)
        if key != self.key:
            self._tabulate()
            self.key = key
        return True

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        if torch.jit.is_tracing():
            return self.by_slopes(x)
        return self.by_autograd(x) if is_transformed(x) else cast(Tensor, _LogProb.apply(x, self))

    def by_autograd(self, x: Tensor) -> Tensor:
        """Return the same as operations that can be traced, and differentiated again."""
        y = x * self.path.field.data_scale
        sums, _, _ = self.forward(y)
        return self.values(y, sums, self.gate_at(y))

    def by_slopes(self, x: Tensor) -> Tensor:
        """Return the same as operations of a trace, which have the gradient in them.

        A trace knows nothing of a pass back by hand, and its own takes twice the time.
        """
        scale = self.path.field.data_scale
        y = x.detach() * scale
        sums, velocity, layers = self.forward(y)
        gate = self.gate_at(y)
        slopes = scale * self.slopes(y, sums, gate, velocity, layers)
        return with_gradient(x, self.values(y, sums, gate), slopes)

    def forward(self, y: Tensor) -> tuple[_Sums, Tensor, list[_Layer]]:
        """Return the sums over nodes of points ``(B, D)``, velocities ``(B K, D)``, and layers."""
        tables, rows, shape = self.tables(y.shape[0]), self.rows(y), (-1, self.path.nodes)
        turned, velocity, layers = _forward(self.weights, tables, rows)
        weighted = tables.weights * velocity
        across = (weighted * rows).sum(-1)
        along = (weighted * velocity).mul(tables.cotangents).sum(-1)
        sums = (part.reshape(shape).sum(-1) for part in (turned, across, along))
        return _Sums(*sums), velocity, layers

    def gate_at(self, y: Tensor) -> GateValues | None:
        """Return the gate at points ``(B, D)``, or None where it is open for all of them."""
        gate = self.path.field.gate
        if gate is None:
            return None
        squared = y.square().sum(-1)
        # By one look the operations of an open gate are saved: they would not change a bit.
        seen = torch.jit.is_tracing() or is_transformed(y)
        if not seen and bool((squared <= gate.inner**2).all()):
            return None
        return gate.at(squared)

    def values(self, y: Tensor, sums: _Sums, gate: GateValues | None) -> Tensor:
        """Return log-densities ``(B,)``."""
        end = torch.sub(self.constant, y.square().sum(-1), alpha=0.5)
        inside = sums.inside + self.clock
        if gate is None:
            return end + inside - sums.across - sums.along
        g, slope = gate.value, gate.slope
        return end + g * inside - (g - 2 * slope) * sums.across - g * g * sums.along

    def slopes(
        self,
        y: Tensor,
        sums: _Sums,
        gate: GateValues | None,
        velocity: Tensor,
        layers: list[_Layer],
    ) -> Tensor:
        """Return the derivatives of the log-density by ``y``, ``(B, D)``, after a pass forward."""
        by_row = gate and GateValues(
            *(part.repeat_interleave(self.path.nodes)[:, None] for part in gate)
        )
        tables, rows = self.tables(len(y)), self.rows(y)
        of_rows = _backward(self.weights, tables, rows, velocity, layers, by_row)
        of_points = of_rows.reshape(len(y), self.path.nodes, y.shape[1]).sum(1) - y
        if gate is None:
            return of_points
        g, slope, bend = gate
        by_norm = (
            slope * (sums.inside + self.clock)
            - (slope - 2 * bend) * sums.across
            - 2 * g * slope * sums.along
        )
        return of_points + 2 * by_norm[:, None] * y

    def tables(self, points: int) -> _Tables:
        """Return the tables for ``points`` points, whose nodes lie side by side."""
        if points > ROWS:
            return self.of_nodes.repeated(points)
        # A handful of points, as inside NUTS: repeated once.
        if points not in self.of_few:
            self.of_few[points] = self.of_nodes.repeated(points)
        return self.of_few[points]

    def rows(self, y: Tensor) -> Tensor:
        """Repeat points ``(B, D)`` for their nodes: ``(B K, D)``."""
        return y[:, None].expand(-1, self.path.nodes, -1).reshape(-1, y.shape[1])

    # Tables outlive the mode they are made in.
    @torch.inference_mode(mode=False)
    def _tabulate(self) -> None:
        path = self.path
        trunk = cast(AbstractTrunkField, path.field).trunk
        head = cast(TrunkHead, cast(Stein, path.integrand).network)
        omega, root = path.weights[:, None], math.sqrt(path.field.features)
        embedded = angle_features(path.times)
        *turns, out = head.turning(embedded).split(trunk.width, dim=-1)
        self.of_nodes = _Tables(
            biases=trunk.biases(embedded),
            gates=trunk.gates(embedded),
            turning=torch.cat([*turns, root * omega * out], dim=-1),
            weights=omega,
            cotangents=1 / torch.tan(path.times)[:, None],
        )
        self.of_few = {}
        links, couplings = (
            [cast(Tensor, link.weight).mT for link in layers]
            for layers in (trunk.links, head.links)
        )
        enter, leave = trunk.enter.weight.mT, trunk.out.weight.mT
        # A product with few columns, as they lie in memory, takes kernels whose rounding depends on
        # a row's place in the batch; with columns that are contiguous it does not.
        entering = enter.contiguous().mT
        self.weights = _Weights(enter, entering, links, couplings, leave, trunk.out.bias)
        self.clock = root * (path.weights * head.clock(embedded)).sum()
        self.constant = torch.full_like(self.clock, path.constant())


class _LogProb(torch.autograd.Function):
    """The log-density with its pass back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: Fused) -> Tensor:
        y = x * fused.path.field.data_scale
        sums, velocity, layers = fused.forward(y)
        ctx.fused, ctx.gate = fused, fused.gate_at(y)
        ctx.save_for_backward(x, y, *sums, velocity, *chain.from_iterable(layers))
        return fused.values(y, sums, ctx.gate)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y, inside, across, along, velocity, *saved = ctx.saved_tensors
        fused: Fused = ctx.fused
        if torch.is_grad_enabled():
            again = torch.autograd.grad(fused.by_autograd(x), x, grad, create_graph=True)
            return *again, None
        layers = [_Layer(*saved[i : i + 4]) for i in range(0, len(saved), 4)]
        sums = _Sums(inside, across, along)
        slopes = fused.slopes(y, sums, ctx.gate, velocity, layers)
        return (fused.path.field.data_scale * grad)[:, None] * slopes, None


def _forward(weights: _Weights, tables: _Tables, y: Tensor) -> tuple[Tensor, Tensor, list[_Layer]]:
    """Return what a pass forward gives for rows ``y``, all of it without the gate.

    Returns:
        The weighted divergences, less their clock, ``(rows,)``; velocities; layers.
    """
    inputs = torch.addmm(tables.biases, y, weights.enter)
    depth = len(weights.links) + 1
    # Chunk, because split is a function in Python.
    terms, gates, turns = (
        part.chunk(depth, dim=-1) for part in (inputs, tables.gates, tables.turning)
    )
    h, slope, sigmoid = gated_silu(terms[0], gates[0])
    layers, coupled = [_Layer(h, slope, sigmoid, None)], slope
    for index, (link, coupling) in enumerate(zip(weights.links, weights.couplings)):
        h, slope, sigmoid = gated_silu(torch.addmm(terms[index + 1], h, link), gates[index + 1])
        factor = torch.addmm(turns[index], coupled, coupling)
        layers.append(_Layer(h, slope, sigmoid, factor))
        coupled = slope * factor
    velocity = torch.addmm(weights.out_bias, h, weights.out)
    return (coupled * turns[-1]).sum(-1), velocity, layers


def _backward(
    weights: _Weights,
    tables: _Tables,
    y: Tensor,
    velocity: Tensor,
    layers: list[_Layer],
    gate: GateValues | None,
) -> Tensor:
    """Return the derivatives of the weighted integrand with respect to rows ``y``.

    Those by way of the gate, whose values are given for every row, are not among them.
    """
    pull, cotangents = tables.weights, tables.cotangents
    coupled = tables.turning[:, -weights.out.shape[0] :]
    toward = y
    if gate is not None:
        less = gate.value - 2 * gate.slope
        toward, pull = less * y, less * pull
        cotangents, coupled = gate.value.square() * cotangents, gate.value * coupled
    # Minus the derivative by the value of a layer, and the derivative by its coupled slopes.
    minus = torch.addcmul(toward, velocity, cotangents, value=2) * tables.weights
    minus = minus @ weights.out.mT
    deltas: list[Tensor] = []
    for index in reversed(range(len(layers))):
        value, slope, sigmoid, factor = layers[index]
        by_slope = coupled if factor is None else coupled * factor
        minus_bend = torch.sub(value, slope, alpha=2) * (1 - sigmoid)
        deltas.insert(0, torch.addcmul(minus * slope, by_slope, minus_bend))
        if index:
            minus = deltas[0] @ weights.links[index - 1].mT
            coupled = (coupled * slope) @ weights.couplings[index - 1].mT
    entering = torch.cat(deltas, dim=-1) @ weights.entering
    return -torch.addcmul(entering, pull, velocity)
