"""Budgets: how much network and how much training a fit gets."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from pyro_stad._checks import check_choice, check_count, check_positive
from pyro_stad._rows import COLUMNS
from pyro_stad.calibrate import REFERENCES, default_tolerance
from pyro_stad.learn import TrainingSettings

__all__ = ["BUDGETS", "FitSettings", "resume_folder", "settings_of"]

_SAME_PRICE, _FEWEST_TRACES = 16, 200
_DENSITY = TrainingSettings(
    2500, learning_rate=1.2e-2, clip_norm=100.0, ema_decay=0.995, optimiser="soap"
)


@dataclass(frozen=True)
class FitSettings:
    """Everything that a fit can be told about networks and training.

    Arguments:
        width, depth: units and number of the teacher's hidden layers.
        teacher: training of the field.
        stein: training of the divergence by the Stein objective.
        polish: further training of the divergence on its values, or None for none.
        polish_products: products with the Jacobian for each value, at the most: up to as many
            dimensions they are exact, beyond they are estimated by orthogonal probes.
        grid_tolerance: largest error of the time grid, in nats (root mean square).
        density: training of the distilled density, which takes one row a point. Without a target
            of its own it ends where it is within 0.7 of the tolerance of its labels. None for none.
        density_width, density_depth: units and number of its hidden layers.
        density_labels: number of points at which it is shown the flow's density.
        member: further training of the field on a resample, by which its error is known.
        spread: training of the network that knows how far members are from the flow.
        spread_width: units of its hidden layers.
        location: training of the whitening that depends on a context, of a conditional flow.
        location_width: units of its hidden layers.
        image_width, image_levels: channels at full resolution, and resolutions, of the network of
            images.
        image_teacher, image_stein: training of the field and of the divergence of images.
        image_polish: further training of that divergence on its values, by ``image_products``
            products each, or None for none.
        image_products: products with the Jacobian for each value. A few at many points teach more
            than many at a few.
        image_audit: held-out images, and as many draws for a mass and for a look at it, on which
            the density of images is calibrated.
        image_audit_products: products for each call of the network there, twice over: so many
            probes share the pixels out. As many as there are pixels, or more, are an exact trace.
        tolerance: largest error of the density against the exact trace, in nats (standard
            deviation); the cheapest way to the density that meets it is taken. None for a tenth of
            a nat up to eight dimensions, and as much for every eight beyond.
        reference: with ``"data"``, a density that describes held-out samples as well as the exact
            trace does is taken too; with ``"exact"``, it is not.
        validation_fraction: share of the samples held out for early stopping and the audit.
        audit_points: number of held-out samples that get an exact trace, at the most; above sixteen
            dimensions, where one costs more and more, so many fewer, but two hundred. The density
            itself is looked at on thousands, and the most suspect get one too.
    """

    width: int = 128
    depth: int = 3
    teacher: TrainingSettings = TrainingSettings(2500, learning_rate=5e-3)
    stein: TrainingSettings = TrainingSettings(500, clip_norm=100.0, patience=0)
    polish: TrainingSettings | None = TrainingSettings(
        500, learning_rate=1e-2, clip_norm=100.0, patience=0
    )
    polish_products: int = 16
    density: TrainingSettings | None = _DENSITY
    density_width: int = 128
    density_depth: int = 4
    density_labels: int = 40_000
    member: TrainingSettings = TrainingSettings(500, learning_rate=5e-3, validate_every=100)
    spread: TrainingSettings = TrainingSettings(1500, batch_size=256, learning_rate=5e-3)
    spread_width: int = 64
    location: TrainingSettings = TrainingSettings(1500, learning_rate=5e-3, validate_every=100)
    location_width: int = 64
    image_width: int = 24
    image_levels: int = 3
    image_teacher: TrainingSettings = TrainingSettings(
        3000, batch_size=64, learning_rate=2e-3, validate_every=500
    )
    image_stein: TrainingSettings = TrainingSettings(
        500, batch_size=64, learning_rate=5e-3, clip_norm=100.0, patience=0, validate_every=250
    )
    image_polish: TrainingSettings | None = TrainingSettings(
        2000, batch_size=64, learning_rate=5e-3, clip_norm=100.0, patience=0, validate_every=500
    )
    image_products: int = 4
    image_audit: int = 32
    image_audit_products: int = 64
    grid_tolerance: float = 0.02
    tolerance: float | None = None
    reference: str = "data"
    validation_fraction: float = 0.1
    audit_points: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must lie in (0, 1); got {self.validation_fraction}"
            )
        check_positive(self.grid_tolerance, "grid_tolerance", " of nats")
        if self.tolerance is not None:
            check_positive(self.tolerance, "tolerance", " of nats")
        check_choice(self.reference, "reference", REFERENCES)
        kinds = ("teacher", "stein", "member", "spread", "location", "image_teacher", "image_stein")
        for name in kinds:
            if not isinstance(getattr(self, name), TrainingSettings):
                raise TypeError(
                    f"`{name}` must be TrainingSettings; got {getattr(self, name)!r}"
                    + (". For no members, say fit(members=0)" if name == "member" else "")
                )
        for name in ("polish", "density", "image_polish"):
            if not isinstance(getattr(self, name), TrainingSettings | None):
                raise TypeError(
                    f"`{name}` must be TrainingSettings or None; got {getattr(self, name)!r}"
                )
        for name in (
            "spread_width",
            "density_width",
            "density_depth",
            "polish_products",
            "location_width",
            "image_width",
            "image_levels",
            "image_products",
            "image_audit_products",
        ):
            check_count(getattr(self, name), name)
        if self.density_width % COLUMNS:
            raise ValueError(
                f"`density_width` must be a multiple of {COLUMNS}; got {self.density_width}"
            )
        check_count(self.density_labels, "density_labels", least=100)
        for name in ("audit_points", "image_audit"):
            check_count(getattr(self, name), name, least=2)

    def audit_in(self, features: int) -> int:
        """Return the number of exact traces in ``features`` dimensions."""
        fewer = self.audit_points * _SAME_PRICE // max(features, _SAME_PRICE)
        return min(self.audit_points, max(fewer, _FEWEST_TRACES))

    def tolerance_in(self, features: int) -> float:
        """Return the tolerance for ``features`` dimensions, in nats."""
        return default_tolerance(features) if self.tolerance is None else self.tolerance


_TINY = TrainingSettings(60, batch_size=64, validate_every=30, warmup=10)
_QUICK = TrainingSettings(500, batch_size=256, learning_rate=3e-3, warmup=50)

BUDGETS: dict[str, FitSettings] = {
    "tiny": FitSettings(
        width=16,
        depth=2,
        teacher=_TINY,
        stein=_TINY,
        polish=_TINY,
        density=replace(_TINY, optimiser="soap"),
        density_width=16,
        density_depth=2,
        density_labels=4000,
        member=replace(_TINY, steps=30),
        spread=_TINY,
        spread_width=16,
        image_width=4,
        image_levels=2,
        image_teacher=replace(_TINY, batch_size=32),
        image_stein=replace(_TINY, batch_size=32),
        image_polish=replace(_TINY, steps=20, batch_size=32),
        audit_points=64,
    ),
    "quick": FitSettings(
        width=64,
        depth=2,
        teacher=_QUICK,
        stein=_QUICK,
        polish=_QUICK,
        density=replace(_DENSITY, steps=1500),
        member=replace(_QUICK, steps=250, learning_rate=1e-3, validate_every=50),
        spread=replace(_QUICK, steps=1000, learning_rate=5e-3),
        image_width=12,
        image_teacher=replace(_QUICK, batch_size=64, learning_rate=2e-3),
        image_stein=replace(
            _QUICK, steps=250, batch_size=64, learning_rate=5e-3, clip_norm=100.0, patience=0
        ),
        image_polish=replace(
            _QUICK, batch_size=64, learning_rate=5e-3, clip_norm=100.0, patience=0
        ),
    ),
    "standard": FitSettings(),
    "thorough": FitSettings(
        width=192,
        teacher=TrainingSettings(20_000, batch_size=1024, learning_rate=5e-3),
        stein=TrainingSettings(8000, batch_size=1024, clip_norm=100.0, patience=0),
        polish=TrainingSettings(4000, learning_rate=1e-2, clip_norm=100.0, patience=0),
        density=replace(_DENSITY, steps=8000),
        density_width=256,
        density_labels=150_000,
        member=TrainingSettings(2000, batch_size=1024, learning_rate=5e-3),
        spread=TrainingSettings(2000, batch_size=256, learning_rate=5e-3),
        image_width=32,
        image_teacher=TrainingSettings(
            20_000, batch_size=64, learning_rate=2e-3, validate_every=1000
        ),
        image_polish=TrainingSettings(
            10_000,
            batch_size=64,
            learning_rate=5e-3,
            clip_norm=100.0,
            patience=0,
            validate_every=1000,
        ),
        audit_points=2000,
    ),
}


def settings_of(budget: str | FitSettings) -> FitSettings:
    """Return the settings of a budget, or those that are given.

    Raises:
        ValueError: for a name that is none.
    """
    if isinstance(budget, FitSettings):
        return budget
    if budget not in BUDGETS:
        raise ValueError(f"`budget` must be one of {list(BUDGETS)} or FitSettings; got {budget!r}")
    return BUDGETS[budget]


def resume_folder(resume: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of a resumable run, made if it was not there; None for none.

    Raises:
        ValueError: if it is a file.
    """
    if resume is None:
        return None
    folder = Path(resume)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`resume` must be a folder, for several files; got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
