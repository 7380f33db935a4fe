"""One registry for every part that a file stores: by axis of choice, and by name.

A class is put there by ``storable``; ``describe`` writes one of its objects as JSON, and ``build``
makes the object from what was written, by its constructor, which refuses what is out of range. A
dataclass needs no more than that. A part that holds tensors or other parts defines two methods:
``settings``, and ``from_settings``, which may look at the tensors of the file before anything is
built: a network of a size that somebody made up would fill the memory. What tensors hold is filled
in afterwards.

.. code-block:: python

    @storable("path", "mine")
    @dataclass(frozen=True)
    class Mine(AbstractPath): ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["Source", "build", "describe", "registered", "storable"]

_T = TypeVar("_T", bound=type)

_AXES: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Source:
    """What a part is built from besides its settings.

    Attributes:
        tensors: those of the file, by name.
        place: where those of this part are: the beginning of their names.
        given: parts that are built already, by name, and numbers that others know.
    """

    tensors: Mapping[str, Tensor]
    place: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    def under(self, name: str) -> Source:
        """Return the source of a part of this part."""
        return replace(self, place=f"{self.place}{name}.")

    def with_parts(self, **given: Any) -> Source:
        """Return a source that knows more parts."""
        return replace(self, given={**self.given, **given})

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor of this part."""
        return self.tensors[self.place + name]


def storable(axis: str, *names: str) -> Callable[[_T], _T]:
    """Make a class one that files can hold.

    Arguments:
        axis: what it is one of: ``"path"``, ``"solver"``, ``"curve"``, ``"field"``,
            ``"divergence"``, ``"transport"``, ``"likelihood"`` and the like.
        names: what it is called in files. With more than one, its method ``stored_name`` says
            which of them an object has.
    """

    def register(kind: _T) -> _T:
        known = _AXES.setdefault(axis, {})
        for name in names:
            # A module that is loaded again brings the same class anew.
            if name in known and _full_name(known[name]) != _full_name(kind):
                raise ValueError(f"the {axis} {name!r} is {known[name].__qualname__} already")
            known[name] = kind
        return kind

    return register


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def registered(axis: str) -> Mapping[str, Any]:
    """Return the classes of an axis by name; those that are registered later will be in it too."""
    return MappingProxyType(_AXES.setdefault(axis, {}))


def describe(part: Any, axis: str) -> dict[str, Any]:
    """Return ``{"name": ..., **settings}`` of a registered part.

    Raises:
        TypeError: if its type is not registered.
    """
    names = [name for name, kind in registered(axis).items() if type(part) is kind]
    if not names:
        raise TypeError(
            f"a {axis} of type {type(part).__name__} can't be stored, only {sorted(_AXES[axis])}; "
            "register its class by pyro_stad.registry.storable, or store what it wraps and wrap "
            "that again"
        )
    name = part.stored_name() if len(names) > 1 else names[0]
    settings = part.settings() if hasattr(part, "settings") else asdict(part)
    return {"name": name, **settings}


def build(config: str | Mapping[str, Any], axis: str, source: Source | None = None) -> Any:
    """Return the part that a name or a description stands for.

    Raises:
        ValueError: for a name that is not registered.
    """
    settings = {"name": config} if isinstance(config, str) else dict(config)
    name = settings.pop("name", None)
    known = registered(axis)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"`{axis}` must be one of {sorted(known)}; got {name!r}")
    kind = known[name]
    if hasattr(kind, "from_settings"):
        return kind.from_settings(name, settings, source)
    return kind(**settings)
