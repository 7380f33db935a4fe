r"""Posterior summaries that know the error of learning.

A posterior under a learned prior is as good as the prior. What each member of its fit would make of
an expectation f is known without another run: draws are reweighted by what it says of their prior
density, and f shifts by

.. math:: \Delta_k = \frac{\sum_i w_{ik} f_i}{\sum_i w_{ik}} - \frac1N \sum_i f_i .

The weights are such that the root of :math:`\sum_k \Delta_k^2` is the standard error of f by
learning (:mod:`pyro_stad.learn.spread`). More draws do not make it smaller; more samples of the
prior do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

__all__ = ["LEARNING", "posterior_summary"]

LEARNING = "learning_log_weights"
Array = NDArray[Any]


def posterior_summary(data: Any, *, var_names: str | Sequence[str] | None = None) -> Any:
    """Summarise a posterior as ArviZ does, with the error of learning beside.

    Arguments:
        data: what ``to_arviz`` has made of draws or an evidence under learned priors that have
            members.
        var_names: a variable or several, or None for all.

    Returns:
        The table of ``arviz.summary``, a data frame, with two more columns: ``mean_learning`` and
        ``sd_learning``, the standard errors of mean and standard deviation by the learning of the
        priors. Beside them ``mcse_mean`` is the error of the sampler alone.

    Raises:
        TypeError: if ``data`` are no ArviZ data.
        ValueError: if the data do not have the log-weights, or have no such variables.

    References:
        Efron (1979), Bootstrap Methods: Another Look at the Jackknife.
    """
    if not (hasattr(data, "groups") and hasattr(data, "__contains__")):
        raise TypeError(f"`data` must be what to_arviz returns; got {type(data).__name__}")
    known = data["sample_stats"] if "sample_stats" in data else {}
    if "posterior" not in data or LEARNING not in known:
        raise ValueError(
            f"`data` must be what to_arviz makes of draws under learned priors that have members, "
            f"with sample_stats.{LEARNING}; fit with `members`, or name the `prior`"
        )
    if isinstance(var_names, str):
        var_names = [var_names]
    posterior, names = data["posterior"], list(var_names or data["posterior"].data_vars)
    missing = [name for name in names if name not in posterior.data_vars]
    if missing:
        raise ValueError(
            f"`var_names` {missing} are not in the posterior, {list(posterior.data_vars)}"
        )
    import arviz

    weights = _flat(known[LEARNING])
    table = arviz.summary(data, var_names=names)
    errors = [_errors(_flat(posterior[name]), softmax(weights, axis=0)) for name in names]
    for index, column in enumerate(("mean_learning", "sd_learning")):
        table[column] = np.concatenate([error[index] for error in errors])
    return table


def _flat(values: Any) -> Array:
    """Return ``(chain, draw, ...)`` as ``(N, M)``."""
    array = np.asarray(values.transpose("chain", "draw", ...))
    return array.reshape(array.shape[0] * array.shape[1], -1).astype(float)


def _errors(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return the errors of means and sds of ``(N, M)``, under weights ``(N, K)``."""
    # Moments about the mean, or digits are lost.
    centred = values - values.mean(0)
    first, second = weights.T @ centred, weights.T @ centred**2
    sd = np.sqrt((second - first**2).clip(min=0))
    return np.sqrt((first**2).sum(0)), np.sqrt(((sd - centred.std(0)) ** 2).sum(0))
