"""The tensors among the arguments of a model, by name: ``x``, ``batch['flux']``, ``parts[0]``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["changed", "tensors"]


def tensors(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors among the arguments of a model, by name."""
    found: dict[str, Tensor] = {}
    changed(model, args, kwargs, lambda name, tensor: found.setdefault(name, tensor))
    return found


def changed(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    change: Callable[[str, Tensor], Any],
) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments with ``change(name, tensor)`` in place of every tensor inside."""
    try:
        names = list(inspect.signature(model).parameters)
    except (TypeError, ValueError):
        names = []
    names += [str(index) for index in range(len(names), len(args))]
    return (
        [_mapped(value, change, name) for name, value in zip(names, args)],
        {name: _mapped(value, change, name) for name, value in kwargs.items()},
    )


def _mapped(value: Any, change: Callable[[str, Tensor], Any], name: str) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change, f"{name}[{key!r}]") for key, part in value.items()}
    if type(value) in (list, tuple):
        parts = (_mapped(part, change, f"{name}[{i}]") for i, part in enumerate(value))
        return type(value)(parts)
    return value
