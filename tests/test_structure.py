"""The architecture: who may import whom, how long things may get, and that importing is silent."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyro_stad"
SHARED = {
    "_arviz", "_checks", "_chunks", "_config", "_context", "_files", "_random", "_rows", "errors",
}  # fmt: skip
ALLOWED = {
    "data": set(),
    "paths": set(),
    "ode": set(),
    "training": set(),
    "teacher": {"data", "paths", "training"},
    "transport": {"teacher", "ode"},
    "divergence": {"teacher", "data", "ode", "training"},
    "likelihood": {"transport", "divergence", "teacher", "ode", "data", "training"},
    "density": {
        "likelihood",
        "transport",
        "divergence",
        "teacher",
        "ode",
        "paths",
        "data",
        "training",
    },
    "evidence": {"density", "likelihood", "divergence", "teacher", "ode", "paths", "data"},
    "interop": {"density", "evidence"},
    "demo": {"data", "density", "evidence"},
    "cli": {"density", "demo", "likelihood", "divergence", "teacher", "ode", "data"},
}
MAY_IMPORT_PYRO = {"density", "evidence", "interop", "demo"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_data_flow(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer in ("__init__", "__main__"):
        return
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "pyro":
            assert layer in MAY_IMPORT_PYRO, f"{path} imports {module}"
        if parts[0] == "pyro_stad" and len(parts) > 1:
            allowed = ALLOWED.get(layer, set()) | SHARED | {layer}
            assert parts[1] in allowed, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = [n for n in node.body if not isinstance(n, ast.Expr)] or node.body
            assert node.end_lineno - body[0].lineno < 60, f"{path}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_formulas_are_escaped_once(path):
    r"""In a docstring's formula a command has one backslash: two are a line break and a word."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            # Without an r before the docstring, a command may begin with a control character.
            text = ast.get_docstring(node) or ""
            assert not re.search(r"\\\\[A-Za-z]|[\x07\x08\x0b\x0c\r]", text), node


def test_every_layer_is_in_the_map():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(ALLOWED)


def test_import_changes_nothing_global():
    """Dtype, generator, validation, threads, warnings and torch's classes stay as they were."""
    script = """
import warnings, torch, pyro
import pyro.infer.autoguide, safetensors.torch, torchdiffeq, tqdm.auto  # theirs to answer for
from torch.distributions import Distribution, biject_to
before = lambda: (
    torch.get_default_dtype(), torch.get_rng_state().sum().item(), torch.get_num_threads(),
    Distribution._validate_args, len(biject_to._registry), len(warnings.filters),
    sorted(dir(torch.distributions.Transform)), len(pyro.get_param_store()),
)
first = before()
import pyro_stad
assert before() == first, (before(), first)
"""
    # arviz is imported lazily; nothing else of ours may import it.
    script += "import sys; assert 'arviz' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
