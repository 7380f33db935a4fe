"""From all columns of a file to the parameters, their weights and their chains: one set of rules.

A column stays out for a reason that is kept: because it is the sampler's own (its log-density, a
counter), because the file says that it is derived, because it is constant. Naming a column takes it
in, whatever the reason. Guessing the other way round would be silently wrong: a log-density among
the parameters is a deterministic function of them, and the learned density would be a sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch

from pyro_stad.data.chain import Chain
from pyro_stad.data.read.base import Found
from pyro_stad.data.sampler_columns import LOG_WEIGHTS, WEIGHTS, is_density, sampler_column

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """What the user asks of a chain; see ``read_chain``."""

    burn_in: float | None = None
    var_names: Sequence[str] | None = None
    weights: str | Literal[False] | None = None
    log_weights: str | None = None


def choose(found: Found, choice: Choice, source: str) -> Chain:
    """Return the chain of parameters.

    Raises:
        ValueError: if nothing is left, or names or weights are not as said.
    """
    columns = dict(found.columns)
    rows = len(next(iter(columns.values()), ()))
    if not columns or not rows:
        raise ValueError(f"{source} has no samples")
    chains = found.chains if found.chains is not None else _chains(columns)
    weights = _weights(columns, found, choice, source)
    reasons = {**_reasons(columns), **found.left_out}
    names = _names(columns, reasons, choice.var_names, source)
    kept = _after_burn_in(choice.burn_in, chains, rows)
    values = np.stack([np.asarray(columns[name], np.float64)[kept] for name in names], axis=1)
    return Chain(
        values=torch.from_numpy(values),
        names=tuple(names),
        weights=None if weights is None else _tensor(weights[kept], torch.float64),
        labels={name: found.labels[name] for name in names if name in found.labels},
        bounds={name: found.bounds[name] for name in names if name in found.bounds},
        chains=None if chains is None else _tensor(chains[kept], torch.int64),
        burn_in=found.warmup + rows - int(kept.sum()),
        left_out={name: reason for name, reason in reasons.items() if name not in names},
        source=source,
        files=found.files,
    )


def _tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _reasons(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """Return why columns are not parameters, judged by their names and values."""
    reasons = {}
    for name, values in columns.items():
        reason = sampler_column(name)
        if reason is not None:
            reasons[name] = reason
        elif len(values) > 1 and (values == values[0]).all():
            reasons[name] = f"constant ({values[0]:g})"
    return reasons


def _names(
    columns: dict[str, np.ndarray],
    reasons: dict[str, str],
    var_names: Sequence[str] | None,
    source: str,
) -> list[str]:
    """Return the names of the parameters, and complete the reasons of all others."""
    if var_names is None:
        names = [name for name in columns if name not in reasons]
        if not names:
            raise ValueError(
                f"{source} has no parameters; left out {_listed(reasons)}. Name columns "
                "to take (`var_names`, --columns)"
            )
        return names
    names = []
    for wanted in var_names:
        # A variable's name stands for its elements, as everywhere in this package.
        found = [name for name in columns if name == wanted or name.startswith(f"{wanted}[")]
        if not found:
            known = [name for name in columns if name not in reasons]
            because = f" ({reasons[wanted]})" if wanted in reasons else ""
            raise ValueError(
                f"{source} has no column {wanted!r}{because}; its parameters are {known}, and it "
                f"holds {_listed(reasons)}"
            )
        names += [name for name in found if name not in names]
    for name in columns:
        if name not in names:
            reasons.setdefault(name, "not named")
    return names


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "nothing else"


def _chains(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the numbers of chains that a table holds in a column of its own."""
    for name in ("chain", ".chain", "walker"):
        if name in columns:
            return np.unique(columns[name], return_inverse=True)[1]
    return None


def _weights(
    columns: dict[str, np.ndarray], found: Found, choice: Choice, source: str
) -> np.ndarray | None:
    """Return the weights, and take their column out of the columns."""
    if choice.weights is False:
        return None
    if choice.weights is not None and choice.log_weights is not None:
        raise ValueError("`weights` and `log_weights` exclude each other; name one")
    named = choice.weights or choice.log_weights
    if named is not None:
        if found.weights is not None:
            raise ValueError(
                f"{source} brings weights of its own, which are taken; leave {named!r} out"
            )
        if named not in columns:
            raise ValueError(f"weights {named!r} are not among {list(columns)}")
    name, is_log = (named, choice.weights is None) if named else _guess(columns, found, choice)
    if name is None:
        return found.weights
    values = np.asarray(columns.pop(name), np.float64)
    if not is_log:
        return values
    if np.isnan(values).any() or not values.max() < math.inf or not values.max() > -math.inf:
        raise ValueError(f"the log-weights {name!r} of {source} must be numbers below infinity")
    return np.exp(values - values.max())


def _guess(columns: dict[str, np.ndarray], found: Found, choice: Choice) -> tuple[str | None, bool]:
    """Return the column that a table without further notice must mean for weights.

    Raises:
        ValueError: for a ``weight`` that may be a weight in kilograms.
    """
    wanted = choice.var_names or ()
    if found.weights is not None:
        return None, False
    plain = {name.lower(): name for name in columns if name not in wanted}
    for names, is_log in ((WEIGHTS, False), (LOG_WEIGHTS, True)):
        for name in names:
            if name in plain:
                return plain[name], is_log
    if "weight" not in plain:
        return None, False
    if any(is_density(name) for name in plain):
        return plain["weight"], False
    raise ValueError(
        "the column 'weight' may hold weights of the samples or a parameter; say which "
        "(`weights='weight'`, --weights weight; or `weights=False`, --no-weights)"
    )


def _after_burn_in(burn_in: float | None, chains: np.ndarray | None, rows: int) -> np.ndarray:
    """Return a mask of the rows ``(N,)`` that are kept, burn-in counted in each chain."""
    kept = np.ones(rows, bool)
    if burn_in is None:
        return kept
    _check_burn_in(burn_in)
    numbers = np.zeros(rows, int) if chains is None else chains
    for number in np.unique(numbers):
        places = np.flatnonzero(numbers == number)
        cut = int(burn_in) if burn_in >= 1 else round(len(places) * burn_in)
        kept[places[:cut]] = False
    if not kept.any():
        raise ValueError(f"`burn_in` of {burn_in} leaves nothing of {rows} rows")
    return kept


def _check_burn_in(burn_in: Any) -> None:
    is_fraction = isinstance(burn_in, Real) and 0 <= float(burn_in) < 1
    is_count = isinstance(burn_in, Integral) and int(burn_in) >= 1
    if isinstance(burn_in, bool) or not (is_fraction or is_count):
        raise ValueError(
            "`burn_in` must be a fraction below 1 or a whole number of rows of each chain; "
            f"got {burn_in!r}"
        )
