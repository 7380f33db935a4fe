"""What an estimate of the evidence says, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["EvidenceResult"]


@dataclass(frozen=True)
class EvidenceResult:
    """An estimate of the evidence.

    Attributes:
        log_z, log_z_err: its logarithm, and the standard error of that, in nats.
        method: the estimator.
        repeats: log Z of every run.
        likelihood_calls: points at which the likelihood was evaluated.
        khat: Pareto shape of importance weights, or None for an estimator without any.
        data: fingerprint of all that the model observed.
        extrapolated: share of the posterior draws at which a flow prior is in its outermost
            thousandth, where it has hardly seen a sample.
        warnings: what may be wrong.
        draws: posterior draws by site, each ``(N, ...)``, of equal weight.
    """

    log_z: float
    log_z_err: float
    method: str
    repeats: tuple[float, ...]
    likelihood_calls: int
    khat: float | None = None
    data: str = ""
    extrapolated: float = 0.0
    warnings: tuple[str, ...] = ()
    draws: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def summary(self) -> str:
        """Return the estimate as a few lines of text."""
        runs = ", ".join(f"{value:.3f}" for value in self.repeats)
        lines = [
            f"log Z = {self.log_z:.3f} +- {self.log_z_err:.3f} ({self.method})",
            f"  {len(self.repeats)} runs: {runs}",
            f"  {self.likelihood_calls:,} likelihoods"
            + ("" if self.khat is None else f", Pareto k-hat {self.khat:.2f}"),
        ]
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])
