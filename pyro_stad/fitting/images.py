r"""``fit`` of images: the chain from images to a prior over events ``(C, H, W)``.

images -> dequantisation, another one for each draw -> whitening, number by number -> U-Net on a
path -> distilled divergence on its maps -> time grid ->
:class:`~pyro_stad.density.prior.FlowPrior`.

An exact trace takes as many products as there are pixels, so the calibration is on a few dozen
images, and with more than ``image_audit_products`` pixels the trace is sampled.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict
from importlib.metadata import version

import torch
from torch import Tensor

from pyro_stad.data import Batches, split
from pyro_stad.data.images import (
    Augment,
    Continuous,
    ImageBatches,
    as_images,
    image_whitening,
    warn_of_levels,
)
from pyro_stad.data.standardise import Rescale
from pyro_stad.density.prior import FlowPrior
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fields import ImageField
from pyro_stad.fitting.divergence import prior_of
from pyro_stad.fitting.stages import FitStages
from pyro_stad.learn.matching import match
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import build, describe

__all__ = ["fit_images"]

_PROBED = 16


def fit_images(
    images: object,
    path: str | AbstractPath,
    stages: FitStages,
    augment: Augment | None,
    device: torch.device,
    dtype: torch.dtype,
) -> FlowPrior:
    """Learn the law of images.

    Arguments:
        images: as of ``as_images``.
        path: a name in ``pyro_stad.paths.PATHS``, or a path object.
        stages: the training runs, with their settings.
        augment: what is done to each image that is drawn for training; see ``Continuous``.
        device: where to train and where the prior will live.
        dtype: floating-point type of the prior.
    """
    whole = as_images(images)
    if augment is None:
        warn_of_levels(whole, stacklevel=5)
    chosen = build(path, "path") if isinstance(path, str) else path
    continuous = Continuous(augment, dtype)
    stages.identity = _identity(stages, whole, chosen, continuous, device)
    # On the CPU, so that the whitening is the same on every device.
    source = stages.generator("dequantisation", torch.zeros(0))
    whiten = image_whitening(continuous(whole, source))
    kept, held = _batches(stages, whole.to(device), continuous, _moved(whiten, device))
    field = _field(stages, chosen, kept, held)
    prior = prior_of(stages, field, kept, held, _moved(whiten, device), len(whole))
    for trouble in prior.calibration.troubles if prior.calibration else ():
        warnings.warn(trouble, AccuracyWarning, stacklevel=4)
    return prior


def _moved(whiten: Rescale, device: torch.device) -> Rescale:
    return Rescale(whiten.loc.to(device), whiten.scale_tril.to(device))


def _batches(
    stages: FitStages, whole: Tensor, continuous: Continuous, whiten: Rescale
) -> tuple[ImageBatches, ImageBatches]:
    """Return what is trained on, and what is held out."""
    rows = torch.arange(len(whole), device=whole.device)
    share, source = stages.settings.validation_fraction, stages.generator("split", whole)
    noise = stages.generator("dequantisation", whole)
    kept, held = (
        ImageBatches(whole[part.values], continuous, whiten, noise)
        for part in split(rows, None, share, source)
    )
    return kept, held


def _field(stages: FitStages, path: AbstractPath, kept: Batches, held: Batches) -> ImageField:
    like, settings = kept.values, stages.settings
    first = stages.first_weights("teacher")
    sizes = settings.image_width, settings.image_levels
    field = ImageField(path, like.shape[1:], *sizes, first).to(like)
    options = stages.options("teacher", like)
    # Its noise is far above what rounding adds. What a density is made of is never rounded so.
    field.net.precision = torch.bfloat16 if like.is_cuda else None
    stages.record("teacher", match(field, kept, held, settings.image_teacher, **options))
    field.net.precision = None
    return field


def _identity(
    stages: FitStages,
    images: Tensor,
    path: AbstractPath,
    continuous: Continuous,
    device: torch.device,
) -> str:
    """Return a fingerprint of data and settings, for the files of resumable runs."""
    settings = asdict(stages.settings), stages.seed, continuous.dtype, images.shape
    known = describe(path, "path"), *settings, version("pyro-stad")
    digest = hashlib.sha256(repr(known).encode())
    digest.update(images.contiguous().numpy().tobytes())
    if continuous.augment is not None:
        # Of a function no more is known than what it does.
        few = images[:_PROBED].to(device)
        done = continuous(few, stages.generator("fingerprint", few))
        digest.update(done.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
