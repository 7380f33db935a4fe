r"""``fit`` without a context: the chain from samples to a prior, in the order of the package.

samples -> (bounds) -> (margins) -> whitening -> teacher on a path -> distilled divergence ->
time grid -> calibration -> :class:`~pyro_stad.density.prior.FlowPrior`.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.data import (
    Batches,
    Bounds,
    Intake,
    Margins,
    Wrap,
    affine,
    check_margins,
    check_whitening,
    fit_margins,
    outer_transforms,
    split,
    to_line,
    whitening,
    wind,
)
from pyro_stad.data.reference import Reference
from pyro_stad.density.prior import FlowPrior
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fitting.stages import FitStages
from pyro_stad.learn.members import Resampler
from pyro_stad.paths import AbstractPath
from pyro_stad.report.fit import FitReport
from pyro_stad.report.goodness import Goodness, goodness

__all__ = ["fit_prior"]

_VERSIONED = ("pyro-stad", "torch", "pyro-ppl")


def fit_prior(
    taken: Intake,
    limits: Bounds | None,
    path: str | AbstractPath,
    stages: FitStages,
    members: int,
    device: torch.device,
    dtype: torch.dtype,
) -> FlowPrior:
    """Learn the law of samples.

    Arguments:
        taken: checked samples.
        limits: bounds of the coordinates, or None.
        path: a name in ``pyro_stad.paths.PATHS``, a path object, or ``"cnf"``.
        stages: the training runs, with their settings.
        members: number of refits to resamples.
        device: where to train and where the prior will live.
        dtype: floating-point type of the prior.
    """
    rows, unbounded = taken.samples, taken.samples.values
    if limits is not None:
        limits = wind(limits, unbounded, rows.weights)
        unbounded = _unbounded(unbounded, limits, stages.seed)
    margins = _margins(unbounded, limits, taken, stages.seed, dtype)
    values = unbounded if margins is None else margins.to(torch.float64).inv(unbounded)
    loc, scale_tril = whitening(values, rows.weights, rows.layout.names)
    check_whitening(loc, scale_tril, rows.layout.names, dtype)
    whiten = affine(loc, scale_tril)
    white = whiten.inv(values).to(device, dtype)
    kept, held = split(
        white, None if rows.weights is None else rows.weights.to(device),
        stages.settings.validation_fraction, stages.generator("split", white),
        chains=rows.chains, time=taken.time,
    )  # fmt: skip
    stages.identify(rows, path, limits, margins, dtype)
    field = stages.teacher(path, kept, held)
    flow, cloud = stages.divergence(field, kept, held)
    likelihood, transport, calibration = stages.calibrated(flow, cloud, kept, held)
    fitness = goodness(likelihood, transport, held, stages.seed, kept=kept, time=taken.time)
    for trouble in (*calibration.troubles, *fitness.troubles):
        warnings.warn(trouble, AccuracyWarning, stacklevel=4)
    weights = None if rows.weights is None else rows.weights.to(device)
    source = stages.generator("reference", white)
    reference = Reference.of(Batches(white, weights), taken.effective, source)
    sample = Resampler.of(unbounded, taken, limits, whiten, margins)
    spread = stages.spread(likelihood, transport, sample, kept, reference, members)
    report = _report(stages, taken, fitness)
    loc, scale_tril = loc.to(device, dtype), scale_tril.to(device, dtype)
    return FlowPrior(
        likelihood, loc, scale_tril, rows.layout, limits, report, calibration,
        transport=transport, margins=margins and margins.to(device), reference=reference,
        spread=spread,
    )  # fmt: skip


def _unbounded(values: Tensor, limits: Bounds, seed: int) -> Tensor:
    """Carry samples to the coordinates without walls or seams."""
    on_line = to_line(values, limits)
    first = next(iter(outer_transforms(limits, values)), None)
    if isinstance(first, Wrap):
        return first.unroll(on_line, generator(seed, "unrolling"))
    return on_line


def _margins(
    values: Tensor, limits: Bounds | None, taken: Intake, seed: int, dtype: torch.dtype
) -> Margins | None:
    """Return the margins of unbounded values, as the prior will have them."""
    rows, source = taken.samples, generator(seed, "margins")
    margins = fit_margins(values, rows.weights, limits, taken.effective, source)
    if margins is None:
        return None
    check_margins(margins, rows.layout.names, dtype)
    return margins.to(dtype)


def _report(stages: FitStages, taken: Intake, fitness: Goodness) -> FitReport:
    return FitReport(
        seed=stages.seed,
        rows=taken.rows,
        stages=tuple(stages.done),
        versions={name: version(name) for name in _VERSIONED},
        distinct=len(taken.samples.values),
        effective=round(taken.effective, 1),
        moved=taken.moved,
        goodness=fitness,
    )
