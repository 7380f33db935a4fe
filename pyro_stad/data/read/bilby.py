"""bilby's results in JSON, perhaps compressed: the table ``posterior``, of equal weights.

The file names classes and functions that bilby imports and calls when it loads a result. Here it is
plain JSON: nothing that it names is imported, and priors written as text are not evaluated; bounds
are taken where they stand as numbers. Parameters are the ``search_parameter_keys``; all other
columns are derived or fixed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_stad.data.bounds import Periodic
from pyro_stad.data.read.base import AbstractReader, Found, Pair
from pyro_stad.data.read.text import head, read_text

__all__ = ["Bilby"]


class Bilby(AbstractReader):
    """Reads a result."""

    name = "bilby (result.json)"

    def recognises(self, path: Path) -> bool:
        return path.name.lower().endswith((".json", ".json.gz")) or head(path, 1) == b"{"

    def read(self, path: Path) -> Found:
        content = json.loads(read_text(path))
        table = _plain(content.get("posterior")) if isinstance(content, Mapping) else None
        if not isinstance(table, Mapping) or not table:
            raise ValueError(f"{path} holds no posterior: expected a result of bilby")
        columns: dict[str, np.ndarray] = {}
        left_out: dict[str, str] = {}
        for name, values in table.items():
            array = _numbers(values)
            if array is None:
                left_out[name] = "no real numbers"
            else:
                columns[name] = array
        searched = _plain(content.get("search_parameter_keys")) or []
        if searched:
            others = (name for name in columns if name not in searched)
            left_out |= dict.fromkeys(others, "derived or fixed parameter")
        labels = _plain(content.get("parameter_labels")) or []
        return Found(
            columns,
            labels={str(name): str(label) for name, label in zip(searched, labels)},
            bounds=_bounds(content.get("priors")),
            left_out=left_out,
            files=(path,),
        )


def _plain(value: Any) -> Any:
    """Take the content out of the wrapping that says of which type it was."""
    if isinstance(value, Mapping) and (value.get("__dataframe__") or value.get("__array__")):
        return value.get("content")
    return value


def _numbers(values: Any) -> np.ndarray | None:
    """Return a column; None for text, and for complex numbers (which come as mappings)."""
    values = _plain(values)
    if not isinstance(values, list) or any(isinstance(v, (str, list, dict)) for v in values):
        return None
    return np.array([math.nan if v is None else v for v in values], np.float64)


def _bounds(priors: Any) -> dict[str, Pair]:
    bounds: dict[str, Pair] = {}
    for name, prior in priors.items() if isinstance(priors, Mapping) else ():
        about = prior.get("kwargs") if isinstance(prior, Mapping) else None
        if not isinstance(about, Mapping):
            continue
        low, high = (_finite(about.get(side)) for side in ("minimum", "maximum"))
        if about.get("boundary") == "periodic" and low is not None and high is not None:
            bounds[name] = Periodic(low, high)
        elif low is not None or high is not None:
            bounds[name] = (low, high)
    return bounds


def _finite(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
