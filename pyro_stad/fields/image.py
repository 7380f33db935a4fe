"""A learned field of images: a U-Net for the angular velocity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.fields.networks.unet import UNet
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["ImageField", "check_image", "check_sizes"]


@storable("field", "image")
class ImageField(AbstractAngularField):
    """A U-Net for the angular velocity of images on a Gaussian path.

    Arguments:
        path: the Gaussian path.
        event_shape: channels, height and width.
        width: channels of the network at full resolution.
        levels: resolutions of the network.
        generator: source of the first weights, or None for torch's global one.

    Raises:
        ValueError: for events that are no images, or too small for so many levels.

    Example:
        >>> import torch
        >>> from pyro_stad.paths import OptimalTransport
        >>> field = ImageField(OptimalTransport(), (1, 8, 8), width=4, levels=2)
        >>> field.score(torch.tensor(0.5), torch.zeros(7, 1, 8, 8)).shape
        torch.Size([7, 1, 8, 8])
    """

    def __init__(
        self,
        path: AbstractPath,
        event_shape: Sequence[int],
        width: int,
        levels: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count(width, "width")
        check_count(levels, "levels")
        check_image(event_shape, levels)
        self._set_path(path, event_shape)
        self.net = UNet(event_shape[0], width, levels, generator)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(t, x)

    @property
    def shown(self) -> int:
        """Numbers that the maps of an image hold, which a pass keeps for a gradient."""
        return self.net.numbers(self.event_shape[1], self.event_shape[2])

    def velocity_and_maps(self, t: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the velocity, and the derivatives of all activations, in their order."""
        return self.net.with_maps(t, x)

    def jacobian_products(self, t: Tensor, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        # A subclass with another velocity must not get the network's derivatives.
        if type(self).velocity is not ImageField.velocity:
            return super().jacobian_products(t, x, tangents)
        velocity, maps = self.net.with_maps(t, x)
        return velocity, self.net.products(maps, tangents.expand(-1, len(x), *x.shape[1:]))

    def settings(self) -> dict[str, Any]:
        return {
            "path": describe(self.path, "path"),
            "event_shape": list(self.event_shape),
            "width": self.net.width,
            "levels": self.net.levels,
        }

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> ImageField:
        shape, width, levels = (settings[key] for key in ("event_shape", "width", "levels"))
        check_sizes(source.under("net"), shape, width, levels)
        path = build(settings["path"], "path")
        return cls(path, shape, width, levels, torch.Generator())


def check_image(event_shape: Sequence[int], levels: int) -> None:
    """Refuse events that are no images, or too small for so many levels."""
    if len(event_shape) != 3:
        raise ValueError(
            f"an image has channels, height and width; got an event of shape {tuple(event_shape)}"
        )
    if min(event_shape[1:]) < 2 ** (levels - 1):
        raise ValueError(
            f"`levels` halve an image {levels - 1} times, and {tuple(event_shape[1:])} is too "
            "small for that; take fewer"
        )


def check_sizes(source: Source, event_shape: Sequence[int], width: int, levels: int) -> None:
    """Hold sizes against the tensors of a file before a network of that size is built."""
    enter, net = source["enter.weight"].shape, f"{source.place}down."
    blocks = [k for k in source.tensors if k.startswith(net) and k.endswith(".first.weight")]
    if tuple(enter[:2]) != (width, event_shape[0]) or levels != len(blocks):
        raise ValueError(
            f"`width` {width}, `levels` {levels} and `event_shape` {event_shape} do not fit the "
            "tensors of the file"
        )
