r"""The network: a plain multilayer perceptron that sees the angle at every layer.

Small and smooth on purpose: inside NUTS it is called at batch size one, where depth costs more
than width, and its divergence is what a head on the hidden layers has to learn. With
:math:`h_l = \sigma(W_l h_{l-1} + b_l(\varphi))` and :math:`\Lambda_l = \mathrm{diag}(\sigma')` at
layer l, the divergence of :math:`w = W_{out} h_L` is

.. math:: \nabla\cdot w = \mathrm{tr}(W_{out} \Lambda_L W_L \cdots \Lambda_1 W_1),

multilinear in the derivatives of the layers. So the trunk shows a head both the activations and
their derivatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ANGLE_FEATURES", "Hidden", "Trunk", "angle_features", "perceptron_and_slope"]

_FREQUENCIES = 4
ANGLE_FEATURES = 2 + 2 * _FREQUENCIES


class Hidden(NamedTuple):
    """What a trunk shows of its hidden layers, first to last; entries have shape ``(B, width)``."""

    activations: tuple[Tensor, ...]
    derivatives: tuple[Tensor, ...]


def angle_features(angle: Tensor) -> Tensor:
    """Embed angles in [0, pi/2], shape ``(...)``, as ``(..., ANGLE_FEATURES)`` numbers of order one."""
    k = torch.arange(1, _FREQUENCIES + 1, dtype=angle.dtype, device=angle.device)
    waves = 2 * k * angle[..., None]
    # The logarithm resolves the data end, where fine structure of the density lives. The clamp
    # keeps it finite at the noise end, where nothing changes any more.
    log_ratio = torch.log(torch.tan(angle.clamp(1e-4, 0.5 * math.pi - 0.02))) / 3
    plain = torch.stack([angle, log_ratio], dim=-1)
    return torch.cat([plain, torch.sin(waves), torch.cos(waves)], dim=-1)


def _silu(pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU, its derivative, and the gate :math:`1 / (1 + e^{-x})`."""
    gate = torch.sigmoid(pre)
    value = pre * gate
    return value, torch.addcmul(gate, value, 1 - gate), gate


def _affine(layer: nn.Linear, h: Tensor, term: Tensor) -> Tensor:
    """Return ``layer(h) + term`` in one pass over memory."""
    return torch.addmm(layer.bias + term, h, layer.weight.mT)


class Trunk(nn.Module):
    """Map an angle and a point to ``outputs`` numbers; zero at initialisation.

    Arguments:
        features: dimension D of a point.
        width: units of each hidden layer.
        depth: number of hidden layers.
        outputs: dimension of the result.
    """

    def __init__(self, features: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.features, self.width, self.depth = features, width, depth
        sizes = [features] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:]))
        self.clocks = nn.ModuleList(nn.Linear(ANGLE_FEATURES, width, bias=False) for _ in range(depth))
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _clock_terms(self, angle: Tensor) -> list[Tensor]:
        embedded = angle_features(angle)
        return [clock(embedded) for clock in self.clocks]

    def forward(self, angle: Tensor, y: Tensor) -> Tensor:
        h = y
        for layer, term in zip(self.layers, self._clock_terms(angle)):
            h = functional.silu(_affine(layer, h, term))
        return self.out(h)

    def with_hidden(self, angle: Tensor, y: Tensor) -> tuple[Tensor, Hidden]:
        """Return the output, ``(B, outputs)``, and the hidden layers."""
        h, activations, derivatives = y, [], []
        for layer, term in zip(self.layers, self._clock_terms(angle)):
            h, slope, _ = _silu(_affine(layer, h, term))
            activations.append(h)
            derivatives.append(slope)
        return self.out(h), Hidden(tuple(activations), tuple(derivatives))

    def hidden_and_tangent(
        self, angle: Tensor, y: Tensor, tangent: Tensor
    ) -> tuple[Hidden, Hidden]:
        """Return the hidden layers and their derivative along ``tangent``, a direction of ``y``.

        Forward mode by hand: three times as fast as ``torch.func.jvp`` on small networks.
        """
        h, h_dot = y, tangent
        value, dot = Hidden((), ()), Hidden((), ())
        for layer, term in zip(self.layers, self._clock_terms(angle)):
            pre = _affine(layer, h, term)
            h, slope, gate = _silu(pre)
            # (x g)'' = g' (2 + x (1 - 2 g)), with g' = g (1 - g).
            bend = gate * (1 - gate) * (2 + pre - 2 * h)
            pre_dot = h_dot @ layer.weight.mT
            h_dot = slope * pre_dot
            value = Hidden((*value.activations, h), (*value.derivatives, slope))
            dot = Hidden((*dot.activations, h_dot), (*dot.derivatives, bend * pre_dot))
        return value, dot


def perceptron_and_slope(
    perceptron: nn.Sequential, x: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a SiLU perceptron's output and its derivative along ``tangent``, a direction of x."""
    for layer in perceptron:
        if isinstance(layer, nn.Linear):
            x, tangent = layer(x), tangent @ layer.weight.mT
        else:
            x, slope, _ = _silu(x)
            tangent = slope * tangent
    return x, tangent
