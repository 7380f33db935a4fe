r"""Images as samples: whole numbers made continuous, and bits per dimension.

Grey values are whole numbers from 0 to :math:`L - 1`, and have no density. With noise u, uniform
in (0, 1), they have: :math:`x = (n + u) / L`, in the unit interval. By Jensen's inequality

.. math:: \log P(n) = \log \int_{[0, 1)^D} p\big((n + u)/L\big)\, L^{-D}\, du
    \;\ge\; E_u\, \log p(x) - D \log L ,

so that a density of dequantised images says, in bits for each number,
:math:`\log_2 L - \log_2 p(x) / D`, what a code for the whole numbers needs at the most.

References:
    Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad.data.batches import Batches
from pyro_stad.data.standardise import Rescale
from pyro_stad.errors import SampleWarning

__all__ = [
    "Augment",
    "Continuous",
    "ImageBatches",
    "as_images",
    "bits_per_dimension",
    "dequantise",
    "image_whitening",
    "warn_of_levels",
]

Augment = Callable[[Tensor, torch.Generator], Tensor]

_LEAST = 100
_LEVELS = 256
_SHARE, _LOOKED_AT = 0.01, 1_000_000
_TAKEN = (np.uint8, np.float16, np.float32, np.float64)
_CHANNELS = (1, 3, 4)  # grey, colours, and a mask beside them


def as_images(images: Any) -> Tensor:
    """Return images with shape ``(N, C, H, W)``; whole numbers stay whole.

    Arguments:
        images: a tensor or numpy array with shape ``(N, H, W)`` or ``(N, C, H, W)``: grey values of
            eight bits, or floating-point numbers, which are taken as they are.

    Raises:
        TypeError: for what is neither.
        ValueError: for another shape, channels that come last, fewer than 100 images, or numbers
            that are not finite.
    """
    if isinstance(images, np.ndarray):
        # A copy: what is read-only, or runs backwards, torch does not take.
        images = torch.from_numpy(images.copy()) if images.dtype in _TAKEN else images
    if not isinstance(images, Tensor) or not (
        images.is_floating_point() or images.dtype == torch.uint8
    ):
        kind = getattr(images, "dtype", type(images).__name__)
        raise TypeError(
            f"`samples` must be images of dtype uint8 or of floating-point numbers; got {kind}"
        )
    found = images.detach().cpu()
    if found.dtype in (torch.float16, torch.bfloat16):
        found = found.float()
    if found.ndim == 3:
        found = found[:, None]
    if found.ndim != 4 or 0 in found.shape:
        raise ValueError(
            f"`samples` must be images of shape (N, H, W) or (N, C, H, W); got {tuple(found.shape)}"
        )
    _, channels, width, last = found.shape
    if last in _CHANNELS and min(channels, width) > max(_CHANNELS):
        raise ValueError(
            "`samples` must have channels before height and width, (N, C, H, W); "
            f"{tuple(found.shape)} looks like channels last: use permute(0, 3, 1, 2)"
        )
    if len(found) < _LEAST:
        raise ValueError(f"`samples` must be at least {_LEAST} images; got {len(found)}")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise ValueError("`samples` must be finite; drop the images that are not")
    return found


def warn_of_levels(images: Tensor, stacklevel: int) -> None:
    """Say so, if floating-point images are grey values: their law has no density.

    Warns:
        SampleWarning: if their numbers take few values.
    """
    if images.is_floating_point():
        some = images.flatten()[:_LOOKED_AT]
        distinct = len(some.unique())
        # What is the same everywhere is refused by the whitening.
        if 1 < distinct <= _LEVELS and len(some) > 10 * distinct:
            warnings.warn(
                f"the numbers of `samples` take {distinct} values, grey values divided by "
                "something, and such a law has no density. Pass them as dtype uint8, or let "
                "`augment` put noise between them",
                SampleWarning,
                stacklevel=stacklevel,
            )


def dequantise(images: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Return whole numbers in the unit interval, with noise between them; others as they are."""
    if images.is_floating_point():
        return images.to(dtype)
    options: dict[str, Any] = {"generator": generator, "device": images.device}
    noise = torch.rand(images.shape, dtype=torch.float64, **options)
    # In single precision the largest may be rounded to one, which is no matter.
    return ((images.double() + noise) / _LEVELS).to(dtype)


@dataclass(frozen=True)
class Continuous:
    """How an image of the user becomes one that has a density: noise, and what the user adds.

    Arguments:
        augment: a function of images ``(B, C, H, W)``, floating-point numbers, and a generator,
            which returns images of the same shape; or None. What is learned is the law of what it
            returns.
        dtype: of the result.
    """

    augment: Augment | None
    dtype: torch.dtype

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images to learn from; the noise is another one each time.

        Raises:
            ValueError: if ``augment`` returns another shape or numbers that are not finite.
        """
        x = dequantise(images, generator, self.dtype)
        if self.augment is None:
            return x
        # Its own to write to: what is floating-point already is the user's.
        found = self.augment(x.clone(), generator)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"`augment` must return images of shape {tuple(x.shape)}; got {kind}")
        if not bool(torch.isfinite(found).all()):
            raise ValueError("`augment` must return finite numbers")
        return found.detach().to(x)


class ImageBatches(Batches):
    """Draws whitened images, each time with other noise between whole numbers.

    Arguments:
        images: what the user has, ``(N, C, H, W)``.
        continuous: how they are made continuous.
        whiten: the whitening.
        generator: source of the noise of ``values``.
    """

    def __init__(
        self,
        images: Tensor,
        continuous: Continuous,
        whiten: Rescale,
        generator: torch.Generator,
    ) -> None:
        self._images, self._continuous, self._whiten = images, continuous, whiten
        super().__init__(whiten.inv(continuous(images, generator)))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        drawn = self._images[self._drawn(count, generator)]
        return self._whiten.inv(self._continuous(drawn, generator))


def image_whitening(values: Tensor) -> Rescale:
    """Return the whitening of images, number by number.

    To the variance of a pixel a hundredth of their mean is added: what hardly varies in these
    images, a margin, may vary in others, which would then be hundreds of standard deviations away.

    Raises:
        ValueError: if a pixel is the same in all images; it has no density.
    """
    variance = values.double().var(0, correction=0)
    if not bool((variance > 0).all()):
        place = tuple((variance <= 0).nonzero()[0].tolist())
        raise ValueError(
            f"pixel {place} (channel, row, column) is the same in all images, and has no density; "
            "pass whole numbers, dtype uint8, which are made continuous"
        )
    scale = (variance + _SHARE * variance.mean()).sqrt()
    return Rescale(values.double().mean(0).to(values), scale.to(values))


def bits_per_dimension(prior: Any, images: Any, *, seed: int = 0, chunk: int = 100) -> Tensor:
    """Return the bits that each image takes, for each of its numbers, under a prior.

    Arguments:
        prior: a prior of dequantised images, as ``fit`` makes it of whole numbers.
        images: whole numbers with the shape of its events, ``(N, *event_shape)`` or ``(N, H, W)``,
            of dtype uint8.
        seed: of the noise between whole numbers.
        chunk: images at a time.

    Returns:
        An upper bound on the length of a code, in bits per number, ``(N,)``.

    Raises:
        TypeError: for images that are no whole numbers.
        ValueError: for images of another shape.
    """
    whole = torch.as_tensor(images)
    if whole.dtype != torch.uint8:
        raise TypeError(f"`images` must be whole numbers of dtype uint8; got {whole.dtype}")
    check_count(chunk, "chunk")
    shape = tuple(prior.event_shape)
    if whole.ndim == 3 and shape[0] == 1:
        whole = whole[:, None]
    if whole.shape[1:] != shape:
        raise ValueError(
            f"`images` must have shape (N, {', '.join(map(str, shape))}), that of the prior's "
            f"events; got {tuple(whole.shape)}"
        )
    like = prior.like
    x = dequantise(whole, torch.Generator().manual_seed(seed), like.dtype).to(like.device)
    with torch.no_grad():
        log_p = torch.cat([prior.log_prob(rows) for rows in x.split(chunk)]).double()
    return math.log2(_LEVELS) - log_p / (math.log(2) * x[0].numel())
