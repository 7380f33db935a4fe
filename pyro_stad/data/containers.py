"""Containers: arrays, tables, mappings and ArviZ posteriors as columns by name.

Columns stay as they came until those that are wanted are known: a table may hold text beside its
numbers. Where a container has chains, they are laid one after the other, and the number of its
chain goes with each row.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad.data.numbers import to_float64

__all__ = ["Table", "read"]

_FEWEST_ROWS = 100
# Of what could be chains: so few rows as nobody has of draws, so many columns as chains are long.
_MOST_CHAINS, _SHORTEST_CHAIN = 1000, 10


@dataclass(frozen=True)
class Table:
    """Columns of a container, none of them looked at yet.

    Attributes:
        columns: arrays ``(N, ...)`` by name.
        labels: names of the elements of a column, where the container has them.
        chains: number of the chain of each row, shape ``(N,)``, or None.
        weights: weights that the container itself holds, or None.
        named: whether the columns have names that the user knows.
    """

    columns: dict[str, Any]
    labels: dict[str, list[str]] = field(default_factory=dict)
    chains: Tensor | None = None
    weights: Any = None
    named: bool = True


def read(samples: Any, names: Sequence[str] | None) -> Table:
    """Return the columns of any of the usual containers.

    Arguments:
        samples: as for ``as_samples``.
        names: names of the columns of a tensor or array; None makes them one column, ``x``.

    Raises:
        TypeError: for a container that is not understood.
        ValueError: for a wrong shape or names, or for chains that are not flattened.
    """
    structured = isinstance(samples, np.ndarray) and samples.dtype.names is not None
    if isinstance(samples, (Tensor, np.ndarray)) and not structured:
        return _of_array(samples, names)
    if names is not None:
        raise ValueError(
            f"`names` is for tensors and arrays; a {type(samples).__name__} brings its own"
        )
    if structured:
        return Table({name: samples[name] for name in samples.dtype.names})
    if hasattr(samples, "columns") and hasattr(samples, "to_numpy"):
        return _of_frame(samples)
    # Before mappings: datasets and ArviZ's containers are mappings too.
    if _is_arviz(samples):
        return _of_dataset(samples["posterior"])
    if hasattr(samples, "data_vars"):
        return _of_dataset(samples)
    if hasattr(samples, "to_dataset") and hasattr(samples, "dims"):
        return _of_dataset(samples.to_dataset(name=samples.name or "x"))
    if isinstance(samples, Mapping):
        columns = {str(name): values for name, values in samples.items()}
        _refuse_grouped(columns)
        return Table(columns)
    if isinstance(samples, (str, os.PathLike)):
        raise TypeError(
            f"`samples` must be values; got a path. Read it first: read_chain({str(samples)!r})"
        )
    raise TypeError(
        "`samples` must be a tensor, a numpy array, a pandas DataFrame, a mapping of names to "
        f"arrays, or an ArviZ posterior; got {type(samples).__name__}. Wrap lists in numpy.array"
    )


def _is_arviz(samples: Any) -> bool:
    """Tell InferenceData and DataTree by what they offer, without importing either."""
    if isinstance(samples, dict):
        return False
    return hasattr(samples, "posterior") or (
        hasattr(samples, "children") and "posterior" in samples.children
    )


def _of_array(samples: Any, names: Sequence[str] | None) -> Table:
    if samples.ndim in (3, 4):
        raise ValueError(
            f"`samples` must have shape (N, D); got {tuple(samples.shape)}. Steps and walkers, or "
            "chains and draws, must be flat: reshape to (-1, D), or get_chain(flat=True) of emcee. "
            "For images, say fit(samples, network='unet')"
        )
    if samples.ndim != 2:
        raise ValueError(
            f"`samples` must have shape (N, D); got {tuple(samples.shape)}. "
            "For one parameter, reshape to (N, 1)"
        )
    if names is None:
        return Table({"x": samples}, named=False)
    size, labels = samples.shape[1], [str(name) for name in names]
    if len(labels) != size or len(set(labels)) != size:
        raise ValueError(f"`names` must be {size} different names; got {labels}")
    return Table({label: samples[:, i] for i, label in enumerate(labels)})


def _of_frame(frame: Any) -> Table:
    """Return the columns of a table, and the weights that anesthetic keeps in its index."""
    labels = frame.columns
    if getattr(labels, "nlevels", 1) > 1 and "labels" in labels.names:
        # Anesthetic writes how to typeset a parameter into a second level.
        labels = labels.droplevel("labels")
    names = [str(label) for label in labels]
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"`samples` must have different column names; {repeated} are repeated")
    by_place = hasattr(frame, "iloc")
    columns = {
        name: frame.iloc[:, place] if by_place else frame[name] for place, name in enumerate(names)
    }
    return Table(columns, weights=_weights_in(getattr(frame, "index", None)))


def _weights_in(index: Any) -> Any:
    """Return the weights that an index holds, or None.

    Raises:
        ValueError: if it holds their logarithms.
    """
    for name in [] if index is None else index.names:
        if name in ("weights", "weight"):
            return index.get_level_values(name)
        if name in ("log_weights", "log_weight", "logw"):
            raise ValueError(
                f"the index of `samples` holds {name!r}; pass it on, "
                f"log_weights=samples.index.get_level_values({name!r})"
            )
    return None


def _of_dataset(dataset: Any) -> Table:
    """Return the variables of an xarray dataset or group, chain by chain."""
    rows = [dim for dim in ("chain", "draw") if dim in dataset.dims]
    if "draw" not in rows:
        # What ArviZ's extract makes of chains and draws.
        rows = ["sample"]
    if rows[-1] not in dataset.dims:
        raise ValueError(
            "`samples` from xarray must have dimensions chain and draw, or sample; got "
            f"{[str(dim) for dim in dataset.dims]}"
        )
    columns, labels = {}, {}
    for name in dataset.data_vars:
        variable = dataset[name]
        if not set(rows) <= set(variable.dims):
            raise ValueError(
                f"{name!r} must have dimensions {rows}; got {list(variable.dims)}. Choose others "
                "with `var_names`, or drop it"
            )
        variable = variable.transpose(*rows, ...)
        columns[str(name)] = variable.values.reshape(-1, *variable.shape[len(rows) :])
        coordinates = [[str(c) for c in variable[d].values] for d in variable.dims[len(rows) :]]
        labels[str(name)] = [
            f"{name}[{', '.join(parts)}]" if parts else str(name) for parts in product(*coordinates)
        ]
    return Table(columns, labels, _chains(dataset, rows))


def _chains(dataset: Any, rows: list[str]) -> Tensor | None:
    """Return the number of the chain of each row."""
    if rows == ["sample"]:
        if "chain" not in dataset.coords or dataset["chain"].dims != ("sample",):
            return None
        numbers = np.unique(dataset["chain"].values, return_inverse=True)[1]
        return torch.from_numpy(numbers.reshape(-1).copy())
    count = dataset.sizes["chain"] if "chain" in rows else 1
    return torch.arange(count).repeat_interleave(dataset.sizes["draw"])


def _refuse_grouped(columns: Mapping[str, Any]) -> None:
    """Refuse a mapping of arrays ``(chain, draw, ...)``: chains would be taken for rows.

    With fewer chains than a fit wants rows, the shape says it. With more, that the columns of every
    variable follow one law does: the draws of a chain do, and the parts of a vector hardly ever.
    """
    shapes = [tuple(np.shape(values)) for values in columns.values()]
    if not shapes or any(len(shape) < 2 for shape in shapes) or len({s[:2] for s in shapes}) > 1:
        return
    chains, draws = shapes[0][:2]
    few = chains < _FEWEST_ROWS <= chains * draws
    many = _FEWEST_ROWS <= chains < _MOST_CHAINS and draws >= _SHORTEST_CHAIN
    if few or (many and all(_same_law(to_float64(v, repr(n))) for n, v in columns.items())):
        raise ValueError(
            f"`samples` look like (chain, draw): {chains} chains of {draws} draws in "
            f"{list(columns)}, and every chain would be taken for one row. Flatten the first two "
            "dimensions (mcmc.get_samples() without group_by_chain does). If they are "
            f"{chains} draws of a vector, pass an array (N, D) with `names`"
        )


def _same_law(values: Tensor) -> bool:
    """Tell whether all ``values[:, j]`` have the same mean and spread, by what chance allows."""
    if not torch.isfinite(values).all():
        return False
    count, size = values.shape[:2]
    flat = values.reshape(count, size, -1)
    means, spreads = flat.mean(0), flat.std(0)
    scatter = (means - means.mean(0)).square().sum(0) * count / spreads.square().mean(0)
    # Chi-squared with size - 1 degrees of freedom if they have; five standard deviations. Draws of
    # one chain are alike, which makes it less.
    most = (size - 1) + 5 * (2 * (size - 1)) ** 0.5
    return bool((scatter < most).all() and (spreads.amax(0) < 2 * spreads.amin(0)).all())
