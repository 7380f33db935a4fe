r"""The network of images: a small U-Net that sees the angle in every block.

Blocks of two convolutions, at full resolution and then at half of it, a quarter and so on, with
twice as many channels at each level, and back, beside what was there on the way down. In a block
the angle scales and shifts what goes through the activation,

.. math:: h \mapsto h + C_2\, \sigma\big((1 + a(\varphi)) \odot C_1 \sigma(h) + b(\varphi)\big) .

There is no normalisation: it would tie every pixel to all others, and with them the divergence,
which is a sum over pixels of what is about each. The divergence is made of the derivatives of the
activations, as that of a perceptron is (:mod:`pyro_stad.fields.networks.perceptron`); they are what
the network shows a head, one map for each block.

References:
    Ronneberger, Fischer and Brox (2015), U-Net: Convolutional Networks for Biomedical Image
    Segmentation; Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from pyro_stad.fields.networks.perceptron import ANGLE_FEATURES, angle_features, gated_silu, linear

__all__ = ["UNet", "convolution"]


def convolution(
    inputs: int, outputs: int, generator: torch.Generator | None, *, size: int = 3, stride: int = 1
) -> nn.Conv2d:
    """Return a convolution with random weights of its own, as ``linear`` does."""
    options = {"kernel_size": size, "stride": stride, "padding": size // 2}
    if generator is None:
        return nn.Conv2d(inputs, outputs, **options)  # type: ignore[arg-type]
    where = {"dtype": torch.float32, "device": generator.device}
    layer = cast(nn.Conv2d, skip_init(nn.Conv2d, inputs, outputs, **options, **where))
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(inputs * size**2)
    nn.init.uniform_(cast(Tensor, layer.bias), -bound, bound, generator=generator)
    return layer


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


class Block(nn.Module):
    """A residual block; see the module."""

    def __init__(
        self, inputs: int, outputs: int, angle: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, generator)
        self.turn = linear(angle, 2 * outputs, generator)
        self.second = _silent(convolution(outputs, outputs, generator))
        self.past = convolution(inputs, outputs, generator, size=1) if inputs != outputs else None

    def forward(self, h: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Return what comes out, and the derivatives of the activation, of the same shape."""
        scale, shift = self.turn(angle)[..., None, None].chunk(2, 1)
        pre = (1 + scale) * self.first(functional.silu(h)) + shift
        value, derivative, _ = gated_silu(pre, torch.ones_like(pre))
        return (h if self.past is None else self.past(h)) + self.second(value), derivative


class UNet(nn.Module):
    """The network.

    Arguments:
        channels: of an image.
        width: channels of the first level; each level has twice as many as the one before.
        levels: resolutions, each half of the one before.
        generator: source of the first weights, or None for torch's global one.
    """

    def __init__(
        self, channels: int, width: int, levels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.channels, self.width, self.levels = channels, width, levels
        widths = [width * 2**level for level in range(levels)]
        self.angle = linear(ANGLE_FEATURES, 2 * width, generator)
        self.enter = convolution(channels, width, generator)
        self.down = nn.ModuleList(Block(w, w, 2 * width, generator) for w in widths)
        self.halve = nn.ModuleList(convolution(w, 2 * w, generator, stride=2) for w in widths[:-1])
        self.up = nn.ModuleList(
            Block(w + 2 * w, w, 2 * width, generator) for w in reversed(widths[:-1])
        )
        self.leave = _silent(convolution(width, channels, generator))

    @property
    def shown(self) -> list[int]:
        """How many channels each map of derivatives has that the network shows."""
        return [block.second.out_channels for block in cast(list[Block], [*self.down, *self.up])]

    def forward(self, angle: Tensor, y: Tensor) -> Tensor:
        """Return images of the shape of ``y``, ``(B, C, H, W)``, at angles ``()`` or ``(B,)``."""
        return self.with_maps(angle, y)[0]

    def with_maps(self, angle: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the images, and the derivatives of each block, at its own resolution."""
        embedded = functional.silu(self.angle(angle_features(angle.expand(len(y)))))
        h, maps, past = self.enter(y), [], []
        for level, block in enumerate(self.down):
            h, derivative = block(h, embedded)
            maps.append(derivative)
            if level < self.levels - 1:
                past.append(h)
                h = self.halve[level](h)
        for block in self.up:
            beside = past.pop()
            # To the size that was there: an odd one was halved upwards.
            h = functional.interpolate(h, size=beside.shape[-2:], mode="nearest")
            h, derivative = block(torch.cat([beside, h], 1), embedded)
            maps.append(derivative)
        return self.leave(functional.silu(h)), maps
