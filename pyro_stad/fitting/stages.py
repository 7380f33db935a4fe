"""The training runs of one fit: their settings, seeds, files and reports."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.calibrate import Calibration, calibrate, choose_grid, choose_steps
from pyro_stad.data import Batches, Bounds, Margins, Samples
from pyro_stad.data.reference import Reference
from pyro_stad.density.typical import spread_factor
from pyro_stad.divergence import Stein, TrunkHead
from pyro_stad.errors import TrainingError, TrainingWarning
from pyro_stad.fields import (
    AbstractAngularField,
    AbstractField,
    AbstractTrunkField,
    ConditionalPathField,
    FreeFormField,
    Gate,
    PathField,
)
from pyro_stad.fitting.settings import FitSettings
from pyro_stad.learn import History, TrainingSettings, distil_density
from pyro_stad.learn.clouds import AbstractCloud, cloud_for
from pyro_stad.learn.distil import distil
from pyro_stad.learn.matching import match
from pyro_stad.learn.maximum_likelihood import train_free_form
from pyro_stad.learn.members import Member, Resampler, labelled
from pyro_stad.learn.objectives import AbstractObjective, HutchinsonLabels, SteinObjective
from pyro_stad.learn.spread import Labels, Spread, distil_spread
from pyro_stad.likelihood import AbstractLikelihood, Correction, DistilledDensity, FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import build, describe
from pyro_stad.report.fit import MEMBER, Stage
from pyro_stad.transport import AbstractTransport, Flow

__all__ = ["FitStages"]

# Enough to know the radius of the outermost thousandth.
_GATE_ROWS = 100_000
_STEPS = (1, 2, 4, 8, 16, 32, 64)
# Of the tolerance, what the distilled density is trained to.
_SHARE = 0.7
_FEWEST_LABELS = 100


class FitStages:
    """The training runs of one fit: their settings, seeds, files and reports."""

    def __init__(
        self,
        settings: FitSettings,
        seed: int,
        folder: Path | None,
        *,
        progress: bool,
        context: int = 0,
    ) -> None:
        self.settings, self.seed, self.progress, self.folder = settings, seed, progress, folder
        # Columns of a context, to the right of those of a point.
        self.context = context
        self.done: list[Stage] = []
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
        name = path if isinstance(path, str) else describe(path, "path")
        mapped = margins and margins.columns
        known = (name, asdict(self.settings), self.seed, samples.layout, limits, mapped, dtype)
        digest = hashlib.sha256(repr((*known, version("pyro-stad"))).encode())
        for part in (samples.values, samples.weights, samples.chains):
            digest.update(b"none" if part is None else part.contiguous().numpy().tobytes())
        self.identity = digest.hexdigest()

    def record(self, name: str, history: History) -> None:
        self.done.append(Stage.of(name, history))

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
        size = self.features_of(like)
        # Rows as often as their weight says: a nested sampler's first ones are far out.
        around = kept.subset(_GATE_ROWS, self.generator("gate", like))[:, :size]
        parts: dict[str, Any] = {
            "features": size,
            "width": settings.width,
            "depth": settings.depth,
            "generator": self.first_weights("teacher"),
            "gate": Gate.around(around),
        }
        field: AbstractTrunkField
        if path == "cnf":
            field = FreeFormField(**parts)
        else:
            chosen = build(path, "path") if isinstance(path, str) else path
            if self.context:
                field = ConditionalPathField(chosen, context=self.context, **parts)
            else:
                field = PathField(chosen, **parts)
        field = field.to(like)
        self.train("teacher", field, kept, held, settings.teacher)
        return field

    def features_of(self, like: Tensor) -> int:
        """Return the dimension D of the points in rows ``(N, D + C)``."""
        return like.shape[1] - self.context

    def train(
        self,
        name: str,
        field: AbstractField,
        kept: Batches,
        held: Batches,
        settings: TrainingSettings,
    ) -> None:
        """Train a field in place."""
        options = self.options(name, kept.values)
        if field.has_score:
            history = match(cast(AbstractAngularField, field), kept, held, settings, **options)
        else:
            history = train_free_form(cast(FreeFormField, field), kept, held, settings, **options)
        self.record(name, history)

    def spread(
        self,
        likelihood: AbstractLikelihood,
        transport: AbstractTransport,
        sample: Resampler,
        kept: Batches,
        reference: Reference,
        members: int,
    ) -> Spread | None:
        """Return the spread of ``members`` of the flow, and None for none.

        None, and a warning, if their training failed.
        """
        if not members:
            return None
        made: list[Member] = []
        for index in range(members):
            name = f"{MEMBER}{index + 1}"
            train = partial(self.train, name, settings=self.settings.member)
            try:
                # Samples are on the CPU, and so is what draws from them.
                made.append(
                    sample.member(likelihood.field, train, generator(self.seed, f"{name} rows"))
                )
            except TrainingError as error:
                # The density is there: it is not lost for want of an error.
                warnings.warn(f"{error}. It is left out", TrainingWarning, stacklevel=5)
        labels = labelled(
            likelihood, made, sample, kept, self.generator("spread points", kept.values)
        )
        if len(made) < 2 or len(labels.points) < _FEWEST_LABELS:
            warnings.warn(
                f"{len(made)} of {members} members, known at {len(labels.points)} points, tell no "
                "error of learning: it is left unknown", TrainingWarning, stacklevel=5,
            )  # fmt: skip
            return None
        spread = self._distilled(labels)
        spread.factor.fill_(spread_factor(transport, reference, spread))
        return spread

    def _distilled(self, labels: Labels) -> Spread:
        """Return the network of what members say."""
        settings, options = self.settings, self.options("spread", labels.points)
        # Its size is that of the members: another number of them has another file.
        if options["resume"] is not None:
            options["resume"] = options["resume"].with_stem(f"spread_{labels.deviations.shape[1]}")
        first = self.first_weights("spread")
        spread, history = distil_spread(
            labels, settings.spread_width, settings.spread, first, **options
        )
        self.record("spread", history)
        return spread

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
            labels = HutchinsonLabels(settings.polish_products)
            polish = settings.polish
            if not field.has_score:
                # The rate that serves a field on a path makes a free-form field's head worse.
                polish = replace(polish, learning_rate=0.5 * polish.learning_rate)
            # Where the time grid has a larger error than the labels show, there is nothing to gain.
            if polish.target is None:
                span = field.t_max - field.t_min
                target = (0.5 * settings.grid_tolerance / span) ** 2 / field.features
                polish = replace(polish, target=target)
            self.distil("polish", head, field, labels, clouds, polish)
        # Trained no more: what is frozen is evaluated by hand.
        flow = FlowODE(field, Stein(head), RK4()).requires_grad_(False)
        return flow, clouds[1]

    def calibrated(
        self, flow: FlowODE, cloud: AbstractCloud, kept: Batches, held: Batches
    ) -> tuple[AbstractLikelihood, Flow, Calibration]:
        """Return the way to the density and the grid for draws that serve, and how well."""
        settings, like = self.settings, held.values
        source, size = self.generator("calibration", like), self.features_of(like)
        points = held.subset(settings.audit_in(size), source)
        solver = choose_steps(flow, points, settings.grid_tolerance, _STEPS)
        likelihood, calibration = calibrate(
            flow.replace(solver=solver), points, cloud, settings.tolerance_in(size), source,
            others=held.subset(len(held), source), reference=settings.reference,
            train=self.density(flow.replace(solver=solver), kept, held),
        )  # fmt: skip
        source = self.generator("grid for draws", like)
        transport, draws = choose_grid(likelihood.transport(), points, source)
        return likelihood, transport, replace(calibration, draws=draws)

    def density(
        self, flow: FlowODE, kept: Batches, held: Batches
    ) -> Callable[[], DistilledDensity] | None:
        """Return what distils the density, for the calibration to call if need be."""
        settings = self.settings.density
        if settings is None:
            return None
        if settings.target is None:
            # The labels are the distilled flow's, which has an error of its own.
            tolerance = self.settings.tolerance_in(self.features_of(kept.values))
            settings = replace(settings, target=(_SHARE * tolerance) ** 2)

        def train() -> DistilledDensity:
            sizes = self.settings.density_width, self.settings.density_depth
            like, count = kept.values, self.settings.density_labels
            first, size = self.first_weights("density"), self.features_of(like)
            correction = Correction(size, *sizes, first, context=self.context)
            options = self.options("density", like)
            way, history = distil_density(
                flow, kept, held, settings, correction.to(like), count, **options
            )
            self.record("density", history)
            return way

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
