"""Docstrings as this package writes them, put into what Sphinx reads.

Napoleon takes what stands before the first colon of ``Returns:`` for a type; here it is a sentence,
and types are in the signatures. A table of things (``PATHS``) has the docstring of ``dict``, and a
network's ``forward`` that of torch: the one is replaced, the other left out.
"""

from __future__ import annotations

import inspect

from sphinx.application import Sphinx

__all__ = ["leave_out", "process", "process_signature", "setup"]


def process(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Mend the lines of a docstring, in place, before Napoleon reads them."""
    if what == "data" and "\n".join(lines).strip() == inspect.getdoc(type(obj)):
        lines[:] = [_described(obj), ""]
    elif "Returns:" in lines:
        _returns_as_field(lines)


def leave_out(
    app: Sphinx, what: str, name: str, obj: object, skip: object, options: object
) -> bool | None:
    """Leave out ``forward`` where the package has nothing to say about it."""
    return True if name == "forward" and not obj.__doc__ else None


def process_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, result: str
) -> tuple[str, str] | None:
    """Write the default of a dataclass's factory as Python that Sphinx can read."""
    return (signature.replace("<factory>", "..."), result) if signature else None


def _described(value: object) -> str:
    if isinstance(value, (dict, tuple, set, frozenset)):
        return "The names " + ", ".join(f"``{key}``" for key in value) + "."
    return f"A constant, {value!r}."


def _returns_as_field(lines: list[str]) -> None:
    """Turn ``Returns:`` and the indented block below it into one ``:returns:`` field."""
    start = lines.index("Returns:")
    stop = start + 1
    while stop < len(lines) and (not lines[stop] or lines[stop].startswith(" ")):
        stop += 1
    block = lines[start + 1 : stop]
    lines[start:stop] = ["", f":returns: {block[0].strip()}", *block[1:], ""]


def setup(app: Sphinx) -> dict[str, bool]:
    # Napoleon listens with the usual priority, 500.
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", process_signature)
    app.connect("autodoc-skip-member", leave_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
