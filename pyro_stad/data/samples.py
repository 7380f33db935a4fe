"""The door of the samples: whatever a Bayesian has, as one matrix with names and weights.

What came in by name goes out by name, by way of a :class:`~pyro_stad.data.layout.Layout`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad.data.chain import Chain
from pyro_stad.data.containers import Table, read
from pyro_stad.data.layout import Layout, element_names
from pyro_stad.data.numbers import to_float64
from pyro_stad.data.sampler_columns import is_density, sampler_column
from pyro_stad.data.weights import check_weights
from pyro_stad.errors import SampleWarning

__all__ = ["Samples", "as_columns", "as_samples"]

_LEAST_ROWS = 100


@dataclass(frozen=True)
class Samples:
    """A checked sample.

    Attributes:
        values: float64 matrix with shape ``(N, D)``.
        weights: float64 with shape ``(N,)``, the largest of them one, or None.
        layout: names and variables of the D coordinates.
        chains: number of the chain of each row, shape ``(N,)``, or None if it is not known.
        bounds: what the container itself says of bounds, by name; empty for most.
    """

    values: Tensor
    weights: Tensor | None
    layout: Layout
    chains: Tensor | None = None
    bounds: Mapping[str, Any] = field(default_factory=dict)


def as_samples(
    samples: Any,
    *,
    names: Sequence[str] | None = None,
    weights: Any = None,
    log_weights: Any = None,
    var_names: Sequence[str] | None = None,
) -> Samples:
    """Read and check samples from any of the usual containers.

    Arguments:
        samples: a tensor, numpy array or pandas DataFrame with shape ``(N, D)``; a mapping of
            names to arrays ``(N, ...)``, such as Pyro's ``mcmc.get_samples()``; an ArviZ
            ``InferenceData`` or ``DataTree`` with a posterior group, or that group by itself; or
            what ``read_chain`` made. Weights in the index of a table are used.
        names: names of the D columns of a tensor or array.
        weights: one non-negative weight per row, of any scale, or the name of the column that
            holds them; chains and draws of an ArviZ posterior are taken chain by chain.
        log_weights: the logarithms of the weights, up to a constant, in their place.
        var_names: the variables to keep, of a mapping, DataFrame or ArviZ posterior.

    Raises:
        TypeError: for a container or dtype that is not understood.
        ValueError: for the wrong shape, masked or missing cells, fewer than 100 distinct rows or
            fewer than columns, non-finite values, constant columns, or unusable weights; columns
            are named.

    Warns:
        SampleWarning: for columns of a table that look like a sampler's own.
    """
    table = _table(samples, names, var_names)
    own = table.weights
    if own is not None and (weights is not None or log_weights is not None):
        raise ValueError("`samples` hold weights of their own; pass no others beside them")
    weights, log_weights = _named(table, weights), _named(table, log_weights)
    if var_names is None and table.named and not isinstance(samples, Chain):
        _warn_of_sampler_columns(table.columns)
    values, layout = _matrix(table, var_names)
    if isinstance(samples, Chain):
        layout = Layout.of(layout.names)
    checked = check_weights(
        weights if own is None else own, log_weights, len(values), least=_LEAST_ROWS
    )
    rows = len(values)
    values, checked, chains = _with_weight(values, checked, table.chains)
    _check_values(values, layout, "" if len(values) == rows else " in the rows that have a weight")
    bounds = samples.bounds if isinstance(samples, Chain) else {}
    kept = {name: pair for name, pair in bounds.items() if name in layout.names}
    return Samples(values, checked, layout, chains, kept)


def as_columns(context: Any, names: Sequence[str] | None, argument: str) -> tuple[Tensor, Layout]:
    """Return a table of any numbers that are finite, ``(N, C)`` in float64, and their names.

    Arguments:
        context: a container as of ``as_samples``.
        names: names of the columns of a tensor or array.
        argument: what it is called, for messages.

    Raises:
        TypeError, ValueError: as ``as_samples``, but few rows or constant columns are no matter.
    """
    try:
        table = read(context, names)
        if not table.named:
            (column,) = table.columns.values()
            table = Table({argument: column}, named=False)
        values, layout = _matrix(table, None)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("`samples`", f"`{argument}`")) from error
    _check_finite(values, layout, argument)
    return values, layout


def _table(samples: Any, names: Sequence[str] | None, var_names: Sequence[str] | None) -> Table:
    if isinstance(samples, Chain):
        if names is not None:
            raise ValueError("`names` are in the chain already; leave them out")
        columns = {name: column for name, column in zip(samples.names, samples.values.T)}
        return Table(columns, chains=samples.chains, weights=samples.weights)
    table = read(samples, names)
    if var_names is not None and names is None and not table.named:
        raise ValueError("`var_names` selects variables by name, and an array has none")
    return table


def _named(table: Table, weights: Any) -> Any:
    """Return weights; those given by the name of a column are taken out of the table."""
    if not isinstance(weights, str):
        return weights
    if weights not in table.columns or not table.named:
        known = list(table.columns) if table.named else "none, since an array has no names"
        raise ValueError(
            f"weights are the array of them, or the name of a column; got {weights!r}, and the "
            f"columns are {known}"
        )
    return table.columns.pop(weights)


def _with_weight(
    values: Tensor, weights: Tensor | None, chains: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Drop the rows without weight, which are no part of the law, wherever they lie."""
    if weights is None or (weights > 0).all():
        return values, weights, chains
    here = weights > 0
    weights = None if (weights[here] == 1).all() else weights[here]
    return values[here], weights, None if chains is None else chains[here]


def _warn_of_sampler_columns(columns: Mapping[str, Any]) -> None:
    """Warn of columns of a table in memory that files of chains would leave out.

    Here the user chose the columns, so they are kept; but a log-density among the parameters is a
    function of them, and the learned density would be a sheet.
    """
    reasons = {name: reason for name in columns if (reason := sampler_column(name)) is not None}
    # A step or a weight may be a parameter, and a vector is one: densities tell a sampler's table.
    certain = any(
        (is_density(name) or name.endswith("__")) and np.ndim(columns[name]) == 1
        for name in reasons
    )
    if certain and len(reasons) < len(columns):
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        wanted = [name for name in columns if name not in reasons]
        warnings.warn(
            f"`samples` have columns that look like a sampler's own ({listed}), and they are "
            f"learned as parameters. Choose with var_names={wanted}, or name them there too",
            SampleWarning,
            stacklevel=4,
        )


def _matrix(table: Table, var_names: Sequence[str] | None) -> tuple[Tensor, Layout]:
    """Return the chosen columns side by side, and what they are called."""
    chosen = list(table.columns) if var_names is None else list(var_names)
    missing = [name for name in chosen if name not in table.columns]
    if missing or not chosen:
        raise ValueError(f"`var_names` must be among {list(table.columns)}; got {chosen}")
    parts: list[Tensor] = []
    names: list[str] = []
    variables: list[tuple[str, tuple[int, ...]]] = []
    for name in chosen:
        values = to_float64(table.columns[name], f"{name!r} of `samples`")
        if values.ndim == 0:
            raise ValueError(f"{name!r} must have shape (N, ...); got a scalar")
        shape = tuple(values.shape[1:])
        parts.append(values.reshape(len(values), math.prod(shape)))
        names += table.labels.get(name) or element_names(name, shape)
        variables.append((name, shape))
    lengths = {name: len(part) for name, part in zip(chosen, parts)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all variables must have as many rows; got {lengths}")
    return torch.cat(parts, dim=1), Layout(tuple(names), tuple(variables))


def _check_values(values: Tensor, layout: Layout, among: str) -> None:
    if values.shape[1] == 0:
        raise ValueError("`samples` has no columns")
    _check_finite(values, layout, "samples")
    if len(values) >= 2:
        constant = (values == values[0]).all(0)
        if constant.any():
            column = int(constant.nonzero()[0])
            raise ValueError(
                f"column {layout.names[column]} is constant ({values[0, column].item()}){among}; "
                "a density in it does not exist. Drop it, and put the constant into the model; or, "
                "if its spread was rounded away, keep the samples in float64"
            )
    distinct = len(torch.unique(values, dim=0))
    if distinct < _LEAST_ROWS:
        raise ValueError(
            f"`samples` must have at least {_LEAST_ROWS} distinct rows; got {distinct} of "
            f"{len(values)}"
        )
    if distinct <= values.shape[1]:
        raise ValueError(
            f"`samples` must have more distinct rows than columns; got {distinct} rows of "
            f"{values.shape[1]} columns, which lie in a plane. Choose columns with `var_names`, or "
            "draw more"
        )


def _check_finite(values: Tensor, layout: Layout, argument: str) -> None:
    bad = ~torch.isfinite(values)
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"`{argument}` must be finite; {int(bad.any(1).sum())} rows are not, the first is row "
            f"{row} with {layout.names[column]} = {values[row, column].item()}. Drop those rows"
        )
