"""Results of samplers that are in memory, told by the package that made them; none is imported.

Nested samplers give log-weights: dynesty ``logwt - logz``, nautilus with its points; UltraNest's
results are a dictionary with weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyro_stad.data.bounds import Periodic
from pyro_stad.data.layout import element_names
from pyro_stad.data.read.base import Found, matrix_columns, spread
from pyro_stad.data.read.hdf5 import walkers
from pyro_stad.data.read.posterior import posterior_of

__all__ = ["found_in"]


def found_in(result: Any) -> Found:
    """Return what is in a result.

    Raises:
        TypeError: if it is of no package that is known.
        ValueError: if the sampler has not run.
    """
    for kind in type(result).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _PACKAGES:
            return _PACKAGES[package](result)
    if isinstance(result, Mapping) and "weighted_samples" in result:
        return _ultranest(result)
    raise TypeError(
        "`path` must be a path, a list of paths, or a result of "
        f"{', '.join([*_PACKAGES, 'ultranest'])}; got {type(result).__name__}"
    )


def _weighted(points: Any, log_weights: Any, names: list[str] | None = None) -> Found:
    values, logs = np.asarray(points, np.float64), np.asarray(log_weights, np.float64)
    if not len(values) or np.isnan(logs).any() or not np.isfinite(logs.max()):
        raise ValueError("the result has no samples with usable weights; has the sampler run?")
    labels = names or element_names("x", (values.shape[1],))
    columns = matrix_columns(values, labels)
    return Found(columns, np.exp(logs - logs.max()), named=names is not None)


def _dynesty(result: Any) -> Found:
    # A sampler holds its results; results are themselves.
    results = result if type(result).__name__ == "Results" else result.results
    return _weighted(results.samples, np.asarray(results.logwt) - results.logz[-1])


def _nautilus(sampler: Any) -> Found:
    points, log_weights, _ = sampler.posterior()
    if isinstance(points, Mapping):
        columns, left_out = spread(points)
        found = _weighted(np.stack(list(columns.values()), 1), log_weights, list(columns))
        found.left_out = left_out
        return found
    # A nautilus.Prior knows the names; a function that transforms the unit cube does not.
    names = None if callable(sampler.prior) else [str(key) for key in sampler.prior.keys]
    return _weighted(points, log_weights, names)


def _ultranest(result: Mapping[str, Any]) -> Found:
    samples = result["weighted_samples"]
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(samples["weights"], np.float64))
    return _weighted(samples["points"], logs, [str(name) for name in result["paramnames"]])


def _emcee(sampler: Any) -> Found:
    return walkers(np.asarray(sampler.get_chain()))


def _getdist(samples: Any) -> Found:
    names = [info.name for info in samples.paramNames.names]
    found = Found(matrix_columns(np.asarray(samples.samples), names), np.asarray(samples.weights))
    derived = (info.name for info in samples.paramNames.names if info.isDerived)
    found.left_out = dict.fromkeys(derived, "derived parameter")
    found.labels = {info.name: info.label for info in samples.paramNames.names if info.label}
    low, high = samples.ranges.lower, samples.ranges.upper
    for name in low.keys() | high.keys():
        ends = low.get(name), high.get(name)
        # A range without width is that of a parameter which is fixed.
        if ends[0] != ends[1]:
            found.bounds[name] = Periodic(*ends) if name in samples.ranges.periodic else ends
    # Where each chain begins, and the end of the last; None if they are not known.
    if samples.chain_offsets is not None:
        lengths = np.diff(samples.chain_offsets)
        found.chains = np.repeat(np.arange(len(lengths)), lengths)
    return found


def _anesthetic(samples: Any) -> Found:
    names = [str(name) for name in samples.drop_labels().columns]
    found = Found(matrix_columns(samples.to_numpy(np.float64), names))
    found.weights = np.asarray(samples.get_weights(), np.float64)
    return found


def _posterior(result: Any) -> Found:
    if "posterior" not in getattr(result, "children", result):
        raise ValueError("the result has no group 'posterior'")
    return posterior_of(result["posterior"], type(result).__name__)


_PACKAGES: dict[str, Callable[[Any], Found]] = {
    "anesthetic": _anesthetic,
    "arviz": _posterior,
    "dynesty": _dynesty,
    "emcee": _emcee,
    "getdist": _getdist,
    "nautilus": _nautilus,
    "xarray": _posterior,
}
