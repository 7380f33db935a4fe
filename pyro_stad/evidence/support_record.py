"""How the evidence of a flow and that of its samples compare: the record of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

__all__ = ["Support"]

_ERRORS, _MOST, _SURPRISE = 3.0, 0.5, 2.0


@dataclass(frozen=True)
class Support:
    """What a posterior owes to the samples of its learned priors.

    Attributes:
        rows: number of samples M that were reweighted.
        ess: effective number of them under the likelihood.
        power: of the likelihood, at which samples and draws of the flow were compared.
        log_ratio, error: how much more of the tempered posterior's mass the samples have than the
            flow, in nats, with its standard error.
        expected: the error of learning, in nats, that the members of the fits expect of log Z; of
            priors without members, what a flow is off by at other places.
        log_z, log_z_err: log-evidence by the samples alone; its error is infinite unless the power
            is one.
    """

    rows: int
    ess: float
    power: float
    log_ratio: float
    error: float
    expected: float
    log_z: float
    log_z_err: float

    def against(self, log_z: float, log_z_err: float) -> Support:
        """Return the comparison with a better answer of the flow's, where there is a whole one."""
        if self.power < 1.0:
            return self
        error = math.hypot(self.log_z_err, log_z_err)
        return replace(self, log_ratio=self.log_z - log_z, error=error)

    @property
    def learning_error(self) -> float:
        """The error of log Z by learning, as far as the samples can tell it, in nats."""
        expected, error, found = self.expected**2, self.error**2, self.log_ratio**2
        expected += max(found - _SURPRISE**2 * (expected + error), 0.0)
        if expected == 0:
            return 0.0
        # One where nothing is known of other places, and the expected error is infinite.
        share = 1 / (1 + error / expected)
        return math.hypot(share * self.log_ratio, math.sqrt(share * error))

    @property
    def trouble(self) -> str | None:
        """Where samples and flow disagree, in a sentence; None if they agree."""
        if abs(self.log_ratio) <= max(_ERRORS * self.error, _MOST):
            return None
        amount = math.exp(min(abs(self.log_ratio), 700.0))
        return (
            f"around the posterior a learned prior has {amount:.3g} times "
            f"{'more' if self.log_ratio < 0 else 'less'} mass than its samples: log ratio "
            f"{self.log_ratio:+.2f} +- {self.error:.2f}, of {self.rows} samples reweighted by the "
            f"likelihood to the power {self.power:.2g}"
        )

    def attributes(self) -> dict[str, float]:
        """Return it as numbers, as attributes of a file can be."""
        return {f"support_{name}": value for name, value in asdict(self).items()}

    def text(self) -> str:
        """Return it as a line of text."""
        whole = (
            f"log Z = {self.log_z:.3f} +- {self.log_z_err:.3f}"
            if self.power == 1.0
            else f"log ratio {self.log_ratio:+.2f} +- {self.error:.2f} at power {self.power:.2g}"
        )
        return f"{self.rows} samples, reweighted: {self.ess:.0f} effective; {whole}"
