"""Pages of reference, written from the package: one for each layer, one for each public object.

A layer's page has its modules in order, each with the derivation that its docstring carries and a
table of its objects. An object is documented once, under its shortest public name.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

from sphinx.application import Sphinx

import pyro_stad

__all__ = ["public_names", "setup"]

# Programs, not a library.
HIDDEN = {"cli", "demo"}
ROOT = Path(pyro_stad.__file__).parent


def layers() -> list[str]:
    """Return the layers in the order in which data flow: each after those that it imports."""
    needs: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if layer.startswith("_") or layer in HIDDEN:
            continue
        needs.setdefault(layer, set()).update(_imported_layers(path) - {layer})
    known = {
        layer: {other for other in needed if other in needs} for layer, needed in needs.items()
    }
    return list(TopologicalSorter(known).static_order())


def _imported_layers(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("pyro_stad.")}


def _title(layer: str) -> str:
    """Return the first line of a layer's docstring."""
    path = ROOT / layer / "__init__.py"
    path = path if path.exists() else ROOT / f"{layer}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or layer
    return f"{layer}: {text.splitlines()[0].rstrip('.')}"


def public_names() -> dict[str, dict[str, list[str]]]:
    """Return the public names of objects by layer and by the module that defines them."""
    found: dict[str, dict[str, list[str]]] = {layer: {} for layer in layers()}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1].startswith("_") or parts[0] in HIDDEN:
            continue
        # Not by import: a package may hide a module behind a function of the same name.
        names = [_shortest(parts, name) for name in _exported(path)]
        if names:
            found.setdefault(parts[0], {})[".".join(["pyro_stad", *parts])] = names
    return {layer: modules for layer, modules in found.items() if modules}


def _exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _shortest(parts: tuple[str, ...], name: str) -> str:
    for package in ("pyro_stad", f"pyro_stad.{parts[0]}"):
        if name in getattr(import_module(package), "__all__", ()):
            return f"{package}.{name}"
    return ".".join(["pyro_stad", *parts, name])


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def _table(names: list[str], *, pages: bool = True) -> str:
    options = "   :nosignatures:\n"
    options += "   :toctree:\n   :template: autosummary/object.rst\n" if pages else ""
    return ".. autosummary::\n" + options + "\n" + "".join(f"   ~{name}\n" for name in names)


def _module_section(module: str, names: list[str]) -> str:
    """Return a module's section: its docstring, whose first line is the title, and its names."""
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or module
    title, _, body = text.partition("\n\n")
    title = " ".join(title.split()).rstrip(".").replace("``", "")
    # A function may have its module's name; the names of the table are full ones.
    place = "" if module in names else f".. py:module:: {module}\n\n.. py:currentmodule:: None\n"
    return "\n".join([_heading(title, "-"), place, body + "\n", _table(names)])


def write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    known = public_names()
    everyday = []
    for layer, modules in known.items():
        title = _title(layer)
        sections = [_module_section(module, names) for module, names in modules.items()]
        _write(folder / f"{layer}.rst", "\n".join([_heading(title, "="), *sections]))
        names = [n for names in modules.values() for n in names if n.count(".") == 1]
        if names:
            everyday.append(f".. rubric:: {title}\n\n{_table(names, pages=False)}")
    _write(folder / "everyday.txt", "\n".join(everyday))
    pages = "".join(f"   generated/{layer}\n" for layer in known)
    _write(folder / "layers.txt", f".. toctree::\n   :maxdepth: 1\n\n{pages}")


def _write(path: Path, text: str) -> None:
    """Write what has changed only, so that Sphinx reads no more than it must."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    write_pages(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
