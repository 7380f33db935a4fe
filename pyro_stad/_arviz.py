"""The two generations of ArviZ behind one door: 0.x, and 1.x with its parts.

Which one is installed is read from its version: 1.x answers to many names of 0.x with stand-ins
that warn or fail. ArviZ is slow to import, so that every call here imports it when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

__all__ = ["from_dict", "generation", "psislw", "r_hat"]


def generation() -> int:
    """Return the major version of the ArviZ that is installed."""
    return int(version("arviz").split(".")[0])


def from_dict(groups: Mapping[str, Any], *, coords: Any = None, dims: Any = None) -> Any:
    """Return groups of arrays ``(chain, draw, ...)`` as ``InferenceData`` (0.x) or ``DataTree``."""
    import arviz

    if generation() == 0:
        return arviz.from_dict(**groups, coords=coords, dims=dims)
    return arviz.from_dict(dict(groups), coords=coords, dims=dims)


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Pareto-smoothed, normalised log-weights, along the last axis, and their shape k.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
    """
    if generation() == 0:
        import arviz

        return arviz.psislw(log_weights)
    from arviz_stats.base import array_stats

    # Some versions take the logarithm of one over the weights. Smoothing keeps the order of the
    # weights, which tells.
    smooth, shape = array_stats.psislw(-log_weights)
    rows, wanted = np.atleast_2d(smooth)[0], np.atleast_2d(log_weights)[0]
    if rows[wanted.argmax()] >= rows[wanted.argmin()]:
        return smooth, shape
    return array_stats.psislw(log_weights)


def r_hat(draws: np.ndarray) -> float:
    """Return the rank-normalised R-hat of draws ``(chain, draw)``."""
    if generation() == 0:
        import arviz

        return float(arviz.rhat(np.asarray(draws)))
    from arviz_stats.base import array_stats

    return float(array_stats.rhat(np.asarray(draws)))
