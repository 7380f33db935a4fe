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
from typing import cast

import torch
from torch import Tensor

from pyro_stad._chunks import CHUNK_SIZE
from pyro_stad._rows import ROWS
from pyro_stad.calibrate import Calibration, calibrate_few, choose_steps
from pyro_stad.data import Batches, split
from pyro_stad.data.images import (
    Augment,
    Continuous,
    ImageBatches,
    as_images,
    image_whitening,
)
from pyro_stad.data.standardise import Rescale
from pyro_stad.density.prior import FlowPrior
from pyro_stad.divergence import ImageHead, Stein
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fields import ImageField
from pyro_stad.fitting.stages import FitStages
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.learn.distil import distil
from pyro_stad.learn.matching import match
from pyro_stad.learn.objectives import AbstractObjective, HutchinsonLabels, SteinObjective
from pyro_stad.likelihood import AbstractLikelihood, FlowODE
from pyro_stad.ode import RK4, AbstractFixedGrid
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import build, describe
from pyro_stad.report.fit import FitReport

__all__ = ["fit_images"]

_STEPS = (4, 8, 16, 32)
_FEW = 64  # images on which the time grid is chosen
_BYTES, _FEWEST = 2**31, ROWS


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
    chosen = build(path, "path") if isinstance(path, str) else path
    stages.identity = _identity(stages, whole, chosen, augment, dtype)
    continuous = Continuous(augment, dtype)
    # On the CPU, so that the whitening is the same on every device.
    source = stages.generator("dequantisation", torch.zeros(0))
    whiten = image_whitening(continuous(whole, source))
    kept, held = _batches(stages, whole.to(device), continuous, _moved(whiten, device))
    field = _field(stages, chosen, kept, held)
    flow = _with_divergence(stages, field, kept, held)
    like = kept.values
    few = held.subset(_FEW, stages.generator("time grid", like))
    solver = choose_steps(flow, few, stages.settings.grid_tolerance * _scale(like), _STEPS)
    flow = flow.replace(solver=solver, chunk_size=_chunk(field, solver))
    likelihood, calibration = _calibrated(stages, flow, held)
    report = FitReport(
        seed=stages.seed, rows=len(whole), stages=tuple(stages.done),
        versions={name: version(name) for name in ("pyro-stad", "torch", "pyro-ppl")},
    )  # fmt: skip
    moved = _moved(whiten, device)
    transport = flow.transport()
    return FlowPrior(
        likelihood, moved.loc, moved.scale_tril, report=report, calibration=calibration,
        transport=transport,
    )  # fmt: skip


def _calibrated(
    stages: FitStages, flow: FlowODE, held: ImageBatches
) -> tuple[AbstractLikelihood, Calibration]:
    settings, source = stages.settings, stages.generator("calibration", held.values)
    few = held.subset(settings.image_audit, source)
    tolerance = settings.tolerance_in(flow.field.features)
    cloud = ConditionalCloud(cast(ImageField, flow.field), held)
    likelihood, calibration = calibrate_few(
        flow, few, cloud, tolerance, source, products=settings.image_audit_products
    )
    for trouble in calibration.troubles:
        warnings.warn(trouble, AccuracyWarning, stacklevel=4)
    return likelihood, calibration


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


def _chunk(field: ImageField, solver: AbstractFixedGrid) -> int:
    """Return how many images are worked on at a time.

    So many that what a gradient of the density keeps, the maps of all calls, fits into the budget.
    """
    rows = _BYTES // (4 * field.shown * solver.sequential_calls())
    return min(max(_FEWEST, rows // ROWS * ROWS), CHUNK_SIZE)


def _scale(white: Tensor) -> float:
    """Return by how much errors may be larger than in one dimension: they add up as their root."""
    return white[0].numel() ** 0.5


def _field(stages: FitStages, path: AbstractPath, kept: Batches, held: Batches) -> ImageField:
    like, settings = kept.values, stages.settings
    first = stages.first_weights("teacher")
    sizes = settings.image_width, settings.image_levels
    field = ImageField(path, like.shape[1:], *sizes, first).to(like)
    options = stages.options("teacher", like)
    stages.record("teacher", match(field, kept, held, settings.image_teacher, **options))
    return field


def _with_divergence(stages: FitStages, field: ImageField, kept: Batches, held: Batches) -> FlowODE:
    like = kept.values
    head = ImageHead.for_field(field, stages.first_weights("head")).to(like)
    clouds = ConditionalCloud(field, kept), ConditionalCloud(field, held)
    settings = stages.settings
    runs: list[tuple[str, AbstractObjective, TrainingSettings | None]] = [
        ("stein", SteinObjective(), settings.image_stein),
        ("polish", HutchinsonLabels(settings.image_products), settings.image_polish),
    ]
    for name, objective, training in runs:
        if training is not None:
            options = stages.options(name, like)
            stages.record(name, distil(head, field, objective, *clouds, training, **options))
    return FlowODE(field, Stein(head), RK4()).requires_grad_(False)


def _identity(
    stages: FitStages,
    images: Tensor,
    path: AbstractPath,
    augment: Augment | None,
    dtype: torch.dtype,
) -> str:
    """Return a fingerprint of data and settings, for the files of resumable runs."""
    # Of a function no more than its name is known.
    added = getattr(augment, "__qualname__", type(augment).__qualname__)
    known = describe(path, "path"), asdict(stages.settings), stages.seed, dtype, images.shape, added
    digest = hashlib.sha256(repr((*known, version("pyro-stad"))).encode())
    digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()
