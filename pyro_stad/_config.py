"""Records as JSON and back: what was found, and what was measured.

They may hold numbers that JSON has no name for: a calibration that failed is still to be kept.
``encode`` writes those as strings, and ``decode`` reads a record by the annotations of its fields,
so that a file can't put a word where a number belongs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

__all__ = ["decode", "encode"]

_NOT_FINITE = ("nan", "inf", "-inf")


def encode(value: Any) -> Any:
    """Return ``value`` ready for JSON: records as mappings, NaN and infinities as strings."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: encode(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def decode(kind: Any, stored: Any, argument: str) -> Any:
    """Return the value of type ``kind`` that ``encode`` has written as ``stored``.

    Arguments:
        kind: int, float, str, bool, a dataclass, or a tuple, list, dict or optional of these.
        stored: what a JSON document holds.
        argument: what to call it in messages.

    Raises:
        ValueError: if ``stored`` is no such value.
    """
    parts = get_args(kind)
    if isinstance(kind, UnionType):
        return None if stored is None else decode(parts[0], stored, argument)
    if get_origin(kind) in (tuple, list) and isinstance(stored, list):
        items = (decode(parts[0], part, f"{argument}[{i}]") for i, part in enumerate(stored))
        return get_origin(kind)(items)
    if get_origin(kind) is dict and isinstance(stored, dict):
        return {name: decode(parts[1], v, f"{argument}.{name}") for name, v in stored.items()}
    if is_dataclass(kind) and isinstance(stored, dict):
        return _record(kind, stored, argument)
    # Not isinstance: a boolean is an integer to Python.
    if kind is float and (type(stored) in (int, float) or stored in _NOT_FINITE):
        return float(stored)
    if type(stored) is kind:
        return stored
    expected = getattr(get_origin(kind) or kind, "__name__", kind)
    raise ValueError(f"`{argument}` must be of type {expected}; got {stored!r:.80}")


def _record(kind: Any, stored: dict[str, Any], argument: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    # What a later version has added comes with a default.
    needed = {
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    }
    if not needed <= stored.keys() <= known.keys():
        raise ValueError(
            f"`{argument}` must have {sorted(needed)}, and nothing but {sorted(known)}; got "
            f"{sorted(stored)}"
        )
    hints = get_type_hints(kind)
    return kind(**{n: decode(hints[n], v, f"{argument}.{n}") for n, v in stored.items()})
