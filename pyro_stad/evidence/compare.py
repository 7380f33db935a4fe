r"""Models compared by their evidences.

With evidences :math:`Z_m` of the same data and prior model probabilities :math:`p_m`, the posterior
ones are :math:`p_m Z_m / \sum_k p_k Z_k`, and the Bayes factor of a model against the best one is
:math:`Z_m / Z_{best}`. Errors of log Z are taken as normal and independent: a posterior probability
is quoted with its standard deviation under them. Beside them stands ArviZ's estimate of the
expected log predictive density, by leave-one-out cross-validation on the posterior draws, where the
data come in pieces: it asks how well new data are predicted, and depends far less on the priors.

References:
    Kass and Raftery (1995), Bayes Factors; Vehtari, Gelman and Gabry (2017), Practical Bayesian
    model evaluation using leave-one-out cross-validation and WAIC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_stad._random import generator
from pyro_stad._weights import smoothed
from pyro_stad.evidence.estimate import log_evidence
from pyro_stad.evidence.result import EvidenceResult

__all__ = ["EvidenceComparison", "compare_evidence"]

_DRAWS = 10_000


@dataclass(frozen=True)
class EvidenceComparison:
    """Models by evidence, best first.

    Attributes:
        results: the evidences, by name of the model.
        log_bayes_factors: log of each evidence over the best one.
        log_bayes_factor_errs: their standard errors; zero for the best itself.
        probabilities: posterior probabilities of the models.
        probability_errs: their standard deviations under the errors of log Z.
        elpd_loo: ``(value, standard error)`` of the expected log predictive density by
            leave-one-out, or None where the data are one piece, or no draws are known.
    """

    results: dict[str, EvidenceResult]
    log_bayes_factors: dict[str, float]
    log_bayes_factor_errs: dict[str, float]
    probabilities: dict[str, float]
    probability_errs: dict[str, float]
    elpd_loo: dict[str, tuple[float, float] | None]

    @property
    def best(self) -> str:
        """Name of the model with the largest evidence."""
        return next(iter(self.results))

    def summary(self) -> str:
        """Return the comparison as a table."""
        width = max(len("model"), *map(len, self.results))
        header = ("log Z", "log Bayes factor", "probability", "elpd (LOO)")
        lines = [f"{'model':<{width}}  " + "  ".join(f"{cell:>19}" for cell in header)]
        for name, result in self.results.items():
            loo = self.elpd_loo[name]
            cells = (
                f"{result.log_z:.3f} +- {result.log_z_err:.3f}",
                f"{self.log_bayes_factors[name]:.3f} +- {self.log_bayes_factor_errs[name]:.3f}",
                f"{self.probabilities[name]:.4f} +- {self.probability_errs[name]:.4f}",
                "-" if loo is None else f"{loo[0]:.2f} +- {loo[1]:.2f}",
            )
            lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>19}" for cell in cells))
        notes = [f"  {n}: {text}" for n, r in self.results.items() for text in r.warnings]
        return "\n".join([*lines, *notes])

    def figure(self) -> Any:
        """Return a matplotlib figure: posterior probabilities, and log Bayes factors, with errors.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as missing:
            raise ImportError("a figure needs matplotlib: pip install matplotlib") from missing
        names = list(self.results)[::-1]
        sheet = Figure(figsize=(8, 1.2 + 0.35 * len(names)), layout="constrained")
        left, right = sheet.subplots(1, 2, sharey=True)
        errors = {"capsize": 3, "ecolor": "#444444"}
        left.barh(
            names,
            [self.probabilities[name] for name in names],
            xerr=[self.probability_errs[name] for name in names],
            color="#0b6e4f",
            error_kw=errors,
        )
        left.set_xlim(0, 1)
        left.set_xlabel("posterior probability")
        right.errorbar(
            [self.log_bayes_factors[name] for name in names],
            names,
            xerr=[self.log_bayes_factor_errs[name] for name in names],
            fmt="o",
            color="#2b5c9e",
            capsize=3,
        )
        right.axvline(0, color="black", linewidth=0.8)
        right.set_xlabel("log Bayes factor against the best, nat")
        return sheet


def compare_evidence(
    *,
    data: Any = (),
    prior_probabilities: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    **models: Any,
) -> EvidenceComparison:
    """Compare models of the same data by their evidences.

    Arguments:
        data: what every model is called with: one argument, or a tuple of them; nothing by default.
        prior_probabilities: of the models, by name, of any scale; None means equal.
        options: for ``log_evidence``, such as ``{"particles": 4000}``.
        models: Pyro models by name, or their ``EvidenceResult``.

    Raises:
        TypeError: for what is neither a model nor an evidence.
        ValueError: for fewer than two models, models that observe different data, or prior
            probabilities that don't fit.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def narrow(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> def wide(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 10.0))
        ...     pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        >>> y, quiet = torch.tensor(0.5), {"progress": False}
        >>> found = compare_evidence(narrow=narrow, wide=wide, data=y, options=quiet)
        >>> found.best
        'narrow'
    """
    if len(models) < 2:
        raise ValueError(f"at least two models are compared; got {list(models)}")
    for name, model in models.items():
        if not callable(model) and not isinstance(model, EvidenceResult):
            raise TypeError(f"{name} must be a Pyro model or an EvidenceResult; got {model!r}")
    prior = _log_prior(list(models), prior_probabilities)
    arguments = data if isinstance(data, tuple) else (data,)
    results = {
        name: model
        if isinstance(model, EvidenceResult)
        else log_evidence(model, *arguments, **(options or {}))
        for name, model in models.items()
    }
    _check_same_data(results)
    results = dict(sorted(results.items(), key=lambda pair: -pair[1].log_z))
    names = list(results)
    log_z = torch.tensor([result.log_z for result in results.values()], dtype=torch.float64)
    errors = torch.tensor([result.log_z_err for result in results.values()], dtype=torch.float64)
    weights = torch.tensor([prior[name] for name in names], dtype=torch.float64)
    source = generator(0, "probabilities of models")
    noise = torch.randn(_DRAWS, len(names), generator=source, dtype=torch.float64)
    spread = torch.softmax(log_z + weights + errors * noise, -1).std(0)
    combined = (errors.square() + errors[0] ** 2).sqrt()
    combined[0] = 0.0
    columns = (log_z - log_z[0], combined, torch.softmax(log_z + weights, -1), spread)
    factors, factor_errs, probabilities, errs = (dict(zip(names, c.tolist())) for c in columns)
    loo = {name: _elpd_loo(result) for name, result in results.items()}
    return EvidenceComparison(results, factors, factor_errs, probabilities, errs, loo)


def _elpd_loo(result: EvidenceResult) -> tuple[float, float] | None:
    """Return the leave-one-out estimate from the draws of a result, all observed sites joint."""
    pieces = [v.reshape(len(v), -1).double().cpu() for v in result.log_likelihood.values()]
    if not pieces or sum(piece.shape[1] for piece in pieces) < 2:
        return None
    log_likelihood = torch.cat(pieces, dim=1).mT
    each = torch.logsumexp(smoothed(-log_likelihood).log_weights + log_likelihood, 1)
    return each.sum().item(), (len(each) * each.var()).sqrt().item()


def _log_prior(names: list[str], given: Mapping[str, float] | None) -> dict[str, float]:
    if given is None:
        return dict.fromkeys(names, 0.0)
    if set(given) != set(names) or not all(0 < p < math.inf for p in given.values()):
        raise ValueError(
            f"`prior_probabilities` must have a positive number for each of {names}; got "
            f"{dict(given)}"
        )
    return {name: math.log(p) for name, p in given.items()}


def _check_same_data(results: dict[str, EvidenceResult]) -> None:
    first, *others = results
    for name in others:
        if results[name].data != results[first].data:
            raise ValueError(
                f"models {first!r} and {name!r} observe different data, so that their evidences "
                "can't be compared; let every model observe all of the data, and nothing else"
            )
