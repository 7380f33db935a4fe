"""Pages of reference, written from the package: one for each layer, one for each public object.

A layer's page has its modules in order, each with the derivation that its docstring carries and a
table of its objects. An object is documented once, under its shortest public name.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

from sphinx.application import Sphinx

import pyro_stad

__all__ = ["public_names", "setup"]

# In the order in which data flow; a layer that is missing here comes last.
LAYERS = {
    "density": "Fitting and priors",
    "evidence": "Evidence",
    "interop": "ArviZ",
    "data": "Samples",
    "paths": "Paths",
    "teacher": "Fields",
    "divergence": "Divergences",
    "likelihood": "Likelihoods",
    "ode": "Solvers",
    "training": "Training",
    "errors": "Errors and warnings",
}
# Programs, not a library.
HIDDEN = {"cli", "demo"}
ROOT = Path(pyro_stad.__file__).parent


def public_names() -> dict[str, dict[str, list[str]]]:
    """Return the public names of objects by layer and by the module that defines them."""
    found: dict[str, dict[str, list[str]]] = {layer: {} for layer in LAYERS}
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
    layers = public_names()
    everyday = []
    for layer, modules in layers.items():
        title = LAYERS.get(layer, layer.capitalize())
        sections = [_module_section(module, names) for module, names in modules.items()]
        _write(folder / f"{layer}.rst", "\n".join([_heading(title, "="), *sections]))
        names = [n for names in modules.values() for n in names if n.count(".") == 1]
        if names:
            everyday.append(f".. rubric:: {title}\n\n{_table(names, pages=False)}")
    _write(folder / "everyday.txt", "\n".join(everyday))


def _write(path: Path, text: str) -> None:
    """Write what has changed only, so that Sphinx reads no more than it must."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    write_pages(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
