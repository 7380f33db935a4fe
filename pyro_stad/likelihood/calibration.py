"""What a calibration found: the ways that were tried, the bound, the audit; kept in the file.

How they come about is in :mod:`pyro_stad.likelihood.calibrate`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from pyro_stad.likelihood.audit import Audit

__all__ = ["Calibration", "ErrorBound", "Trial"]


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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> Calibration:
        """Return the calibration that ``to_dict`` described."""
        return Calibration(
            tolerance=stored["tolerance"],
            reference=stored["reference"],
            trials=tuple(Trial(**trial) for trial in stored["trials"]),
            bound=ErrorBound(**stored["bound"]),
            audit=Audit.from_dict(stored["audit"]),
        )

    def text(self) -> str:
        """Return the calibration as a few lines of text."""
        lines = [f"  ways to the density, for a tolerance of {self.tolerance:g} nat:"]
        for trial in self.trials:
            calls = "adaptive" if trial.sequential_calls is None else trial.sequential_calls
            lines.append(
                f"    {trial.likelihood}: {calls} sequential calls, sd {trial.sd:.2g} nat, "
                f"score {trial.score:+.2g} +- {trial.score_error:.1g}"
            )
        return "\n".join([*lines, self.audit.text()])
