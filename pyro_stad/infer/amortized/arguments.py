"""The tensors among the arguments of a model, by name: ``x``, ``batch['flux']``, ``parts[0]``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Names", "changed", "tensors"]


class Names:
    """Names of a model's positional arguments, in order.

    Arguments:
        model: the model.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        try:
            found = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
        except (TypeError, ValueError):
            found = inspect.Signature()
        kinds = inspect.Parameter
        parameters = found.parameters.values()
        self._named = [
            p.name for p in parameters
            if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        self._rest = next((p.name for p in parameters if p.kind == kinds.VAR_POSITIONAL), "args")

    def __getitem__(self, index: int) -> str:
        if index < len(self._named):
            return self._named[index]
        return f"{self._rest}[{index - len(self._named)}]"


def tensors(names: Names, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors among the arguments of a model, by name."""
    found: dict[str, Tensor] = {}
    changed(names, args, kwargs, lambda name, tensor: found.setdefault(name, tensor))
    return found


def changed(
    names: Names,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    change: Callable[[str, Tensor], Any],
) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments with ``change(name, tensor)`` in place of every tensor inside."""
    return (
        [_mapped(value, change, names[index]) for index, value in enumerate(args)],
        {name: _mapped(value, change, name) for name, value in kwargs.items()},
    )


def _mapped(value: Any, change: Callable[[str, Tensor], Any], name: str) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, dict):
        # A copy of its own class: it may have more to it than a dictionary.
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = _mapped(part, change, f"{name}[{key!r}]")
        return new
    if type(value) in (list, tuple):
        parts = (_mapped(part, change, f"{name}[{i}]") for i, part in enumerate(value))
        return type(value)(parts)
    return value
