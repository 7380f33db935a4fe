"""What a calibration found: the ways that were tried, the bound, the audit; kept in the file.

How they come about is in :mod:`pyro_stad.likelihood.calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_positive
from pyro_stad._config import decode, encode
from pyro_stad.likelihood.audit import Audit

__all__ = ["REFERENCES", "Calibration", "ErrorBound", "Trial"]

REFERENCES = ("data", "exact")


@dataclass(frozen=True)
class Trial:
    """One way to the density that was tried, and its error on held-out data, in nats.

    Attributes:
        likelihood: its repr.
        sequential_calls: network calls one after the other; None if they vary.
        bias, sd: mean and standard deviation of its error against the exact trace.
        score, score_error: its mean log-density, mass divided out, less that of the exact trace,
            with its standard error. Above zero, it describes the data better than the flow.
    """

    likelihood: str
    sequential_calls: int | None
    bias: float
    sd: float
    score: float
    score_error: float

    def __post_init__(self) -> None:
        if self.sequential_calls is not None:
            check_count(self.sequential_calls, "sequential_calls")


@dataclass(frozen=True)
class ErrorBound:
    """A bound on the error of the log-density at a point, in nats: ``scale * (d + floor)``.

    Attributes:
        level: the share of held-out data for which it holds.
        scale, floor: c and the median of d; see :mod:`pyro_stad.likelihood.calibrate`.
    """

    level: float
    scale: float
    floor: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"`level` must lie in (0, 1); got {self.level!r}")

    def at(self, difference: Tensor) -> Tensor:
        """Return the bound where two ways to the density are ``difference`` apart."""
        return self.scale * (difference + self.floor)


@dataclass(frozen=True)
class Calibration:
    """How a likelihood was chosen, and how accurate it is.

    Attributes:
        tolerance: what was asked for, in nats.
        reference: what the density had to be accurate against, ``"data"`` or ``"exact"``.
        trials: the ways that were tried, from the cheapest on.
        bound: on the error at a point.
        audit: accuracy of the one that was chosen.
    """

    tolerance: float
    reference: str
    trials: tuple[Trial, ...]
    bound: ErrorBound
    audit: Audit

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance", " of nats")
        check_choice(self.reference, "reference", REFERENCES)

    @property
    def trouble(self) -> str | None:
        """What is so wrong that the density can't be relied on, in a sentence; or None."""
        if self.audit.is_finite:
            return None
        return (
            "the calibration is not finite: at some of the held-out samples, or of the flow's own "
            "draws, log_prob or the exact trace is NaN, infinite or absurdly large. Do not rely on "
            "log_prob; fit with a larger budget, to more samples, or in fewer dimensions"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return encode(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> Calibration:
        """Return the calibration that ``to_dict`` described."""
        return decode(Calibration, stored, "calibration")

    def text(self) -> str:
        """Return the calibration as a few lines of text."""
        lines = [f"  ways to the density, for a tolerance of {self.tolerance:g} nat:"]
        for trial in self.trials:
            calls = "adaptive" if trial.sequential_calls is None else trial.sequential_calls
            lines.append(
                f"    {trial.likelihood}: {calls} sequential calls, sd {trial.sd:.2g} nat, "
                f"score {trial.score:+.2g} +- {trial.score_error:.1g}"
            )
        lines.append(self.audit.text())
        if self.trouble is not None:
            lines.append(f"  WARNING: {self.trouble}")
        return "\n".join(lines)
