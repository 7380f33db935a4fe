"""What an estimate of the evidence says, and how sure it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_stad.evidence.support_record import Support

__all__ = ["EvidenceResult"]


@dataclass(frozen=True)
class EvidenceResult:
    """An estimate of the evidence.

    Attributes:
        log_z, log_z_err: its logarithm, and the standard error of that, in nats: of the estimator,
            and of the learning of its priors as far as their samples can tell it (``support``).
        method: the estimator.
        repeats: log Z of every run.
        likelihood_calls: points at which the likelihood was evaluated.
        network_calls: network evaluations that those took, point by point; None if not counted.
        formula_err: the standard error by the formula of a single run, beside that of their
            spread, or None for an estimator without any.
        ess: effective sample size of what the estimate is made of.
        khat: Pareto shape of importance weights, or None for an estimator without any.
        data: fingerprint of all that the model observed.
        extrapolated: share of the posterior draws at which a flow prior has hardly seen a sample:
            beyond its ``alarm_level`` in radius, or in density.
        tolerated: share of them that may be there: ten times the alarm level, and more where
            there are only a few draws.
        unresolved: share of the posterior draws that are farther out than the ``icdf`` of their
            prior resolves.
        support: what the posterior owes to the samples of its learned priors, or None where none
            were kept.
        correction: ``(value, error)`` of what took a distilled density to the exact trace, or
            generators of one step to the flow, in nats, which is in ``log_z``; None where nothing
            distilled was used.
        checks: ``(log_z, log_z_err)`` by the other methods that were tried, by name.
        warnings: what may be wrong.
        draws: posterior draws by site, each ``(N, ...)``, of equal weight.
        log_likelihood: log-likelihoods of the observed sites at the draws, each ``(N, ...)``.
        learning: log-weights of the draws for the error of learning, ``(N, K)``: see
            ``FlowPrior.learning_log_weights``. None if a learned prior does not know its own, or
            none was found.
    """

    log_z: float
    log_z_err: float
    method: str
    repeats: tuple[float, ...]
    likelihood_calls: int
    network_calls: int | None = 0
    formula_err: float | None = None
    ess: float = math.nan
    khat: float | None = None
    data: str = ""
    extrapolated: float = 0.0
    tolerated: float = 0.01
    unresolved: float = 0.0
    support: Support | None = None
    correction: tuple[float, float] | None = None
    checks: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    draws: dict[str, Tensor] = field(default_factory=dict, repr=False)
    log_likelihood: dict[str, Tensor] = field(default_factory=dict, repr=False)
    learning: Tensor | None = field(default=None, repr=False)

    def estimates(self) -> dict[str, tuple[float, float]]:
        """Return ``(log_z, log_z_err)`` by all methods that were tried, by name.

        Without the error of learning, which all of them share.
        """
        learned = 0.0 if self.support is None else self.support.learning_error
        own = math.sqrt(max(self.log_z_err**2 - learned**2, 0.0))
        return {self.method: (self.log_z, own), **self.checks}

    def summary(self) -> str:
        """Return the estimate as a few lines of text."""
        runs = ", ".join(f"{value:.3f}" for value in self.repeats)
        formula = (
            "" if self.formula_err is None else f"; of one run, by formula: {self.formula_err:.3f}"
        )
        networks = "no count of" if self.network_calls is None else f"{self.network_calls:,}"
        shape = "" if self.khat is None else f", Pareto k-hat {self.khat:.2f}"
        lines = [
            f"log Z = {self.log_z:.3f} +- {self.log_z_err:.3f} ({self.method})",
            f"  {len(self.repeats)} runs: {runs}{formula}",
            f"  {self.likelihood_calls:,} likelihoods, {networks} network calls, "
            f"effective sample size {self.ess:.0f}{shape}",
        ]
        if self.correction is not None:
            value, error = self.correction
            lines.append(
                f"  by the exact law in place of a distilled one: {value:+.3f} +- {error:.3f}"
            )
        if self.support is not None and self.support.learning_error:
            lines.append(f"  error of learning: {self.support.learning_error:.3f}, in the above")
        lines += [f"  by {name}: {z:.3f} +- {err:.3f}" for name, (z, err) in self.checks.items()]
        if self.support is not None:
            lines.append(f"  {self.support.text()}")
        if self.extrapolated:
            lines.append(f"  {self.extrapolated:.1%} of the posterior where a flow extrapolates")
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])

    def attributes(self) -> dict[str, Any]:
        """Return all but draws as numbers and texts, as attributes of a file can be."""
        numbers = ("log_z", "log_z_err", "ess", "extrapolated", "tolerated", "unresolved")
        known: dict[str, Any] = {name: getattr(self, name) for name in numbers}
        known["likelihood_calls"] = self.likelihood_calls
        for name in ("network_calls", "formula_err", "khat"):
            if getattr(self, name) is not None:
                known[name] = getattr(self, name)
        if self.correction is not None:
            known["correction"], known["correction_err"] = self.correction
        for name, (log_z, error) in self.checks.items():
            known |= {f"log_z_{name}": log_z, f"log_z_err_{name}": error}
        if self.support is not None:
            known |= self.support.attributes()
        texts = {"evidence_method": self.method, "evidence_data": self.data}
        repeats = {"log_z_repeats": list(self.repeats)}
        return {**known, **texts, **repeats, "evidence_warnings": "; ".join(self.warnings)}
