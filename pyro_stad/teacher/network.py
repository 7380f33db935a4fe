r"""The network: a plain multilayer perceptron that sees the angle at every layer.

Small and smooth on purpose: inside NUTS it is called at batch size one, where depth costs more
than width, and its divergence is what a head on the hidden layers has to learn. With
:math:`h_l = \sigma(W_l h_{l-1} + b_l(\varphi))` and :math:`\Lambda_l = \mathrm{diag}(\sigma')` at
layer l, the divergence of :math:`w = W_{out} h_L` is

.. math:: \nabla\cdot w = \mathrm{tr}(W_{out} \Lambda_L W_L \cdots \Lambda_1 W_1),

multilinear in the derivatives of the layers. So these derivatives are what the trunk shows a head.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ANGLE_FEATURES", "Hidden", "Trunk", "angle_features"]

_FREQUENCIES = 4
ANGLE_FEATURES = 2 + 2 * _FREQUENCIES


class Hidden(NamedTuple):
    """What a trunk shows: its embedded angle, and the derivative of each layer, ``(B, width)``."""

    angle: Tensor
    derivatives: tuple[Tensor, ...]


def angle_features(angle: Tensor) -> Tensor:
    """Embed angles in [0, pi/2], shape ``(...)``, as ``(..., ANGLE_FEATURES)`` numbers."""
    angle = angle[..., None]
    # The logarithm resolves the data end, where fine structure of the density lives. The clamp
    # keeps it finite at the noise end, where nothing changes any more.
    log_ratio = torch.tan(angle.clamp(1e-4, 0.5 * math.pi - 0.02)).log() / 3
    k = torch.arange(1, _FREQUENCIES + 1, dtype=angle.dtype, device=angle.device)
    waves = 2 * angle * k
    return torch.cat([angle, log_ratio, torch.sin(waves), torch.cos(waves)], dim=-1)


def _silu(pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU, its derivative, and the gate :math:`1 / (1 + e^{-x})`."""
    gate = torch.sigmoid(pre)
    value = pre * gate
    # gate + value (1 - gate), in one pass over memory.
    return value, torch.lerp(gate, torch.ones((), dtype=pre.dtype, device=pre.device), value), gate


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
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=False) for i, o in zip(sizes, sizes[1:]))
        # One product makes the time-dependent biases of all layers.
        self.clock = nn.Linear(ANGLE_FEATURES, width * depth)
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _layers_at(self, embedded: Tensor) -> zip[tuple[Tensor, Tensor]]:
        """Return the weight, transposed, and the bias at an embedded angle of every layer."""
        biases = self.clock(embedded).chunk(self.depth, dim=-1)
        weights = [cast(Tensor, layer.weight).mT for layer in self.layers]
        return zip(weights, biases)

    def forward(self, angle: Tensor, y: Tensor) -> Tensor:
        h = y
        for weight, bias in self._layers_at(angle_features(angle)):
            h = functional.silu(torch.addmm(bias, h, weight))
        return self.out(h)

    def with_hidden(self, angle: Tensor, y: Tensor) -> tuple[Tensor, Hidden]:
        """Return the output, ``(B, outputs)``, and the hidden layers."""
        embedded = angle_features(angle)
        h, derivatives = y, []
        for weight, bias in self._layers_at(embedded):
            h, slope, _ = _silu(torch.addmm(bias, h, weight))
            derivatives.append(slope)
        return self.out(h), Hidden(embedded, tuple(derivatives))

    def hidden_and_tangent(
        self, angle: Tensor, y: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor, Hidden, tuple[Tensor, ...]]:
        """Return output and hidden layers with their derivatives along ``tangent``.

        Forward mode by hand: three times as fast as ``torch.func.jvp`` on small networks.

        Arguments:
            angle: angles with shape ``()`` or ``(B,)``.
            y: points with shape ``(B, features)``.
            tangent: a direction of ``y`` for each point.

        Returns:
            The output, its derivative, the hidden layers, and the derivatives of theirs.
        """
        embedded = angle_features(angle)
        h, h_dot = y, tangent
        slopes, slopes_dot = [], []
        for weight, bias in self._layers_at(embedded):
            pre = torch.addmm(bias, h, weight)
            h, slope, gate = _silu(pre)
            # (x g)'' = g' (2 + x (1 - 2 g)), with g' = g (1 - g).
            bend = gate * (1 - gate) * (2 + pre - 2 * h)
            pre_dot = h_dot @ weight
            h_dot = slope * pre_dot
            slopes.append(slope)
            slopes_dot.append(bend * pre_dot)
        hidden = Hidden(embedded, tuple(slopes))
        return self.out(h), h_dot @ self.out.weight.mT, hidden, tuple(slopes_dot)
