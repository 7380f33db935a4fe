"""Objects as JSON and back: a registry maps names to dataclasses, a config holds their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

__all__ = ["build", "describe"]

T = TypeVar("T")


def describe(value: object, registry: Mapping[str, type], argument: str) -> dict[str, Any]:
    """Return ``{"name": ..., **fields}`` for a registered dataclass instance.

    Raises:
        TypeError: if the type of ``value`` is not in ``registry``.
    """
    for name, kind in registry.items():
        if type(value) is kind:
            return {"name": name, **asdict(value)}  # type: ignore[call-overload]
    raise TypeError(
        f"`{argument}` of type {type(value).__name__} can't be stored; expected one of "
        f"{sorted(registry)}"
    )


def build(value: str | Mapping[str, Any], registry: Mapping[str, type[T]], argument: str) -> T:
    """Return the object that a name or a description stands for.

    Raises:
        ValueError: for a name that is not in ``registry``.
    """
    settings = {"name": value} if isinstance(value, str) else dict(value)
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"`{argument}` must be one of {sorted(registry)}; got {name!r}")
    return registry[name](**settings)
