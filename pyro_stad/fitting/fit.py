r"""``fit``: samples to prior, the whole chain in the order of the package.

samples -> (bounds) -> (margins) -> whitening -> teacher on a path -> distilled divergence ->
time grid -> calibration -> :class:`~pyro_stad.density.prior.FlowPrior`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_device, check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.data import (
    Batches,
    Bounds,
    Intake,
    Margins,
    Samples,
    Wrap,
    affine,
    as_samples,
    check_margins,
    check_whitening,
    fit_margins,
    outer_transforms,
    parse_bounds,
    split,
    take_in,
    whitening,
    wind,
)
from pyro_stad.data.reference import Reference
from pyro_stad.density.prior import FlowPrior
from pyro_stad.errors import AccuracyWarning
from pyro_stad.fitting.settings import BUDGETS, FitSettings
from pyro_stad.fitting.stages import FitStages
from pyro_stad.learn.members import Resampler
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import build
from pyro_stad.report.fit import FitReport
from pyro_stad.report.goodness import Goodness, goodness

__all__ = ["fit"]

_VERSIONED = ("pyro-stad", "torch", "pyro-ppl")
_MOST_MEMBERS = 100


@own_context()
def fit(
    samples: Any,
    *,
    names: Sequence[str] | None = None,
    weights: Any = None,
    log_weights: Any = None,
    var_names: Sequence[str] | None = None,
    bounds: Any = None,
    path: str | AbstractPath = "ot",
    budget: str | FitSettings = "standard",
    members: int = 5,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FlowPrior:
    """Learn a prior from samples.

    Arguments:
        samples: a tensor, numpy array or pandas DataFrame with shape ``(N, D)``, a mapping of
            names to arrays ``(N, ...)``, an ArviZ posterior, or what ``read_chain`` returns; at
            least 100 distinct rows.
        names: names of the columns of a tensor or array.
        weights: one non-negative weight per row, as nested samplers give, of any scale; or the
            name of the column that holds them.
        log_weights: the logarithms of the weights, up to a constant, in their place.
        var_names: the variables to keep.
        bounds: ``{name: (low, high)}``, or one pair per coordinate; None leaves a side open. An
            angle is ``"periodic"``, with period two pi, or the number that is its period, or
            ``pyro_stad.data.Periodic(low, high)``; its density is periodic, its draws lie in
            ``[low, high)``: from zero on if no sample is negative, else about zero. The
            bounds that a chain brings hold for what a mapping does not name; an empty one takes
            none at all. For a cut that is no box, see ``FlowPrior.truncate``.
        path: a name in ``pyro_stad.paths.PATHS``, a path object, or ``"cnf"`` for a free-form
            continuous normalising flow trained by maximum likelihood.
        budget: a name in ``pyro_stad.BUDGETS`` or a ``FitSettings``.
        members: refits to bootstrap resamples, by which the error of learning is known:
            ``FlowPrior.learning_error``, and the errors of evidences and posteriors. Two at the
            least, or none: 0 leaves it unknown.
        seed: seed of everything random; the global generator is not touched.
        progress: whether to show progress bars.
        resume: folder for the state of an unfinished fit; a fit that was killed goes on from it.
        device: where to train and where the prior will live.
        dtype: floating-point type of the prior.

    Returns:
        The prior, calibrated against exact traces on held-out samples: see ``prior.summary()``.
        Repeated rows count as weights, and of a chain whole stretches are held out.

    Raises:
        TypeError, ValueError: for samples or settings that can't be used; columns are named.
        TrainingError: if training diverged from the start.

    Warns:
        SampleWarning: for few effective rows, and for columns that have no density.
        AccuracyWarning: for a tolerance that is not met, and for a prior that does not describe
            held-out samples; ``summary()`` says the same.

    References:
        Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486).
    """
    settings = _settings(budget)
    seed = _check_options(path, members, seed, dtype)
    device = check_device(device)
    checked = as_samples(
        samples, names=names, weights=weights, log_weights=log_weights, var_names=var_names
    )
    limits = _limits(bounds, checked)
    taken = take_in(checked, limits, dtype)
    rows, unbounded = taken.samples, taken.samples.values
    if limits is not None:
        limits = wind(limits, unbounded, rows.weights)
        unbounded = _unbounded(unbounded, limits, seed)
    margins = _margins(unbounded, limits, taken, seed, dtype)
    values = unbounded if margins is None else margins.to(torch.float64).inv(unbounded)
    loc, scale_tril = whitening(values, rows.weights, rows.layout.names)
    check_whitening(loc, scale_tril, rows.layout.names, dtype)
    whiten = affine(loc, scale_tril)
    white = whiten.inv(values).to(device, dtype)
    stages = FitStages(settings, seed, _resume_folder(resume), progress=progress)
    kept, held = split(
        white, None if rows.weights is None else rows.weights.to(device),
        settings.validation_fraction, stages.generator("split", white),
        chains=rows.chains, time=taken.time,
    )  # fmt: skip
    stages.identify(rows, path, limits, margins, dtype)
    field = stages.teacher(path, kept, held)
    flow, cloud = stages.divergence(field, kept, held)
    likelihood, transport, calibration = stages.calibrated(flow, cloud, kept, held)
    fitness = goodness(likelihood, transport, held, seed, kept=kept, time=taken.time)
    for trouble in (*calibration.troubles, *fitness.troubles):
        warnings.warn(trouble, AccuracyWarning, stacklevel=3)
    weights = None if rows.weights is None else rows.weights.to(device)
    source = stages.generator("reference", white)
    reference = Reference.of(Batches(white, weights), taken.effective, source)
    sample = Resampler.of(unbounded, taken, limits, whiten, margins)
    spread = stages.spread(likelihood, transport, sample, kept, reference, members)
    report = _report(stages, taken, fitness)
    loc, scale_tril = loc.to(device, dtype), scale_tril.to(device, dtype)
    return FlowPrior(
        likelihood, loc, scale_tril, checked.layout, limits, report, calibration,
        transport=transport, margins=margins and margins.to(device), reference=reference,
        spread=spread,
    )  # fmt: skip


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


def _limits(bounds: Any, checked: Samples) -> Bounds | None:
    """Return the bounds of the user, and where there are none, those of the chain."""
    if bounds is None:
        bounds = checked.bounds
    elif isinstance(bounds, Mapping) and bounds:
        bounds = {**checked.bounds, **bounds}
    return parse_bounds(bounds, checked.layout, checked.values)


def _unbounded(values: Tensor, limits: Bounds, seed: int) -> Tensor:
    """Carry samples to the coordinates without walls or seams."""
    outer = outer_transforms(limits, values)
    for transform in reversed(outer):
        values = transform.inv(values)
    if outer and isinstance(outer[0], Wrap):
        values = outer[0].unroll(values, generator(seed, "unrolling"))
    return values


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


def _settings(budget: str | FitSettings) -> FitSettings:
    if isinstance(budget, FitSettings):
        return budget
    if budget not in BUDGETS:
        raise ValueError(f"`budget` must be one of {list(BUDGETS)} or FitSettings; got {budget!r}")
    return BUDGETS[budget]


def _check_options(path: Any, members: Any, seed: Any, dtype: Any) -> int:
    """Refuse, before any work, what would only fail or mislead later; return the seed."""
    if not isinstance(path, AbstractPath) and path != "cnf":
        if not isinstance(path, str):
            raise TypeError(f"`path` must be a name or a path object; got {path!r}")
        build(path, "path")
    check_count(members, "members", least=0, most=_MOST_MEMBERS)
    if members == 1:
        raise ValueError("`members` must be 0, or at least 2: one has no spread; got 1")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64; got {dtype}")
    return check_seed(seed)


def _resume_folder(resume: str | os.PathLike[str] | None) -> Path | None:
    if resume is None:
        return None
    folder = Path(resume)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`resume` must be a folder, for several files; got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
