"""Margins in the file of a prior: tensors of their own names, columns and tails in the description.

A file without margins has neither, as have those that were written before there were any.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import decode
from pyro_stad.data import Margins, Splines

__all__ = ["describe_margins", "margin_tensors", "take_margins"]

_PREFIX = "margins."
_LONGEST = 40  # characters of what describes a tail


def describe_margins(margins: Margins | None) -> dict[str, Any]:
    """Return what a description says of margins; nothing if there are none."""
    if margins is None:
        return {}
    return {"margins": {"columns": margins.columns, "tails": margins.tails}}


def margin_tensors(margins: Margins | None) -> dict[str, Tensor]:
    """Return the tensors of margins, by their names in the file."""
    if margins is None:
        return {}
    return {_PREFIX + name: part for name, part in margins.splines.tensors().items()}


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
