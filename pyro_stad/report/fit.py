"""How a prior was trained; how accurate it is, its calibration knows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pyro_stad._checks import check_count
from pyro_stad._config import decode, encode
from pyro_stad.learn import History
from pyro_stad.report.goodness import Goodness

__all__ = ["FitReport", "Stage"]

MEMBER = "member_"  # and its number: the name of the stage that trained it


@dataclass(frozen=True)
class Stage:
    """One training run of a fit."""

    name: str
    steps: int
    validation_loss: float
    skipped: int
    stopped_early: bool
    seconds: float

    def __post_init__(self) -> None:
        for name in ("steps", "skipped"):
            check_count(getattr(self, name), name, least=0)

    @staticmethod
    def of(name: str, history: History) -> Stage:
        """Summarise ``history``."""
        return Stage(
            name=name,
            steps=history.steps[-1] if history.steps else 0,
            validation_loss=history.best,
            skipped=history.skipped,
            stopped_early=history.stopped_early,
            seconds=round(history.seconds, 3),
        )


@dataclass(frozen=True)
class FitReport:
    """How a prior was fitted.

    Attributes:
        seed: seed of the fit.
        rows: number of samples.
        stages: the training runs, in order.
        versions: versions of the packages that made it.
        distinct: number of distinct samples, or None if it was not counted.
        effective: independent samples of equal weight that they are worth, or None.
        moved: distinct samples that lay on a bound, and were moved inside.
        goodness: how well the prior described the samples that were held out, or None in files of
            before it was measured.
    """

    seed: int
    rows: int
    stages: tuple[Stage, ...]
    versions: dict[str, str] = field(default_factory=dict)
    distinct: int | None = None
    effective: float | None = None
    moved: int = 0
    goodness: Goodness | None = None

    def __post_init__(self) -> None:
        check_count(self.rows, "rows")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return encode(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> FitReport:
        """Return the report that ``to_dict`` described."""
        return decode(FitReport, stored, "report")

    def _shown(self) -> list[Stage]:
        """Return the stages, with one for all members."""
        members = [stage for stage in self.stages if stage.name.startswith(MEMBER)]
        shown = [stage for stage in self.stages if stage not in members[1:]]
        if not members:
            return shown
        together = replace(
            members[0],
            name=f"{len(members)} members, each",
            seconds=sum(stage.seconds for stage in members) / len(members),
        )
        return [together if stage is members[0] else stage for stage in shown]

    def text(self) -> str:
        """Return the report as a few lines of text."""
        repeats = "" if self.distinct in (None, self.rows) else f" ({self.distinct} distinct)"
        lines = [f"  fitted to {self.rows} samples{repeats}, seed {self.seed}"]
        if self.effective is not None:
            lines.append(
                f"  effective sample size: {self.effective:.0f} (repeats, weights and "
                "autocorrelation taken off)"
            )
        if self.moved:
            lines.append(f"  {self.moved} samples on a bound were moved inside")
        for stage in self._shown():
            early = ", stopped early" if stage.stopped_early else ""
            lines.append(
                f"  {stage.name}: {stage.steps} steps in {stage.seconds:.0f} s, "
                f"validation loss {stage.validation_loss:.4g}{early}"
            )
        if self.goodness is not None:
            lines.append(self.goodness.text())
            lines += [f"  WARNING: {trouble}" for trouble in self.goodness.troubles]
        return "\n".join(lines)
