"""Cobaya: ``root.1.txt``, ... with a header line, and ``root.updated.yaml`` with the priors.

The header names the columns: weight, minuslogpost, the parameters, sampled and derived, then parts
of the posterior. Which parameter is sampled, and its bounds, the yaml says; it is read as data, so
that what it holds of code stays text. Without it the parameters are all columns that are not the
sampler's.

References:
    Torrado and Lewis (2021), Cobaya: code for Bayesian analysis of hierarchical physical models.
    arXiv 2005.05290.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_stad.data.bounds import Periodic
from pyro_stad.data.read.base import AbstractReader, Found, Pair, join, load_extra
from pyro_stad.data.read.getdist import weighted_table
from pyro_stad.data.read.text import beside, chain_files, head, read_text

__all__ = ["Cobaya"]


class Cobaya(AbstractReader):
    """Reads a root, or one chain of it."""

    name = "Cobaya (root.1.txt and root.updated.yaml)"

    def recognises(self, path: Path) -> bool:
        files = _files(path)
        return bool(files) and _header(files[0])[:2] == ["weight", "minuslogpost"]

    def read(self, path: Path) -> Found:
        parts = [weighted_table(file, _header(file)[2:]) for file in _files(path)]
        found = join(parts)
        description = beside(_root(path), ".updated.yaml")
        if description.is_file():
            _describe(found, description)
        return found


def _root(path: Path) -> Path:
    name = re.sub(r"(\.\d+)?\.txt$|\.(updated|input)\.yaml$", "", path.name)
    return path.with_name(name) if name else path


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".txt":
        return [path]
    return [file for file in chain_files(_root(path), marks=".") if file.stat().st_size]


def _header(file: Path) -> list[str]:
    line = head(file, 1_000_000).partition(b"\n")[0].decode("utf-8", "replace").lstrip("\ufeff")
    return line.lstrip("#").split() if line.startswith("#") else []


def _describe(found: Found, description: Path) -> None:
    """Add labels, bounds and what is derived, from the yaml."""
    yaml = load_extra("yaml", f"reading {description.name}")
    try:
        content = yaml.safe_load(read_text(description))
    except yaml.YAMLError as error:
        raise ValueError(f"{description} can't be read: {error}") from error
    parameters = _mapping(_mapping(content).get("params"))
    if not parameters:
        raise ValueError(f"{description} describes no `params`")
    _check_temperature(content, description)
    for name in found.columns:
        about = _mapping(parameters.get(name))
        if name in parameters and "prior" not in about:
            found.left_out[name] = "derived parameter"
        if "latex" in about:
            found.labels[name] = str(about["latex"])
        if "prior" in about:
            bounds = _bounds(about["prior"])
            if bounds is not None:
                found.bounds[name] = bounds
    found.files += (description,)


def _mapping(value: Any) -> Mapping[Any, Any]:
    """Return a mapping as it is, and an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def _check_temperature(content: Mapping[str, Any], description: Path) -> None:
    for options in _mapping(content.get("sampler")).values():
        temperature = _mapping(options).get("temperature")
        if temperature not in (None, 1) and "post" not in content:
            raise ValueError(
                f"the chain of {description} has temperature {temperature}, so that its weights "
                "are not the posterior's; cool it first (MCSamples.cool of GetDist)"
            )


def _bounds(prior: Any) -> Pair | None:
    """Return the bounds that a one-dimensional prior has, as far as they are in the file."""
    if isinstance(prior, list) and len(prior) == 2:
        prior = {"min": prior[0], "max": prior[1]}
    if not isinstance(prior, Mapping):
        return None
    law = prior.get("dist", "uniform")
    loc, scale = _number(prior.get("loc", 0.0)), _number(prior.get("scale", 1.0))
    if "min" in prior or "max" in prior:
        low, high = _number(prior.get("min")), _number(prior.get("max"))
    elif law == "uniform":
        low, high = loc, loc + scale
    elif law in ("loguniform", "reciprocal", "truncnorm"):
        low, high = (loc + scale * _number(prior.get(side)) for side in ("a", "b"))
    elif law in ("halfnorm", "expon", "gamma", "invgamma", "lognorm"):
        low, high = loc, math.inf
    elif law == "beta":
        low, high = loc, loc + scale
    else:
        return None
    if prior.get("periodic") and math.isfinite(low) and math.isfinite(high):
        return Periodic(low, high)
    sides = tuple(side if math.isfinite(side) else None for side in (low, high))
    return None if sides == (None, None) else (sides[0], sides[1])


def _number(value: Any) -> float:
    """Return a number; yaml reads ``1e-5`` as text. What is none leaves its side open."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan
