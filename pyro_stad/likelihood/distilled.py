r"""The distilled density: log p itself as one small network, at one row a point.

In the field's own coordinates y, with its noise's constant c and the gate g of
:mod:`pyro_stad.teacher.gate`,

.. math:: \log p(x) = c - \tfrac12 \lVert y\rVert^2 + g(\lVert y\rVert^2)\, h(y):

a normal law, corrected by a perceptron h where the samples are. Beyond the gate it *is* the normal
law, so that in every direction the density falls off as that does. It has two continuous
derivatives; its mass is divided out by the calibration.

A row goes through the network once, where the Stein path takes as many rows as it has nodes. The
gradient is made by hand, in as many products again. With :math:`a_l = \sigma(W_l a_{l-1} + b_l)`,
:math:`h = w\cdot a_L + b` and the slopes :math:`\sigma'_l` of the layers,

.. math:: \nabla h = W_1^T (\sigma'_1 \odot W_2^T (\sigma'_2 \odot \cdots (\sigma'_L \odot w))) .

How h is learned is in :mod:`pyro_stad.likelihood.distil_density`.

References:
    Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network; Czarnecki et al.
    (2017), Sobolev Training for Neural Networks.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad._checks import check_count, is_transformed
from pyro_stad._context import full_precision
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.known_gradient import with_gradient
from pyro_stad.ode import AbstractSolver
from pyro_stad.teacher.base import AbstractField
from pyro_stad.teacher.gate import Gate, GateValues
from pyro_stad.teacher.network import linear

__all__ = ["Correction", "DistilledDensity"]


class _Pass(NamedTuple):
    """What a pass forward gives: h, ``(B,)``, and what units see in each layer, ``(B, W)``."""

    h: Tensor
    seen: list[Tensor]


class _Met(NamedTuple):
    """What the density consists of at points, in the field's own coordinates.

    The gate is None where it is open for all of them.
    """

    y: Tensor
    squared: Tensor
    gate: GateValues | None
    h: Tensor
    seen: list[Tensor]


class Correction(nn.Module):
    """The perceptron h, from points to numbers; zero at initialisation.

    Arguments:
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.
        generator: source of the first weights; see ``pyro_stad.teacher.network.linear``.
    """

    def __init__(
        self, features: int, width: int, depth: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, size in {"features": features, "width": width, "depth": depth}.items():
            check_count(size, name)
        self.features, self.width, self.depth = features, width, depth
        sizes = [features] + [width] * (depth - 1)
        self.layers = nn.ModuleList(linear(size, width, generator) for size in sizes)
        self.out = linear(width, 1, generator)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, y: Tensor) -> Tensor:
        """Return h at points ``(B, D)``: ``(B,)``."""
        return self.forward_pass(y).h

    def forward_pass(self, y: Tensor) -> _Pass:
        """Return h at points ``(B, D)``, and what its gradient needs."""
        seen = []
        for layer in self._layers():
            seen.append(torch.addmm(layer.bias, y, layer.weight.mT))
            y = functional.silu(seen[-1])
        return _Pass(self.out(y).squeeze(-1), seen)

    def gradient(self, seen: list[Tensor]) -> Tensor:
        """Return the gradient of h, shape ``(B, D)``, by what units saw in a pass forward."""
        back, first = self.out.weight.expand_as(seen[-1]), self._layers()[0]
        for layer, pre in zip(reversed(self._layers()[1:]), reversed(seen)):
            back = _through_silu(back, pre) @ layer.weight
        # In this layout a row's rounding does not depend on its place in the batch; as it lies in
        # memory, a matrix of so few columns is multiplied by kernels for which it does.
        return functional.linear(_through_silu(back, seen[0]), first.weight.mT.contiguous())

    def _layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))


def _through_silu(back: Tensor, pre: Tensor) -> Tensor:
    """Return ``back`` times the slope of SiLU at ``pre``, both ``(B, W)``."""
    if back.requires_grad or pre.requires_grad:
        sigmoid = torch.sigmoid(pre)
        return back * torch.addcmul(sigmoid, pre, sigmoid * (1 - sigmoid))
    # One operation instead of four, of which torch knows no derivative.
    return torch.ops.aten.silu_backward(back, pre)


class DistilledDensity(AbstractLikelihood):
    """The log-density by a network of its own; the flow itself is solved by ``solver``.

    Arguments:
        field: the velocity field of the flow, any.
        divergence: how the divergence is computed where another way to the density is wanted.
        solver: how samples are drawn, and noise recovered.
        correction: the network h.
        gate: where h ends, in the field's own coordinates.
        chunk_size: rows worked on at a time.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.teacher import Gate, PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> density = DistilledDensity(field, Exact(), RK4(4), Correction(2, 8, 2), Gate(4.0, 5.5))
        >>> density.log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.83...
    """

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        correction: Correction,
        gate: Gate,
        chunk_size: int = 8192,
    ) -> None:
        super().__init__(field, divergence, solver, chunk_size)
        if not isinstance(correction, Correction):
            raise TypeError(f"`correction` must be a Correction; got {correction!r}")
        if not isinstance(gate, Gate):
            raise TypeError(f"`gate` must be a Gate, such as Gate(5.0, 6.5); got {gate!r}")
        entering = correction.features
        if entering != field.features:
            raise ValueError(
                f"`correction` takes points of {entering} features, the field has {field.features}"
            )
        self.correction, self.gate = correction, gate

    def __repr__(self) -> str:
        width, depth = self.correction.width, self.correction.depth
        return f"DistilledDensity({self.divergence!r}, {self.solver!r}, {depth} x {width} units)"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        if torch.jit.is_tracing():
            return self._in_chunks(self._by_slopes, x)
        by_hand = not (is_transformed(x) or self._is_training())
        return cast(Tensor, _LogProb.apply(x, self)) if by_hand else self.by_autograd(x)

    def sequential_calls(self) -> int:
        return 1

    def _is_training(self) -> bool:
        return any(p.requires_grad for p in self.correction.parameters())

    def by_autograd(self, x: Tensor) -> Tensor:
        """Return the log-density as operations that can be traced, and differentiated again."""
        return self._in_chunks(lambda rows: self._value(self._met(rows)), x)

    def side_by_side(self, x: Tensor) -> Tensor:
        """Return log-densities and, to the right of them, their gradients: ``(B, 1 + D)``."""
        value, slopes = self.value_and_slope(x)
        return torch.cat([value[:, None], slopes], 1)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of points ``(B, D)``, and its gradient, ``(B, D)``, by hand."""
        met, scale = self._met(x), self.field.data_scale
        slopes = self.correction.gradient(met.seen)
        if met.gate is None:
            return self._value(met), scale * (slopes - met.y)
        by_norm = 2 * met.gate.slope * met.h - 1
        slopes = torch.addcmul(met.gate.value[:, None] * slopes, by_norm[:, None], met.y)
        return self._value(met), scale * slopes

    def _met(self, x: Tensor) -> _Met:
        y = x * self.field.data_scale
        squared = y.square().sum(-1)
        gate = None if self._is_open(squared) else self.gate.at(squared)
        return _Met(y, squared, gate, *self.correction.forward_pass(y))

    def _value(self, met: _Met) -> Tensor:
        correction = met.h if met.gate is None else met.gate.value * met.h
        return torch.add(correction + self.constant(), met.squared, alpha=-0.5)

    def _is_open(self, squared: Tensor) -> bool:
        """Whether the gate is seen to be open for all points, whose squared norms are given."""
        # By one look the operations of an open gate are saved: they would not change a bit.
        seen = torch.jit.is_tracing() or torch.compiler.is_compiling() or is_transformed(squared)
        return not seen and bool((squared <= self.gate.inner**2).all())

    def _by_slopes(self, x: Tensor) -> Tensor:
        """Return the same as operations of a trace, which have the gradient in them."""
        return with_gradient(x, *self.value_and_slope(x.detach()))


class _LogProb(torch.autograd.Function):
    """The log-density with its gradient, made in the pass forward: it costs little more there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, density: DistilledDensity) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return density.by_autograd(x)
        # In chunks too, of which only this is kept: nothing has to be computed again.
        found = density._in_chunks(density.side_by_side, x)
        ctx.density = density
        ctx.save_for_backward(x, found[:, 1:])
        return found[:, 0]

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = torch.autograd.grad(ctx.density.by_autograd(x), x, grad, create_graph=True)
            return *again, None
        return grad[:, None] * slopes, None
