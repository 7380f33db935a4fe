r"""The distilled density: log p itself as one small network, at one row a point.

In the field's own coordinates y, with its noise's constant c and the gate g of
:mod:`pyro_stad.fields.gate`,

.. math:: \log p(x) = c - \tfrac12 \lVert y\rVert^2 + g(\lVert y\rVert^2)\, h(y):

a normal law, corrected by a perceptron h where the samples are. Beyond the gate it *is* the normal
law, so that in every direction the density falls off as that does. It has two continuous
derivatives; its mass is divided out by the calibration.

A row goes through the network once, where the Stein path takes as many rows as it has nodes. The
gradient is made by hand, in as many products again. With :math:`a_l = \sigma(W_l a_{l-1} + b_l)`,
:math:`h = w\cdot a_L + b` and the slopes :math:`\sigma'_l` of the layers,

.. math:: \nabla h = W_1^T (\sigma'_1 \odot W_2^T (\sigma'_2 \odot \cdots (\sigma'_L \odot w))) .

How h is learned is in :mod:`pyro_stad.learn.distil_density`.

References:
    Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network; Czarnecki et al.
    (2017), Sobolev Training for Neural Networks.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad._checks import check_count, is_transformed
from pyro_stad._chunks import CHUNK_SIZE, in_chunks, padded
from pyro_stad._config import decode
from pyro_stad._context import full_precision
from pyro_stad._rows import COLUMNS, ROWS
from pyro_stad.data import AbstractWhitening
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractField
from pyro_stad.fields.gate import Gate, GateValues
from pyro_stad.fields.networks.perceptron import linear
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.known_gradient import with_gradient
from pyro_stad.ode import AbstractSolver
from pyro_stad.registry import Source, storable

__all__ = ["Correction", "DistilledDensity"]


class _Met(NamedTuple):
    """What the density consists of at points, in the field's own coordinates.

    The gate is None where it is open for all of them; ``seen`` is what the units of each layer see.
    """

    y: Tensor
    squared: Tensor
    gate: GateValues | None
    h: Tensor
    seen: list[Tensor]


class _Law(NamedTuple):
    """The density as a function: its numbers, and the weights and biases of h in turn."""

    scale: float
    constant: float
    gate: Gate
    weights: list[Tensor]

    def met(self, x: Tensor) -> _Met:
        """Go through the network once with data ``(B, D)``."""
        y = x * self.scale
        squared = y.square().sum(-1)
        gate = None if self._is_open(squared) else self.gate.at(squared)
        return _Met(y, squared, gate, *_forward(self.weights, y))

    def value(self, met: _Met) -> Tensor:
        """Return log-densities ``(B,)``."""
        correction = met.h if met.gate is None else met.gate.value * met.h
        return torch.add(correction + self.constant, met.squared, alpha=-0.5)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-densities of data ``(B, D)``, and their gradients, by hand."""
        met = self.met(x)
        slopes = _backward(self.weights, met.seen)
        if met.gate is None:
            return self.value(met), self.scale * (slopes - met.y)
        by_norm = 2 * met.gate.slope * met.h - 1
        slopes = torch.addcmul(met.gate.value[:, None] * slopes, by_norm[:, None], met.y)
        return self.value(met), self.scale * slopes

    def side_by_side(self, v: Tensor, whitening: AbstractWhitening | None = None) -> Tensor:
        """Return log-densities and, to the right of them, their gradients: ``(B, 1 + D)``.

        With a ``whitening``, ``v`` are points before it, and gradients are by ``v``.
        """
        if whitening is None:
            value, slopes = self.value_and_slope(v)
        else:
            value, slopes = self.value_and_slope(whitening._inverse(v))
            slopes = whitening.outer_slopes(slopes)
        return torch.cat([value[:, None], slopes], 1)

    def is_training(self) -> bool:
        """Whether the gradient may be asked for by a weight."""
        return any(weight.requires_grad for weight in self.weights)

    def _is_open(self, squared: Tensor) -> bool:
        """Whether the gate is seen to be open for all points, whose squared norms are given."""
        # By one look the operations of an open gate are saved: they would not change a bit.
        if is_transformed(squared):
            return False
        return squared.numel() == 0 or squared.max().item() <= self.gate.inner**2


def _forward(weights: list[Tensor], y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return h at points ``(B, D)``, ``(B,)``, and what units see in each layer, ``(B, W)``."""
    *hidden, out, bias = weights
    seen = []
    for matrix, shift in zip(hidden[::2], hidden[1::2]):
        seen.append(torch.addmm(shift, y, matrix.mT))
        y = functional.silu(seen[-1])
    return torch.addmm(bias, y, out.mT).squeeze(-1), seen


def _backward(weights: list[Tensor], seen: list[Tensor]) -> Tensor:
    """Return the gradient of h, shape ``(B, D)``, by what units saw in a pass forward."""
    first, *others = weights[:-2:2]
    back = weights[-2].expand_as(seen[-1])
    for matrix, pre in zip(reversed(others), reversed(seen)):
        back = _through_silu(back, pre) @ matrix
    back = _through_silu(back, seen[0])
    if first.shape[1] % COLUMNS == 0:
        return back @ first
    # As it lies in memory, such a matrix is multiplied by kernels whose rounding depends on a row's
    # place in the batch; the other way round it is not.
    return functional.linear(back, first.mT.contiguous())


def _through_silu(back: Tensor, pre: Tensor) -> Tensor:
    """Return ``back`` times the slope of SiLU at ``pre``, both ``(B, W)``."""
    if back.requires_grad or pre.requires_grad:
        sigmoid = torch.sigmoid(pre)
        return back * torch.addcmul(sigmoid, pre, sigmoid * (1 - sigmoid))
    # One operation instead of four, of which torch knows no derivative.
    return torch.ops.aten.silu_backward(back, pre)


@full_precision
def _in_a_trace(
    x: Tensor, weights: list[Tensor], scale: float, constant: float, inner: float, outer: float
) -> Tensor:
    """Return what ``_Law.side_by_side`` does."""
    law = _Law(scale, constant, Gate(inner, outer), weights)
    return torch.cat([padded(law.side_by_side, ROWS, rows) for rows in x.split(CHUNK_SIZE)])


# As one operation of a trace, which then has the look at the gate in it, and none of the ninety
# small operations that it would keep instead. A name in torch's list of operators is all that
# importing this leaves outside the package; "FRAGMENT" lets the module be loaded again.
_LIBRARY = torch.library.Library("pyro_stad", "FRAGMENT")
if not hasattr(torch.ops.pyro_stad, "distilled"):
    _LIBRARY.define(
        "distilled(Tensor x, Tensor[] weights, float scale, float constant, float inner, "
        "float outer) -> Tensor"
    )
    _LIBRARY.impl("distilled", _in_a_trace, "CompositeExplicitAutograd")


class Correction(nn.Module):
    """The perceptron h, from points to numbers; zero at initialisation.

    Arguments:
        features: dimension D of a point.
        width: units of each hidden layer, a multiple of four.
        depth: number of hidden layers.
        generator: source of the first weights; see ``pyro_stad.fields.networks.perceptron.linear``.
    """

    def __init__(
        self, features: int, width: int, depth: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, size in {"features": features, "width": width, "depth": depth}.items():
            check_count(size, name)
        if width % COLUMNS:
            # Products with other numbers of columns see a row's place in the batch.
            raise ValueError(f"`width` must be a multiple of {COLUMNS}; got {width}")
        self.features, self.width, self.depth = features, width, depth
        sizes = [features] + [width] * (depth - 1)
        self.layers = nn.ModuleList(linear(size, width, generator) for size in sizes)
        self.out = linear(width, 1, generator)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def from_settings(cls, features: int, settings: dict[str, Any], source: Source) -> Correction:
        """Return a correction of the sizes of its tensors: others could fill the memory."""
        width, depth = settings["width"], settings["depth"]
        check_count(width, "width")
        check_count(depth, "depth", most=len(source.tensors))
        shapes = [(width, features), *[(width, width)] * (depth - 1), (1, width)]
        names = [*(f"layers.{index}.weight" for index in range(depth)), "out.weight"]
        for name, shape in zip(names, shapes):
            tensor = source.tensors.get(source.place + name)
            if tensor is None or tensor.shape != shape:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"`width` {width} and `depth` {depth} do not fit {source.place}{name}, {found}"
                )
        return cls(features, width, depth, torch.Generator())

    def forward(self, y: Tensor) -> Tensor:
        """Return h at points ``(B, D)``: ``(B,)``."""
        return _forward(self.weights(), y)[0]

    def weights(self) -> list[Tensor]:
        """Return weights and biases in turn, layer by layer."""
        # From the dictionaries of the modules: attributes of a module are slow to be found, and
        # this is asked at every leapfrog step.
        layers = (*cast(nn.ModuleList, self._modules["layers"]), self._modules["out"])
        return [p for layer in layers for p in cast("list[Tensor]", layer._parameters.values())]


@storable("likelihood", "distilled")
class DistilledDensity(AbstractLikelihood):
    """The log-density by a network of its own; the flow itself is solved by ``solver``.

    Arguments:
        field: the velocity field of the flow, any.
        divergence: how the divergence is computed where another way to the density is wanted.
        solver: how samples are drawn, and noise recovered.
        correction: the network h.
        gate: where h ends, in the field's own coordinates.
        chunk_size: rows worked on at a time.
        log_mass: logarithm of the mass that is divided out.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.fields import Gate, PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> density = DistilledDensity(field, Exact(), RK4(4), Correction(2, 8, 2), Gate(4.0, 5.5))
        >>> density.log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.83...
    """

    integrates = False

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        correction: Correction,
        gate: Gate,
        chunk_size: int = CHUNK_SIZE,
        log_mass: float = 0.0,
    ) -> None:
        super().__init__(field, divergence, solver, chunk_size, log_mass)
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

    def given(self, context: Tensor) -> DistilledDensity:
        raise TypeError("a distilled density takes no context: use another way to the density")

    def __repr__(self) -> str:
        width, depth = self.correction.width, self.correction.depth
        return f"DistilledDensity({self.divergence!r}, {self.solver!r}, {depth} x {width} units)"

    def settings(self) -> dict[str, Any]:
        sizes = {"width": self.correction.width, "depth": self.correction.depth}
        return {**sizes, "gate": asdict(self.gate)}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> DistilledDensity:
        features = source.given["field"].features
        parts = {
            "correction": Correction.from_settings(features, settings, source.under("correction")),
            "gate": decode(Gate, settings["gate"], "gate"),
        }
        return super().from_settings(name, parts, source)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        if torch.jit.is_tracing():
            law = self.law
            numbers = law.scale, law.constant, law.gate.inner, law.gate.outer
            found = torch.ops.pyro_stad.distilled(x.detach(), law.weights, *numbers)
            return with_gradient(x, found[:, 0], found[:, 1:])
        law = self.law
        if is_transformed(x) or law.is_training():
            return self.by_autograd(x)
        return cast(Tensor, _LogProb.apply(x, self, law, None))

    def log_prob_before(self, whitening: AbstractWhitening, v: Tensor) -> Tensor:
        law = self.law
        if is_transformed(v) or law.is_training():
            return super().log_prob_before(whitening, v)
        # The whitening's own graph would cost as much as two layers, at one point.
        return cast(Tensor, _LogProb.apply(v, self, law, whitening))

    def sequential_calls(self) -> int:
        return 1

    def by_autograd(self, x: Tensor) -> Tensor:
        """Return the log-density as operations that can be differentiated again."""
        law = self.law
        return in_chunks(self, x, lambda rows: law.value(law.met(rows)), self.chunk_size)

    @property
    def law(self) -> _Law:
        """The density as a function."""
        scale = self.field.data_scale
        return _Law(scale, self.constant(), self.gate, self.correction.weights())


class _LogProb(torch.autograd.Function):
    """The log-density with its gradient, made in the pass forward: it costs little more there."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        density: DistilledDensity,
        law: _Law,
        whitening: AbstractWhitening | None,
    ) -> Tensor:
        ctx.density, ctx.whitening = density, whitening
        if not ctx.needs_input_grad[0]:
            return density.by_autograd(_whitened(v, whitening))
        # In chunks too, of which only this is kept: nothing has to be computed again.
        size = density.chunk_size
        found = in_chunks(density, v, lambda rows: law.side_by_side(rows, whitening), size)
        ctx.save_for_backward(v, found[:, 1:])
        # A copy: what is returned may be written to.
        return found[:, 0].clone()

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Any:
        v, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            value = ctx.density.by_autograd(_whitened(v, ctx.whitening))
            return *torch.autograd.grad(value, v, grad, create_graph=True), None, None, None
        return grad[:, None] * slopes, None, None, None


def _whitened(v: Tensor, whitening: AbstractWhitening | None) -> Tensor:
    return v if whitening is None else whitening._inverse(v)
