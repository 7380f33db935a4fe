"""Margins, reference samples and the spread of members in the file of a prior.

Each has tensors of its own, under a prefix, and an entry of the description that says what they
are.

A file has an entry for what its prior has; those that were written before there were any have none.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import decode
from pyro_stad.data import Margins, Splines
from pyro_stad.data.reference import Reference
from pyro_stad.learn.spread import Spread

__all__ = [
    "check_finite",
    "check_tensors",
    "describe_parts",
    "part_tensors",
    "take_margins",
    "take_reference",
    "take_spread",
]

_PREFIX, _ROWS, _SPREAD = "margins.", "reference", "spread."
_LONGEST = 40  # characters of what describes a tail


def describe_parts(
    margins: Margins | None, reference: Reference | None, spread: Spread | None
) -> dict[str, Any]:
    """Return what a description says of these parts; nothing of what there is not."""
    found: dict[str, Any] = {}
    if margins is not None:
        found["margins"] = {"columns": margins.columns, "tails": margins.tails}
    if reference is not None:
        found["reference"] = {"effective": reference.effective}
    if spread is not None:
        found["spread"] = {"members": spread.members, "width": spread.width}
    return found


def part_tensors(
    margins: Margins | None, reference: Reference | None, spread: Spread | None
) -> dict[str, Tensor]:
    """Return the tensors of these parts, by their names in the file."""
    found: dict[str, Tensor] = {}
    if margins is not None:
        found |= {_PREFIX + name: part for name, part in margins.splines.tensors().items()}
    if reference is not None:
        found[_ROWS] = reference.rows
    if spread is not None:
        found |= {_SPREAD + name: part for name, part in spread.state_dict().items()}
    return found


def take_margins(
    document: dict[str, Any], tensors: dict[str, Tensor], size: int, dtype: torch.dtype
) -> Margins | None:
    """Return the margins of a file, and take their tensors out of ``tensors``.

    Raises:
        LookupError, TypeError, ValueError: if they are no margins of ``size`` coordinates.
    """
    config = document.get("margins")
    if config is None:
        return None
    columns = decode(tuple[int, ...], config["columns"], "columns")
    for column in columns:
        check_count(column, "columns", least=0, most=size - 1)
    tails = decode(tuple[tuple[str, str], ...], config["tails"], "tails")
    if any(len(tail) > _LONGEST for pair in tails for tail in pair):
        raise ValueError(f"`tails` must be of {_LONGEST} characters at the most")
    parts = {part.name: tensors.pop(_PREFIX + part.name) for part in fields(Splines)}
    for name, part in parts.items():
        if part.dtype != dtype:
            raise ValueError(f"{_PREFIX}{name} is {part.dtype}, expected {dtype}")
    return Margins(columns, Splines(**parts), tails)


def take_reference(
    document: dict[str, Any], tensors: dict[str, Tensor], size: int, dtype: torch.dtype
) -> Reference | None:
    """Return the samples of a file, and take their tensor out of ``tensors``.

    Raises:
        LookupError, TypeError, ValueError: if they are no samples of ``size`` coordinates.
    """
    config = document.get("reference")
    if config is None:
        return None
    rows = tensors.pop(_ROWS)
    check_tensors({_ROWS: rows}, {_ROWS: torch.Size([len(rows), size])}, dtype)
    return Reference(rows, decode(float, config["effective"], "effective"))


def take_spread(
    document: dict[str, Any], tensors: dict[str, Tensor], size: int, dtype: torch.dtype
) -> Spread | None:
    """Return the spread of members of a file, and take its tensors out of ``tensors``.

    Raises:
        LookupError, TypeError, ValueError: if it is none of ``size`` coordinates.
    """
    config = document.get("spread")
    if config is None:
        return None
    names = [name for name in tensors if name.startswith(_SPREAD)]
    parts = {name.removeprefix(_SPREAD): tensors.pop(name) for name in names}
    # Before it is built: a network of a size that somebody made up would fill the memory.
    members, width = parts["out.weight"].shape
    if (config["members"], config["width"]) != (members, width):
        raise ValueError(f"a spread of {config} does not fit its tensors, of {members}, {width}")
    spread = Spread(size, members, width, torch.Generator()).to(dtype)
    check_tensors(parts, {name: part.shape for name, part in spread.state_dict().items()}, dtype)
    spread.load_state_dict(parts)
    sizes = (spread.most >= 0).all() & (spread.factor > 0) & (spread.residual >= 0)
    if not bool((spread.unit > 0).all() & sizes):
        raise ValueError("units and factor of a spread must be positive, its residual at least 0")
    return spread.requires_grad_(False)


def check_tensors(
    tensors: dict[str, Tensor], expected: dict[str, torch.Size], dtype: torch.dtype
) -> None:
    """Refuse tensors that are not the expected ones, in name, shape or dtype, or not finite."""
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise ValueError(f"missing tensors {sorted(missing)}, unexpected {sorted(extra)}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {tuple(shape)}"
            )
    check_finite(tensors)


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")
