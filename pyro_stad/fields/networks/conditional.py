r"""The network given a context: a trunk whose layers an encoder of the context shifts and gates.

With e the encoder, a perceptron of two layers, and biases and gates of the plain trunk
(:mod:`pyro_stad.fields.networks.perceptron`),

.. math:: b_l = b_l(\varphi) + B_l\, e(c), \qquad g_l = g_l(\varphi) + G_l\, e(c) .

The divergence is the plain trunk's function of the derivatives of the layers, so that the head
that learns it (:class:`~pyro_stad.divergence.stein.TrunkHead`) needs to know nothing of a context.
The encoder is run once for a row of context, however often the field is asked after that.

References:
    Perez, Strub, de Vries, Dumoulin and Courville (2018), FiLM: Visual Reasoning with a General
    Conditioning Layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_stad._checks import check_count
from pyro_stad._joined import repeat_rows
from pyro_stad.fields.networks.perceptron import Layer, Trunk, linear

__all__ = ["ConditionalTrunk", "Perceptron"]


class Perceptron(nn.Module):
    """Two hidden layers of SiLU units and a linear one.

    Arguments:
        inputs, width, outputs: sizes of the layers.
        generator: source of the first weights; see ``linear``.
    """

    def __init__(
        self, inputs: int, width: int, outputs: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, size in {"inputs": inputs, "width": width, "outputs": outputs}.items():
            check_count(size, name)
        self.enter = linear(inputs, width, generator)
        self.link = linear(width, width, generator)
        self.out = linear(width, outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.link(functional.silu(self.enter(x))))
        return self.out(h)


class ConditionalTrunk(Trunk):
    """Map an angle, a point and a context to ``outputs`` numbers; zero at initialisation.

    Arguments:
        features: dimension D of a point.
        context: dimension C of a context.
        width, depth, outputs, generator: as of ``Trunk``.

    Raises:
        ValueError: where it is evaluated and no context was given.
    """

    _shifts: Tensor | None = None

    def __init__(
        self,
        features: int,
        context: int,
        width: int,
        depth: int,
        outputs: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(features, width, depth, outputs, generator)
        self.context = context
        self.encoder = Perceptron(context, width, 2 * width * depth, generator)
        # Gates start as those of the angle alone, and so do all biases but the first layer's.
        with torch.no_grad():
            self.encoder.out.weight[width:] = 0
            self.encoder.out.bias.zero_()

    def given(self, context: Tensor) -> Self:
        """Return the trunk that has closed over rows of context, ``(B, C)`` or one for all."""
        new = copy.copy(self)
        # Of one row for many points, as that of a plate, the encoder sees one.
        one = len(context) > 1 and context.stride(0) == 0
        shifts = self.encoder(context[:1] if one else context)
        new._shifts = shifts.expand(len(context), -1) if one else shifts
        return new

    def repeated(self, count: int) -> Self:
        """Return the trunk for points that come ``count`` times each, side by side."""
        new = copy.copy(self)
        new._shifts = None if self._shifts is None else repeat_rows(self._shifts, count)
        return new

    def _layers(self, embedded: Tensor, y: Tensor) -> Iterator[Layer]:
        if self._shifts is None:
            raise ValueError("this field depends on a context: use field.given(context)")
        shifts = self._shifts.split(self.width, dim=-1)
        both = zip(super()._layers(embedded, y), shifts[: self.depth], shifts[self.depth :])
        for layer, shift, gate in both:
            yield Layer(layer.link, layer.term + shift, layer.gate + gate)
