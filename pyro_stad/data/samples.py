"""Containers of samples: whatever a Bayesian has, as one matrix with names and weights.

What came in by name goes out by name, by way of a :class:`~pyro_stad.data.layout.Layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad.data.chain import Chain
from pyro_stad.data.layout import Layout

__all__ = ["Samples", "as_samples"]

_LEAST_ROWS = 100


@dataclass(frozen=True)
class Samples:
    """A checked sample.

    Attributes:
        values: float64 matrix with shape ``(N, D)``.
        weights: float64 with shape ``(N,)``, or None.
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
    var_names: Sequence[str] | None = None,
) -> Samples:
    """Read and check samples from any of the usual containers.

    Arguments:
        samples: a tensor, numpy array or pandas DataFrame with shape ``(N, D)``; a mapping of
            names to arrays ``(N, ...)``, such as Pyro's ``mcmc.get_samples()``; an ArviZ
            ``InferenceData`` or ``DataTree`` with a posterior group; or what ``read_chain`` made.
        names: names of the D columns of a tensor or array.
        weights: one non-negative weight per row, of any scale; chains and draws of an ArviZ
            posterior are taken chain by chain.
        var_names: the variables to keep, of a mapping, DataFrame or ArviZ posterior.

    Raises:
        TypeError: for a container or dtype that is not understood.
        ValueError: for the wrong shape, fewer than 100 distinct rows, non-finite values, constant
            columns, or unusable weights; columns are named.
    """
    if isinstance(samples, Chain):
        return _from_chain(samples, names, weights, var_names)
    values, layout = _read(samples, names, var_names)
    _check_values(values, layout)
    return Samples(values, _check_weights(weights, len(values)), layout)


def _read(
    samples: Any, names: Sequence[str] | None, var_names: Sequence[str] | None
) -> tuple[Tensor, Layout]:
    if isinstance(samples, (torch.Tensor, np.ndarray)):
        if var_names is not None:
            raise ValueError("`var_names` selects variables by name, and an array has none")
        return _from_matrix(samples, names)
    if names is not None:
        raise ValueError(
            f"`names` is for tensors and arrays; a {type(samples).__name__} brings its own"
        )
    if hasattr(samples, "columns") and hasattr(samples, "to_numpy"):
        return _from_mapping({str(c): samples[c].to_numpy() for c in samples.columns}, var_names)
    # Before mappings: ArviZ containers are mappings too, but of groups.
    if _is_arviz(samples):
        return _from_arviz(samples, var_names)
    if isinstance(samples, Mapping):
        return _from_mapping(samples, var_names)
    raise TypeError(
        "`samples` must be a tensor, a numpy array, a pandas DataFrame, a mapping of names to "
        f"arrays, or an ArviZ posterior; got {type(samples).__name__}. Wrap lists in numpy.array"
    )


def _from_chain(
    chain: Chain, names: Sequence[str] | None, weights: Any, var_names: Sequence[str] | None
) -> Samples:
    if weights is not None or names is not None:
        raise ValueError("`names` and `weights` are in the chain already; leave them out")
    columns = {name: column for name, column in zip(chain.names, chain.values.T)}
    values, layout = _from_mapping(columns, var_names)
    _check_values(values, layout)
    kept = {name: pair for name, pair in chain.bounds.items() if name in layout.names}
    return Samples(values, _check_weights(chain.weights, len(values)), layout, chain.chains, kept)


def _is_arviz(samples: Any) -> bool:
    """Tell InferenceData and DataTree by what they offer, without importing either."""
    if isinstance(samples, dict):
        return False
    return hasattr(samples, "posterior") or (
        hasattr(samples, "children") and "posterior" in samples.children
    )


def _to_float64(values: Any, name: str) -> Tensor:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else _numpy_tensor(values, name)
    if tensor.is_complex():
        raise TypeError(f"`samples` must be real; {name} is complex")
    return tensor.to(torch.float64)


def _numpy_tensor(values: Any, name: str) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"`samples` must be numbers; {name} has dtype {array.dtype}")
    # A copy: pandas hands out read-only views, which torch can't wrap.
    return torch.from_numpy(np.array(array, order="C"))


def _from_matrix(samples: Any, names: Sequence[str] | None) -> tuple[Tensor, Layout]:
    values = _to_float64(samples, "the array")
    if values.ndim != 2:
        raise ValueError(
            f"`samples` must have shape (N, D); got {tuple(values.shape)}. "
            "For one parameter, reshape to (N, 1)"
        )
    size = values.shape[1]
    if names is None:
        return values, Layout(tuple(f"x[{i}]" for i in range(size)), (("x", (size,)),))
    labels = tuple(str(name) for name in names)
    if len(labels) != size or len(set(labels)) != size:
        raise ValueError(f"`names` must be {size} different names; got {list(labels)}")
    return values, Layout(labels, tuple((label, ()) for label in labels))


def _from_mapping(
    samples: Mapping[str, Any],
    var_names: Sequence[str] | None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Tensor, Layout]:
    chosen = list(samples) if var_names is None else list(var_names)
    missing = [name for name in chosen if name not in samples]
    if missing or not chosen:
        raise ValueError(f"`var_names` must be among {list(samples)}; got {chosen}")
    columns: list[Tensor] = []
    names: list[str] = []
    variables: list[tuple[str, tuple[int, ...]]] = []
    for name in chosen:
        values = _to_float64(samples[name], f"{name!r}")
        if values.ndim == 0:
            raise ValueError(f"{name!r} must have shape (N, ...); got a scalar")
        shape = tuple(values.shape[1:])
        columns.append(values.reshape(len(values), -1))
        names += labels[name] if labels else _element_names(name, shape)
        variables.append((name, shape))
    lengths = {name: len(column) for name, column in zip(chosen, columns)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all variables must have as many rows; got {lengths}")
    return torch.cat(columns, dim=1), Layout(tuple(names), tuple(variables))


def _element_names(name: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return [name]
    indices = product(*(range(size) for size in shape))
    return [f"{name}[{', '.join(map(str, index))}]" for index in indices]


def _from_arviz(samples: Any, var_names: Sequence[str] | None) -> tuple[Tensor, Layout]:
    posterior = samples["posterior"]
    arrays, labels = {}, {}
    for name in posterior.data_vars:
        variable = posterior[name].transpose("chain", "draw", ...)
        shape = variable.shape[2:]
        arrays[str(name)] = variable.values.reshape(-1, *shape)
        coordinates = [[str(c) for c in variable[dim].values] for dim in variable.dims[2:]]
        labels[str(name)] = [
            f"{name}[{', '.join(parts)}]" if parts else str(name) for parts in product(*coordinates)
        ]
    return _from_mapping(arrays, var_names, labels)


def _check_values(values: Tensor, layout: Layout) -> None:
    if values.shape[1] == 0:
        raise ValueError("`samples` has no columns")
    bad = ~torch.isfinite(values)
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"`samples` must be finite; {int(bad.any(1).sum())} rows are not, the first is row "
            f"{row} with {layout.names[column]} = {values[row, column].item()}. Drop those rows"
        )
    if len(values) >= 2:
        constant = (values == values[0]).all(0)
        if constant.any():
            column = int(constant.nonzero()[0])
            raise ValueError(
                f"column {layout.names[column]} is constant ({values[0, column].item()}); "
                "a density in it does not exist. Drop it, and put the constant into the model"
            )
    distinct = len(torch.unique(values, dim=0))
    if distinct < _LEAST_ROWS:
        raise ValueError(
            f"`samples` must have at least {_LEAST_ROWS} distinct rows; got {distinct} of "
            f"{len(values)}"
        )


def _check_weights(weights: Any, count: int) -> Tensor | None:
    if weights is None:
        return None
    values = _to_float64(weights, "`weights`")
    if values.shape != (count,):
        raise ValueError(f"`weights` must have shape ({count},); got {tuple(values.shape)}")
    if not torch.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError("`weights` must be finite, non-negative and not all zero")
    effective = (values.sum() ** 2 / (values**2).sum()).item()
    if effective < _LEAST_ROWS:
        raise ValueError(
            f"`weights` leave an effective sample size of {effective:.0f}; at least "
            f"{_LEAST_ROWS} is needed"
        )
    return values
