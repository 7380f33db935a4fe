r"""``fit``: samples to prior, the whole chain in the order of the package.

samples -> (bounds) -> (margins) -> whitening -> teacher on a path -> distilled divergence ->
time grid -> calibration -> :class:`~pyro_stad.density.prior.FlowPrior`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_device, check_seed
from pyro_stad._config import build, describe
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.data import (
    Batches,
    Bounds,
    Intake,
    Margins,
    Samples,
    Standardise,
    Wrap,
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
from pyro_stad.density.goodness import goodness
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.reference import Reference
from pyro_stad.density.report import FitReport, Stage
from pyro_stad.density.settings import BUDGETS, FitSettings
from pyro_stad.divergence import Stein, TrunkHead
from pyro_stad.divergence.distil import (
    AbstractCloud,
    AbstractObjective,
    ExactLabels,
    HutchinsonLabels,
    SteinObjective,
    cloud_for,
    distil,
)
from pyro_stad.errors import AccuracyWarning
from pyro_stad.likelihood import FlowODE, SteinPath, calibrate, choose_steps, make_consistent
from pyro_stad.likelihood.maximum import train_free_form
from pyro_stad.ode import RK4
from pyro_stad.paths import PATHS, AbstractPath
from pyro_stad.teacher import AbstractTrunkField, FreeFormField, Gate, PathField
from pyro_stad.teacher.matching import match
from pyro_stad.training import History, TrainingSettings

__all__ = ["fit"]

_VERSIONED = ("pyro-stad", "torch", "pyro-ppl")
_STEPS = (1, 2, 4, 8, 16, 32, 64)
# Enough to know the radius of the outermost thousandth.
_GATE_ROWS = 100_000
# Of the tolerance, what path consistency is trained to.
_SHARE = 0.7


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
        budget: a name in ``pyro_stad.density.BUDGETS`` or a ``FitSettings``.
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
    seed = _check_options(path, seed, dtype)
    device = check_device(device)
    checked = as_samples(
        samples, names=names, weights=weights, log_weights=log_weights, var_names=var_names
    )
    if bounds is None:
        bounds = checked.bounds
    elif isinstance(bounds, Mapping) and bounds:
        bounds = {**checked.bounds, **bounds}
    limits = parse_bounds(bounds, checked.layout, checked.values)
    taken = take_in(checked, limits, dtype)
    rows, values = taken.samples, taken.samples.values
    if limits is not None:
        limits = wind(limits, values, rows.weights)
        values = _unbounded(values, limits, seed)
    margins = _margins(values, limits, taken, seed, dtype)
    if margins is not None:
        values = margins.to(torch.float64).inv(values)
    loc, scale_tril = whitening(values, rows.weights, rows.layout.names)
    check_whitening(loc, scale_tril, rows.layout.names, dtype)
    white = Standardise(loc, scale_tril).inv(values).to(device, dtype)
    workshop = _Workshop(settings, seed, _resume_folder(resume), progress=progress)
    kept, held = split(
        white, None if rows.weights is None else rows.weights.to(device),
        settings.validation_fraction, workshop.generator("split", white),
        chains=rows.chains, time=taken.time,
    )  # fmt: skip
    workshop.identify(rows, path, limits, margins, dtype)
    field = workshop.teacher(path, kept, held)
    flow, cloud = workshop.divergence(field, kept, held)
    source = workshop.generator("calibration", white)
    points = held.subset(settings.audit_points, source)
    flow.solver = choose_steps(flow, points, settings.grid_tolerance, _STEPS)
    likelihood, calibration = calibrate(
        flow, points, cloud, settings.tolerance, source, others=held.subset(len(held), source),
        reference=settings.reference, train=workshop.consistency(flow, kept, held),
    )  # fmt: skip
    fitness = goodness(likelihood, held, seed, kept=kept, time=taken.time)
    for trouble in (*calibration.troubles, *fitness.troubles):
        warnings.warn(trouble, AccuracyWarning, stacklevel=3)
    report = FitReport(
        seed=seed,
        rows=taken.rows,
        stages=tuple(workshop.stages),
        versions={name: version(name) for name in _VERSIONED},
        distinct=len(values),
        effective=round(taken.effective, 1),
        moved=taken.moved,
        goodness=fitness,
    )
    weights = None if rows.weights is None else rows.weights.to(device)
    source = workshop.generator("reference", white)
    reference = Reference.of(Batches(white, weights), taken.effective, source)
    loc, scale_tril = loc.to(device, dtype), scale_tril.to(device, dtype)
    return FlowPrior(
        likelihood, loc, scale_tril, checked.layout, limits, report, calibration,
        margins=margins and margins.to(device), reference=reference,
    )  # fmt: skip


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


def _check_options(path: Any, seed: Any, dtype: Any) -> int:
    """Refuse, before any work, what would only fail or mislead later; return the seed."""
    if not isinstance(path, AbstractPath) and path != "cnf":
        if not isinstance(path, str):
            raise TypeError(f"`path` must be a name or a path object; got {path!r}")
        build(path, PATHS, "path")
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


class _Workshop:
    """The training runs of one fit: their settings, seeds, files and reports."""

    def __init__(
        self, settings: FitSettings, seed: int, folder: Path | None, *, progress: bool
    ) -> None:
        self.settings, self.seed, self.progress, self.folder = settings, seed, progress, folder
        self.stages: list[Stage] = []
        self.identity = ""

    def generator(self, name: str, like: Tensor) -> torch.Generator:
        """Return a generator of its own for each purpose: resuming one does not shift others."""
        return generator(self.seed, name, like.device)

    def identify(
        self,
        samples: Samples,
        path: str | AbstractPath,
        limits: Bounds | None,
        margins: Margins | None,
        dtype: torch.dtype,
    ) -> None:
        """Fingerprint data and settings, for the files of resumable runs.

        All that the whitened rows and their split follow from is in it, rather than those rows:
        they differ in the last digit with the number of threads.
        """
        name = path if isinstance(path, str) else describe(path, PATHS, "path")
        mapped = margins and margins.columns
        known = (name, asdict(self.settings), self.seed, samples.layout, limits, mapped, dtype)
        digest = hashlib.sha256(repr((*known, version("pyro-stad"))).encode())
        for part in (samples.values, samples.weights, samples.chains):
            digest.update(b"none" if part is None else part.contiguous().numpy().tobytes())
        self.identity = digest.hexdigest()

    def record(self, name: str, history: History) -> None:
        self.stages.append(Stage.of(name, history))

    def options(self, name: str, like: Tensor) -> dict[str, Any]:
        """Return what every training run of this fit is told."""
        return {
            "generator": self.generator(name, like),
            "progress": self.progress,
            "label": name,
            "resume": self.folder and self.folder / f"{name}.safetensors",
            "purpose": {"stage": name, "fit": self.identity},
        }

    def teacher(self, path: str | AbstractPath, kept: Batches, held: Batches) -> AbstractTrunkField:
        """Return the trained field."""
        like, settings = kept.values, self.settings
        parts: dict[str, Any] = {
            "features": like.shape[1],
            "width": settings.width,
            "depth": settings.depth,
            "generator": self.first_weights("teacher"),
            # Rows as often as their weight says: a nested sampler's first ones are far out.
            "gate": Gate.around(kept.subset(_GATE_ROWS, self.generator("gate", like))),
        }
        if path == "cnf":
            free = FreeFormField(**parts).to(like)
            options = self.options("teacher", like)
            self.record("teacher", train_free_form(free, kept, held, settings.teacher, **options))
            return free
        chosen = build(path, PATHS, "path") if isinstance(path, str) else path
        field = PathField(chosen, **parts).to(like)
        options = self.options("teacher", like)
        history = match(field, kept, held, settings.teacher, **options)
        self.record("teacher", history)
        return field

    def divergence(
        self, field: AbstractTrunkField, kept: Batches, held: Batches
    ) -> tuple[FlowODE, AbstractCloud]:
        """Return the likelihood with the distilled divergence, and the held-out cloud."""
        like, settings = kept.values, self.settings
        head = TrunkHead.for_field(field, self.first_weights("head")).to(like)
        clouds = [
            cloud_for(field, batches, self.generator(f"{part} trajectories", like))
            for part, batches in (("kept", kept), ("held", held))
        ]
        self.distil("stein", head, field, SteinObjective(), clouds, settings.stein)
        if settings.polish is not None:
            exact = like.shape[1] <= settings.polish_features
            labels = ExactLabels() if exact else HutchinsonLabels(self.generator("probes", like))
            polish = settings.polish
            if not isinstance(field, PathField):
                # The rate that serves a field on a path makes a free-form field's head worse.
                polish = replace(polish, learning_rate=0.5 * polish.learning_rate)
            # Where the time grid has a larger error than the labels show, there is nothing to gain.
            if polish.target is None:
                span = field.t_max - field.t_min
                target = (0.5 * settings.grid_tolerance / span) ** 2 / field.features
                polish = replace(polish, target=target)
            self.distil("polish", head, field, labels, clouds, polish)
        return FlowODE(field, Stein(head), RK4()), clouds[1]

    def consistency(
        self, flow: FlowODE, kept: Batches, held: Batches
    ) -> Callable[[], SteinPath] | None:
        """Return what trains the constant curve, for the calibration to call if need be."""
        settings = self.settings.consistency
        if settings is None:
            return None
        if settings.target is None:
            # The labels are the distilled flow's, which has an error of its own.
            settings = replace(settings, target=(_SHARE * self.settings.tolerance) ** 2)

        def train() -> SteinPath:
            options = self.options("consistency", kept.values)
            path, history = make_consistent(flow, kept, held, settings, **options)
            self.record("consistency", history)
            return path

        return train

    def distil(
        self,
        name: str,
        head: TrunkHead,
        field: AbstractTrunkField,
        objective: AbstractObjective,
        clouds: list[AbstractCloud],
        settings: TrainingSettings,
    ) -> None:
        options = self.options(name, clouds[0].like)
        kept, held = clouds
        self.record(name, distil(head, field, objective, kept, held, settings, **options))

    def first_weights(self, name: str) -> torch.Generator:
        """Return the source of a network's first weights: the global one is for all threads."""
        return generator(self.seed, f"{name} weights")
