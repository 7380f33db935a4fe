r"""The law of a distilled density: a normal one, and a perceptron h that corrects it.

Value and gradient by hand, in as few operations as the network has layers, and as one registered
operator in a trace. The mathematics is in :mod:`pyro_stad.likelihood.distilled`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad._checks import check_count, is_transformed
from pyro_stad._chunks import CHUNK_SIZE, padded
from pyro_stad._context import full_precision
from pyro_stad._rows import COLUMNS, ROWS
from pyro_stad.data import AbstractWhitening
from pyro_stad.fields.gate import Gate, GateValues
from pyro_stad.fields.networks.perceptron import linear
from pyro_stad.registry import Source

__all__ = ["CorrectedNormal", "Correction"]


class _Met(NamedTuple):
    """What the density consists of at points, in the field's own coordinates.

    The gate is None where it is open for all of them; ``seen`` is what the units of each layer see.
    """

    y: Tensor
    squared: Tensor
    gate: GateValues | None
    h: Tensor
    seen: list[Tensor]


class CorrectedNormal(NamedTuple):
    """The density as a function: its numbers, and the weights and biases of h in turn."""

    scale: float
    constant: float
    gate: Gate
    weights: list[Tensor]

    def met(self, x: Tensor, context: Tensor | None = None) -> _Met:
        """Go through the network once with data ``(B, D)``, and their context ``(B, C)``."""
        y = x * self.scale
        squared = y.square().sum(-1)
        gate = None if self._is_open(squared) else self.gate.at(squared)
        entering = y if context is None else torch.cat([y, context], 1)
        return _Met(y, squared, gate, *_forward(self.weights, entering))

    def value(self, met: _Met) -> Tensor:
        """Return log-densities ``(B,)``."""
        correction = met.h if met.gate is None else met.gate.value * met.h
        return torch.add(correction + self.constant, met.squared, alpha=-0.5)

    def value_and_slope(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the log-densities of data ``(B, D)``, and their gradients by hand.

        Those are by the data, and to the right of them by the context, if there is one.
        """
        met = self.met(x, context)
        slopes = _backward(self.weights, met.seen)
        if met.gate is not None:
            slopes = met.gate.value[:, None] * slopes
        if context is not None:
            slopes, by_context = slopes[:, : x.shape[1]], slopes[:, x.shape[1] :]
        if met.gate is None:
            slopes = slopes - met.y
        else:
            by_norm = 2 * met.gate.slope * met.h - 1
            slopes = torch.addcmul(slopes, by_norm[:, None], met.y)
        slopes = self.scale * slopes
        return self.value(met), slopes if context is None else torch.cat([slopes, by_context], 1)

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
    """Return what ``CorrectedNormal.side_by_side`` does."""
    law = CorrectedNormal(scale, constant, Gate(inner, outer), weights)
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
        context: numbers C of a context that it sees beside the point, 0 for none.
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
        for name, size in {"features": features, "width": width, "depth": depth}.items():
            check_count(size, name)
        if width % COLUMNS:
            # Products with other numbers of columns see a row's place in the batch.
            raise ValueError(f"`width` must be a multiple of {COLUMNS}; got {width}")
        check_count(context, "context", least=0)
        self.features, self.width, self.depth, self.context = features, width, depth, context
        sizes = [features + context] + [width] * (depth - 1)
        self.layers = nn.ModuleList(linear(size, width, generator) for size in sizes)
        self.out = linear(width, 1, generator)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def from_settings(cls, features: int, settings: dict[str, Any], source: Source) -> Correction:
        """Return a correction of the sizes of its tensors: others could fill the memory."""
        width, depth, context = settings["width"], settings["depth"], settings.get("context", 0)
        check_count(width, "width")
        check_count(context, "context", least=0)
        check_count(depth, "depth", most=len(source.tensors))
        shapes = [(width, features + context), *[(width, width)] * (depth - 1), (1, width)]
        names = [*(f"layers.{index}.weight" for index in range(depth)), "out.weight"]
        for name, shape in zip(names, shapes):
            tensor = source.tensors.get(source.place + name)
            if tensor is None or tensor.shape != shape:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise ValueError(
                    f"`width` {width} and `depth` {depth} do not fit {source.place}{name}, {found}"
                )
        return cls(features, width, depth, torch.Generator(), context)

    def forward(self, y: Tensor) -> Tensor:
        """Return h at points, with their context to the right, ``(B, D + C)``: ``(B,)``."""
        return _forward(self.weights(), y)[0]

    def weights(self) -> list[Tensor]:
        """Return weights and biases in turn, layer by layer."""
        # From the dictionaries of the modules: attributes of a module are slow to be found, and
        # this is asked at every leapfrog step.
        layers = (*cast(nn.ModuleList, self._modules["layers"]), self._modules["out"])
        return [p for layer in layers for p in cast("list[Tensor]", layer._parameters.values())]
