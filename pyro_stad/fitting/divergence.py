r"""From a field and data to a prior: the divergence is distilled, and the density calibrated.

Of images that ``fit`` has learned, and of networks of somebody else: events of any size, whose
exact trace is dear. (Of vectors that ``fit`` has learned there is more to choose and to look at:
:mod:`pyro_stad.fitting.stages`.)

field, data -> divergence network -> Stein objective -> regression on probes -> time grid ->
calibration on a few dozen points -> :class:`~pyro_stad.density.prior.FlowPrior`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import cast

import torch
from torch import Tensor

from pyro_stad._chunks import CHUNK_SIZE
from pyro_stad._rows import ROWS
from pyro_stad.calibrate import Calibration, calibrate_few, choose_steps
from pyro_stad.data import Batches, Layout
from pyro_stad.data.standardise import Rescale
from pyro_stad.density.prior import FlowPrior
from pyro_stad.divergence import (
    AbstractDivergenceNetwork,
    ImageHead,
    SeparateImageNetwork,
    SeparateNetwork,
    Stein,
)
from pyro_stad.fields import AbstractAngularField, ImageField
from pyro_stad.fitting.settings import FitSettings
from pyro_stad.fitting.stages import FitStages
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import AbstractObjective, HutchinsonLabels, SteinObjective
from pyro_stad.likelihood import AbstractLikelihood, FlowODE
from pyro_stad.ode import RK4, AbstractFixedGrid
from pyro_stad.report.fit import FitReport

__all__ = ["prior_of"]

_STEPS = (4, 8, 16, 32)
_FEW = 64  # points on which the time grid is chosen
_BYTES = 2**31
_SUPPOSED = 1024  # numbers that a network of somebody else holds for each of an event


def prior_of(
    stages: FitStages,
    field: AbstractAngularField,
    kept: Batches,
    held: Batches,
    whiten: Rescale,
    rows: int,
    layout: Layout | None = None,
) -> FlowPrior:
    """Return the prior of a field; whoever asked for it warns of what its calibration says.

    Arguments:
        stages: the training runs, with their settings.
        field: a field on a Gaussian path, trained.
        kept, held: data to learn the divergence at, and others, whitened.
        whiten: the whitening.
        rows: how many data there were.
        layout: names of the coordinates of vectors.
    """
    flow = _with_divergence(stages, field, kept, held)
    like, settings = kept.values, stages.settings
    few = held.subset(_FEW, stages.generator("time grid", like))
    # Errors of coordinates add up as their root.
    solver = choose_steps(flow, few, settings.grid_tolerance * field.features**0.5, _STEPS)
    flow = flow.replace(solver=solver, chunk_size=_chunk(field, solver))
    likelihood, calibration = _calibrated(stages, flow, held)
    report = FitReport(
        seed=stages.seed, rows=rows, stages=tuple(stages.done),
        versions={name: version(name) for name in ("pyro-stad", "torch", "pyro-ppl")},
    )  # fmt: skip
    return FlowPrior(
        likelihood, whiten.loc, whiten.scale_tril, layout, report=report, calibration=calibration,
        transport=flow.transport(),
    )  # fmt: skip


def _with_divergence(
    stages: FitStages, field: AbstractAngularField, kept: Batches, held: Batches
) -> FlowODE:
    like, settings = kept.values, stages.settings
    head = _network(field, settings, stages.first_weights("head")).to(like)
    clouds = ConditionalCloud(field, kept), ConditionalCloud(field, held)
    stein, polish, products = settings.image_stein, settings.image_polish, settings.image_products
    weight: Callable[[Tensor], Tensor] | None = torch.sin
    if len(field.event_shape) == 1:
        weight = None
        stein, polish, products = settings.stein, settings.polish, settings.polish_products
    runs: list[tuple[str, AbstractObjective, TrainingSettings | None]] = [
        ("stein", SteinObjective(), stein),
        ("polish", HutchinsonLabels(products), polish),
    ]
    for name, objective, training in runs:
        if training is not None:
            options = stages.options(name, like)
            run = distil(head, field, objective, *clouds, training, weight=weight, **options)
            stages.record(name, run)
    flow = FlowODE(field, Stein(head.requires_grad_(False)), RK4())
    # A network of somebody else is left as it was.
    return flow.requires_grad_(False) if isinstance(field, ImageField) else flow


def _network(
    field: AbstractAngularField, settings: FitSettings, first: torch.Generator
) -> AbstractDivergenceNetwork:
    """Return an untrained network for the divergence of a field."""
    if isinstance(field, ImageField):
        return ImageHead.for_field(field, first)
    shape = field.event_shape
    if len(shape) == 1:
        return SeparateNetwork(shape[0], settings.width, settings.depth, first)
    # As many halvings as a small image has.
    levels = min(settings.image_levels, min(shape[1:]).bit_length())
    return SeparateImageNetwork(shape, settings.image_width, levels, first)


def _chunk(field: AbstractAngularField, solver: AbstractFixedGrid) -> int:
    """Return how many points are worked on at a time.

    So many that what a gradient of the density keeps, of all calls, fits into the budget.
    """
    kept = field.shown if isinstance(field, ImageField) else _SUPPOSED * field.features
    rows = _BYTES // (4 * kept * solver.sequential_calls())
    return min(max(ROWS, rows // ROWS * ROWS), CHUNK_SIZE)


def _calibrated(
    stages: FitStages, flow: FlowODE, held: Batches
) -> tuple[AbstractLikelihood, Calibration]:
    settings, source = stages.settings, stages.generator("calibration", held.values)
    few = held.subset(settings.image_audit, source)
    tolerance = settings.tolerance_in(flow.field.features)
    cloud = ConditionalCloud(cast(AbstractAngularField, flow.field), held)
    products = settings.image_audit_products
    return calibrate_few(flow, few, cloud, tolerance, source, products=products)
