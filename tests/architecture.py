"""What the structure of a package is held to; a package is a folder of files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# Top to bottom: data flow down this list, and a file imports from its own folder or from above.
LAYERS = (
    "data", "paths", "ode", "fields", "divergence", "transport", "drawing", "likelihood", "learn",
    "calibrate", "report", "files", "density", "fitting", "model", "samplers", "evidence",
    "infer", "interop", "demo", "cli",
)  # fmt: skip
FROM_PYRO_ON = "density"
# For tests, benchmarks and users: it may import all, and nothing imports it.
ASIDE = "testing"
# What may be missing, or takes long to import: only these are imported inside a function.
EXTRAS = {
    "arviz", "arviz_stats", "matplotlib", "nautilus", "pandas", "sklearn", "xarray",
}  # fmt: skip


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def name_of(path: Path, package: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the modules, or names in modules, that are imported below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom) and part.module:
            yield from (f"{part.module}.{alias.name}" for alias in part.names)


def layer_of(module: str, package: str) -> str | None:
    """Return the layer of a module; None for the package itself and for what all layers share."""
    parts = module.split(".")
    if parts[0] != package or len(parts) < 2 or parts[1].startswith("_"):
        return None
    return parts[1] if parts[1] in (*LAYERS, ASIDE) else None


def against_the_order(path: Path, package: Path) -> list[str]:
    """Return the imports of a file that go up, to what is aside, or that do not say where to.

    What all layers share, beside their folders, imports none of them.
    """
    name, tree = package.name, ast.parse(path.read_text())
    own = layer_of(name_of(path, package), name)
    if own == ASIDE or path in (package / "__init__.py", package / "__main__.py"):
        return []
    height = -1 if own is None else LAYERS.index(own)
    found = [
        f"{path.relative_to(package)} imports something relative to itself"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    for module in imports(tree):
        other = layer_of(module, name)
        if other == ASIDE or (other and LAYERS.index(other) > height):
            found.append(f"{path.relative_to(package)} imports {module}")
        if module.split(".")[0] == "pyro" and height < LAYERS.index(FROM_PYRO_ON):
            found.append(f"{path.relative_to(package)} imports {module}")
    return found


def hidden_imports(path: Path, package: Path) -> list[str]:
    """Return the imports inside functions, but for those of extras; the entry point may."""
    if path.name == "__main__.py":
        return []
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    modules = {module for function in functions for module in imports(function)}
    return [
        f"{path.relative_to(package)} imports {module} inside a function"
        for module in sorted(modules)
        if module.split(".")[0] not in EXTRAS
    ]


def graph(package: Path) -> dict[str, set[str]]:
    """Return which files import which, type checking and all, by dotted names."""
    known = {name_of(path, package): path for path in files(package)}
    edges = {}
    for name, path in known.items():
        edges[name] = set()
        for module in imports(ast.parse(path.read_text())):
            # A name in a module, or a module in a package.
            target = module if module in known else module.rpartition(".")[0]
            if target in known and target != name:
                edges[name].add(target)
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle, in order, or none if there is no circle."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for target in sorted(edges[name]):
            found = visit(target, [*way, name])
            if found:
                return found
        done.add(name)
        return []

    for name in sorted(edges):
        found = visit(name, [])
        if found:
            return found
    return []
