r"""The Stein path along the constant curve, fused: tables at the nodes, gradient by hand.

Inside NUTS a density is asked for one point at a time, and what it costs is the number of tensor
operations. For a trunk with a head on it (:mod:`pyro_stad.fields.networks.perceptron`,
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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from pyro_stad._checks import is_transformed
from pyro_stad._context import full_precision
from pyro_stad._rows import ROWS
from pyro_stad.divergence import AbstractDivergence, Stein, TrunkHead
from pyro_stad.fields import AbstractField, PathField
from pyro_stad.fields.gate import GateValues
from pyro_stad.fields.networks.perceptron import angle_features
from pyro_stad.likelihood.fused_passes import (
    Layer,
    Tables,
    backward_pass,
    forward_pass,
    weights_of,
)
from pyro_stad.likelihood.known_gradient import with_gradient

__all__ = ["Fused", "can_fuse"]


class _Sums(NamedTuple):
    """What a pass forward gathers over the nodes, each ``(B,)``."""

    inside: Tensor  # of the divergence, without the clock
    across: Tensor  # of y w
    along: Tensor  # of cot w w


class _Seen(NamedTuple):
    """A parameter when tables were made of it: where it was found, and how often written to."""

    holder: dict[str, Any]
    name: str
    parameter: Tensor
    version: int


class _Child(NamedTuple):
    """A module when tables were made: where it was found."""

    holder: dict[str, Any]
    name: str
    module: Any


def _version(parameter: Tensor) -> int:
    """Return how often a parameter was written to; one of inference mode does not know."""
    return -1 if parameter.is_inference() else parameter._version


def can_fuse(field: AbstractField, divergence: AbstractDivergence) -> bool:
    """Whether field and divergence are the very networks that are fused here."""
    # Exact types: what a subclass computes otherwise would be passed over in silence.
    fused = type(field) is PathField and type(divergence) is Stein
    return fused and type(cast(Stein, divergence).network) is TrunkHead


class Fused:
    """The log-density along the constant curve, of networks that are trained no more.

    It is made once and never changed. It knows the parameters that it was made of, and whether
    they are still what they were (but for writes through ``.data``, which torch can't see either).

    Arguments:
        field: a field with a trunk.
        divergence: a head on it.
        times, weights: nodes and weights of the quadrature, ``(K,)``.
        constant: the constant of the density.
    """

    # Tables outlive the mode they are made in.
    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def __init__(
        self,
        field: PathField,
        divergence: Stein,
        times: Tensor,
        weights: Tensor,
        constant: float,
    ) -> None:
        trunk, head = field.trunk, cast(TrunkHead, divergence.network)
        self.scale, self.gate, self.nodes = field.data_scale, field.gate, len(times)
        self.seen = tuple(
            _Seen(module._parameters, name, parameter, _version(parameter))
            for module in (*field.modules(), *divergence.modules())
            for name, parameter in module._parameters.items()
            if parameter is not None
        )
        self.field = field
        self.children = tuple(
            _Child(module._modules, name, child)
            for module in (*field.modules(), *divergence.modules())
            for name, child in module._modules.items()
        )
        omega, root = weights[:, None], math.sqrt(field.features)
        embedded = angle_features(times)
        *turns, out = head.turning(embedded).split(trunk.width, dim=-1)
        self.of_nodes = Tables(
            biases=trunk.biases(embedded),
            gates=trunk.gates(embedded),
            turning=torch.cat([*turns, root * omega * out], dim=-1),
            weights=omega.clone(),
            cotangents=1 / torch.tan(times)[:, None],
        )
        # A handful of points, as inside NUTS: repeated once.
        self.of_few: dict[int, Tables] = {}
        self.weights = weights_of(trunk, head)
        self.clock = root * (weights * head.clock(embedded)).sum()
        self.constant = torch.full_like(self.clock, constant)

    def serves(self, x: Tensor) -> bool:
        """Whether ``x`` can be evaluated here: nothing has changed, and all is of one dtype."""
        if torch.compiler.is_compiling() or x.dtype != self.constant.dtype:
            return False
        same = self.field.gate is self.gate and all(
            holder.get(name) is child for holder, name, child in self.children
        )
        return same and all(
            holder.get(name) is parameter
            and _version(parameter) == version
            and not parameter.requires_grad
            and parameter.dtype == x.dtype
            for holder, name, parameter, version in self.seen
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        if torch.jit.is_tracing():
            return self.by_slopes(x)
        return self.by_autograd(x) if is_transformed(x) else cast(Tensor, _LogProb.apply(x, self))

    def by_autograd(self, x: Tensor) -> Tensor:
        """Return the same as operations that can be traced, and differentiated again."""
        y = self.filled(x * self.scale)
        sums, _, _ = self.forward(y)
        return self.values(y, sums, self.gate_at(y))[: len(x)]

    def by_slopes(self, x: Tensor) -> Tensor:
        """Return the same as operations of a trace, which have the gradient in them.

        A trace knows nothing of a pass back by hand, and its own takes twice the time.
        """
        scale, count = self.scale, len(x)
        y = self.filled(x.detach() * scale)
        sums, velocity, layers = self.forward(y)
        gate = self.gate_at(y)
        slopes = scale * self.slopes(y, sums, gate, velocity, layers)
        return with_gradient(x, self.values(y, sums, gate)[:count], slopes[:count])

    def filled(self, y: Tensor) -> Tensor:
        """Return points with more of the last one, until their nodes fill whole rows."""
        missing = -len(y) % (ROWS // math.gcd(ROWS, self.nodes))
        return torch.cat([y, y[-1:].expand(missing, -1)]) if missing and len(y) else y

    def forward(self, y: Tensor) -> tuple[_Sums, Tensor, list[Layer]]:
        """Return the sums over nodes of points ``(B, D)``, velocities ``(B K, D)``, and layers."""
        tables, rows, shape = self.tables(y.shape[0]), self.rows(y), (-1, self.nodes)
        turned, velocity, layers = forward_pass(self.weights, tables, rows)
        weighted = tables.weights * velocity
        across = (weighted * rows).sum(-1)
        along = (weighted * velocity).mul(tables.cotangents).sum(-1)
        sums = (part.reshape(shape).sum(-1) for part in (turned, across, along))
        return _Sums(*sums), velocity, layers

    def gate_at(self, y: Tensor) -> GateValues | None:
        """Return the gate at points ``(B, D)``, or None where it is open for all of them."""
        gate = self.gate
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
        layers: list[Layer],
    ) -> Tensor:
        """Return the derivatives of the log-density by ``y``, ``(B, D)``, after a pass forward."""
        by_row = gate and GateValues(
            *(part.repeat_interleave(self.nodes)[:, None] for part in gate)
        )
        tables, rows = self.tables(len(y)), self.rows(y)
        of_rows = backward_pass(self.weights, tables, rows, velocity, layers, by_row)
        of_points = of_rows.reshape(len(y), self.nodes, y.shape[1]).sum(1) - y
        if gate is None:
            return of_points
        g, slope, bend = gate
        by_norm = (
            slope * (sums.inside + self.clock)
            - (slope - 2 * bend) * sums.across
            - 2 * g * slope * sums.along
        )
        return of_points + 2 * by_norm[:, None] * y

    def tables(self, points: int) -> Tables:
        """Return the tables for ``points`` points, whose nodes lie side by side."""
        if points > ROWS:
            return self.of_nodes.repeated(points)
        if points not in self.of_few:
            self.of_few[points] = self.of_nodes.repeated(points)
        return self.of_few[points]

    def __getstate__(self) -> dict[str, Any]:
        # Copies of copies: they are made again.
        return {**self.__dict__, "of_few": {}}

    def rows(self, y: Tensor) -> Tensor:
        """Repeat points ``(B, D)`` for their nodes: ``(B K, D)``."""
        return y[:, None].expand(-1, self.nodes, -1).reshape(-1, y.shape[1])


class _LogProb(torch.autograd.Function):
    """The log-density with its pass back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: Fused) -> Tensor:
        # Filled in here: outside, the graph would have a node for it, and one to take it off.
        y = fused.filled(x * fused.scale)
        sums, velocity, layers = fused.forward(y)
        ctx.fused, ctx.gate = fused, fused.gate_at(y)
        ctx.save_for_backward(x, y, *sums, velocity, *chain.from_iterable(layers))
        return fused.values(y, sums, ctx.gate)[: len(x)].clone()

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y, inside, across, along, velocity, *saved = ctx.saved_tensors
        fused: Fused = ctx.fused
        if torch.is_grad_enabled():
            again = torch.autograd.grad(fused.by_autograd(x), x, grad, create_graph=True)
            return *again, None
        layers = [Layer(*saved[i : i + 4]) for i in range(0, len(saved), 4)]
        sums = _Sums(inside, across, along)
        slopes = fused.slopes(y, sums, ctx.gate, velocity, layers)[: len(x)]
        return (fused.scale * grad)[:, None] * slopes, None
