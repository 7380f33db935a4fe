"""What a calibration found: the ways that were tried, the bound, the audit; kept in the file.

How they come about is in :mod:`pyro_stad.calibrate.choose`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_positive
from pyro_stad._config import decode, encode
from pyro_stad.calibrate.audit import Audit
from pyro_stad.calibrate.draws import GridTrial

__all__ = ["REFERENCES", "Calibration", "ErrorBound", "Trial", "default_tolerance"]

REFERENCES = ("data", "exact")
_OFF, _ERRORS = 0.02, 3.0
_NOISY = 1.0  # nats
# What a way is refused for: a bump in nats, and a collapse in nats a sample.
HIGHEST, _DEEPEST = 3.0, 0.02
_TOLERANCE, _UP_TO = 0.1, 8
_REMEDY = (
    "Fit with a larger budget or more samples, allow a larger tolerance, or take the exact trace "
    "by prior.with_likelihood"
)
_NOT_FINITE = (
    "the calibration is not finite: at some of the held-out samples, or of the flow's own draws, "
    "log_prob or the exact trace is NaN, infinite or absurdly large. Do not rely on log_prob; fit "
    "with a larger budget, to more samples, or in fewer dimensions"
)


def default_tolerance(features: int) -> float:
    """Return what a density may be off the exact trace in ``features`` dimensions, in nats.

    A tenth up to eight dimensions, and as much for every eight from there on. What flows of 10,000
    samples are themselves off the truth grows alike: a mixture's by 0.5, 1.3 and 1.8 in 8, 16 and
    32 dimensions.
    """
    return _TOLERANCE * max(1.0, features / _UP_TO)


@dataclass(frozen=True)
class Trial:
    """One way to the density that was tried, and its error on held-out data, in nats.

    Attributes:
        likelihood: its repr.
        sequential_calls: network calls one after the other; None if they vary.
        bias, sd: mean and standard deviation of its error against the exact trace.
        score, score_error: its mean log-density, mass divided out, less that of the exact trace,
            with its standard error. Above zero, it describes the data better than the flow.
        bump, collapse: where it is refused however accurate it is at the data, both in nats, see
            :mod:`pyro_stad.calibrate.exact_points`; None where nobody looked, in old files NaN.
    """

    likelihood: str
    sequential_calls: int | None
    bias: float
    sd: float
    score: float
    score_error: float
    bump: float | None = None
    collapse: float | None = None

    def __post_init__(self) -> None:
        if self.sequential_calls is not None:
            check_count(self.sequential_calls, "sequential_calls")

    @property
    def is_refused(self) -> bool:
        """Whether it has a bump or a collapse."""
        return (self.bump or 0.0) > HIGHEST or (self.collapse or 0.0) > _DEEPEST

    @property
    def refusal(self) -> str:
        """Why it is refused, as the end of a line; empty if it is not."""
        found = [f"a bump of {self.bump:.3g} nat"] if (self.bump or 0.0) > HIGHEST else []
        if (self.collapse or 0.0) > _DEEPEST:
            found.append(f"a collapse that costs {self.collapse:.2g} nat a sample")
        return f"; refused for {' and '.join(found)}" if found else ""

    def serves(self, tolerance: float, reference: str) -> bool:
        """Whether it is accurate enough; see :mod:`pyro_stad.calibrate.choose`."""
        if self.is_refused:
            return False
        # What an error of the tolerance costs, and as much again if that is within the error.
        cost = 0.5 * tolerance**2
        if reference == "data" and self.score >= -cost - min(self.score_error, cost):
            return True
        return self.sd <= tolerance


@dataclass(frozen=True)
class ErrorBound:
    """A bound on the error of the log-density at a point, in nats: ``scale * (d + floor)``.

    Attributes:
        level: the share of held-out data for which it holds.
        scale, floor: c and the median of d; see :mod:`pyro_stad.calibrate.choose`.
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
        draws: how true draws are on the grid that was chosen for them; None in files of before it
            was chosen, and where the solver is no fixed grid.
    """

    tolerance: float
    reference: str
    trials: tuple[Trial, ...]
    bound: ErrorBound
    audit: Audit
    draws: GridTrial | None = None

    def __post_init__(self) -> None:
        check_positive(self.tolerance, "tolerance", " of nats")
        check_choice(self.reference, "reference", REFERENCES)

    @property
    def troubles(self) -> tuple[str, ...]:
        r"""What a user has to know before relying on the density, a sentence or two for each.

        - An error that is not finite; then nothing else is said.
        - The tolerance, if no way served. With ``reference="data"``, one that describes the data as
          well as the exact trace does has met it, whatever its sd.
        - A normaliser that is off by more than two percent and three of its errors (it has been
          divided out by other draws, as many: that is 2.1 errors of the difference), or of which
          the error is itself beyond the tolerance (or those two percent, if they are more).
        - A bump. A point that is h nats too high, of n that were looked at, stands for
          :math:`e^h / n` of the mass: h is too much if that is more than the same. A hole of
          any depth at one of n points loses but 1 / n.
        """
        audit, tolerance = self.audit, self.tolerance
        slack = max(_OFF, tolerance)
        if not audit.is_finite:
            return (_NOT_FINITE,)
        found = []
        if not any(trial.serves(tolerance, self.reference) for trial in self.trials):
            found.append(
                f"the tolerance of {tolerance:g} nat is not met: log_prob has sd {audit.sd:.2g} "
                f"nat against the exact trace of the flow{self._refusals()}. {_REMEDY}"
            )
        off = max(_OFF, _ERRORS * audit.normaliser_error)
        if abs(audit.normaliser - 1) > off or audit.normaliser_error > slack:
            found.append(
                f"the density may not be normalised: its mass is {audit.mass()}, measured on the "
                f"flow's own draws. {_REMEDY}"
            )
        if audit.noise > _NOISY:
            found.append(
                f"the trace that log_prob was held against has noise of {audit.noise:.2g} nat "
                "itself: errors less than that, and the mass, are not known. Calibrate by more "
                "products: prior.calibrate(samples, products=...)"
            )
        # Where nobody looked no bump is known; in files of before it was kept it is NaN.
        if audit.looked_at and audit.highest > math.log(slack * audit.looked_at):
            found.append(
                f"log_prob has a bump: at one of {audit.looked_at} points that were looked at it "
                f"is {audit.highest:.3g} nat above the exact trace. {_REMEDY}"
            )
        return tuple(found)

    def _refusals(self) -> str:
        refused = [trial.refusal for trial in self.trials if trial.is_refused]
        if not refused or any(not (t.is_refused or math.isnan(t.sd)) for t in self.trials):
            return ""
        return f", and every way was refused, the last{refused[-1][len('; refused') :]}"

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
                f"score {trial.score:+.2g} +- {trial.score_error:.1g}{trial.refusal}"
            )
        lines.append(self.audit.text())
        if self.draws is not None:
            lines.append(self.draws.text())
        lines += [f"  WARNING: {trouble}" for trouble in self.troubles]
        return "\n".join(lines)
