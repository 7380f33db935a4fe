r"""The distilled divergence of images: a head on the maps of the field's U-Net.

The divergence of a network of convolutions is a sum over pixels, of what the derivatives of its
activations are near each; so the head makes one number of each pixel, from the derivatives of all
blocks there, coarse ones spread out to full resolution, and adds them up:

.. math:: r = \tfrac{1}{\sqrt D} \sum_p s_p(\sigma', \varphi) + \sqrt D\, \mathrm{clock}(\varphi) .

One pass yields velocity and divergence. Derivatives are bounded, and so is r.

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional

from pyro_stad.divergence.stein import AbstractDivergenceNetwork, Clock
from pyro_stad.fields.base import AbstractField
from pyro_stad.fields.image import ImageField
from pyro_stad.fields.networks.perceptron import ANGLE_FEATURES, angle_features, linear
from pyro_stad.fields.networks.unet import convolution
from pyro_stad.registry import Source, storable

__all__ = ["ImageHead"]

_WIDTH = 32


@storable("divergence network", "image-head")
class ImageHead(AbstractDivergenceNetwork):
    """A head on the maps of a U-Net.

    Arguments:
        shown: channels of each map.
        generator: source of the first weights, or None for torch's global one.
    """

    def __init__(self, shown: list[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        # The sum of all maps' products is that of their concatenation, at each one's resolution.
        self.read = nn.ModuleList(convolution(n, _WIDTH, generator, size=1) for n in shown)
        self.turn = linear(ANGLE_FEATURES, 2 * _WIDTH, generator)
        self.mix = convolution(_WIDTH, _WIDTH, generator)
        self.out = convolution(_WIDTH, 1, generator, size=1)
        self.clock = Clock(generator)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    @staticmethod
    def for_field(field: AbstractField, generator: torch.Generator | None = None) -> ImageHead:
        """Return an untrained head that fits the network of ``field``."""
        return ImageHead(_of_images(field).net.shown, generator)

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> ImageHead:
        return cls.for_field(source.given["field"], torch.Generator(), **settings)

    def velocity_and_residual(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity, maps = _of_images(field).velocity_and_maps(t, x)
        return velocity, self._residual(t, x.shape, maps)

    def residual_and_slope(
        self, field: AbstractField, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        images = _of_images(field)
        # The field is not trained here: forward through it no graph is kept.
        with torch.no_grad():
            maps, dots = jvp(lambda y: images.velocity_and_maps(t, y)[1], (x,), (tangent,))[:2]

        def residual(*seen: Tensor) -> Tensor:
            return self._residual(t, x.shape, list(seen))

        value, slope = jvp(residual, tuple(maps), tuple(dots))[:2]
        return value, slope

    def _residual(self, t: Tensor, shape: torch.Size, maps: list[Tensor]) -> Tensor:
        embedded = angle_features(t.expand(shape[0]))
        size, total = shape[-2:], None
        for read, seen in zip(self.read, maps):
            part = functional.interpolate(read(seen), size=size, mode="nearest")
            total = part if total is None else total + part
        scale, shift = self.turn(embedded)[..., None, None].chunk(2, 1)
        h = functional.silu((1 + scale) * cast(Tensor, total) + shift)
        pixels = self.out(functional.silu(self.mix(h))).flatten(1).sum(-1)
        root = math.sqrt(shape[1:].numel())
        return pixels / root + root * self.clock(embedded)


def _of_images(field: AbstractField) -> ImageField:
    if not isinstance(field, ImageField):
        raise TypeError(
            f"ImageHead needs a field of images, an ImageField; got {type(field).__name__}. Use "
            "SeparateNetwork"
        )
    return field
