"""What a reader of chains promises, and what it hands over.

A reader knows one family of files. It says whether a path is of its family, by looking and never by
running anything, and hands over all columns with what the file says of them; which of them are
parameters is decided afterwards, in one place, by :mod:`pyro_stad.data.read.columns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pyro_stad.data.bounds import Periodic
from pyro_stad.data.layout import element_names

__all__ = ["AbstractReader", "Found", "Pair", "join", "load_extra", "matrix_columns", "spread"]

Pair = tuple[float | None, float | None] | Periodic


@dataclass
class Found:
    """All that a reader found.

    Attributes:
        columns: numbers with shape ``(N,)`` by name, in the order of the file.
        weights: shape ``(N,)``, where the format itself has weights; else None.
        labels: how to write a parameter in a figure, by name.
        bounds: by name; names that are no column are ignored.
        chains: number of the chain of each row, shape ``(N,)``, or None.
        left_out: why a column is no parameter; taken nevertheless if it is named, and is there.
        warmup: rows of warm-up that the file marks as such, left out already.
        named: whether the names are the file's own.
        files: what was read.
    """

    columns: dict[str, np.ndarray]
    weights: np.ndarray | None = None
    labels: dict[str, str] = field(default_factory=dict)
    bounds: dict[str, Pair] = field(default_factory=dict)
    chains: np.ndarray | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    warmup: int = 0
    named: bool = True
    files: tuple[Path, ...] = ()


class AbstractReader(ABC):
    """Reads one family of files."""

    #: what the family is called in messages, with its usual endings
    name: str

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Tell whether ``path``, a file, a folder or a root, is of this family."""

    @abstractmethod
    def read(self, path: Path) -> Found:
        """Return what is in it.

        Raises:
            ValueError: if it is damaged, or of this family but without samples.
        """


def join(parts: Sequence[Found]) -> Found:
    """Return several chains of one run as one, numbered in their order.

    Raises:
        ValueError: if their columns differ.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if list(part.columns) != list(first.columns):
            raise ValueError(
                f"{part.files[0]} has the columns {list(part.columns)}, and {first.files[0]} has "
                f"{list(first.columns)}; chains of one run have the same columns"
            )
        if (part.weights is None) != (first.weights is None):
            raise ValueError(f"of {first.files[0]} and {part.files[0]}, only one has weights")
    weights = [part.weights for part in parts if part.weights is not None]
    lengths = [len(next(iter(part.columns.values()), ())) for part in parts]
    return Found(
        {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
        np.concatenate(weights) if weights else None,
        first.labels,
        first.bounds,
        np.repeat(np.arange(len(parts)), lengths),
        first.left_out,
        sum(part.warmup for part in parts),
        first.named,
        tuple(file for part in parts for file in part.files),
    )


def load_extra(module: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ImportError: naming the extra, if it is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        package = {"yaml": "PyYAML"}.get(module, module).partition(".")[0]
        raise ImportError(
            f"{purpose} needs {package}: pip install 'pyro-stad[chains]'"
        ) from missing


def matrix_columns(values: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of a matrix ``(N, D)`` by name."""
    return {name: values[:, i] for i, name in enumerate(names)}


def spread(arrays: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Split arrays ``(N, ...)`` into columns ``(N,)``; say of those without numbers why not.

    Raises:
        ValueError: if they have different numbers of rows.
    """
    columns: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for name, values in arrays.items():
        array = np.asarray(values)
        if array.ndim == 0:
            left_out[name] = "a single value"
            continue
        if array.dtype.kind not in "fiub":
            left_out[name] = "complex" if array.dtype.kind == "c" else "no numbers"
            continue
        flat = array.reshape(len(array), -1).astype(np.float64)
        columns |= matrix_columns(flat, element_names(name, array.shape[1:]))
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the arrays have different numbers of rows: {lengths}")
    return columns, left_out
