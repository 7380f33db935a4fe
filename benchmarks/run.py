"""Run all benchmarks of a kind, one after the other, then write the page.

``python benchmarks/run.py short`` (or ``long``, five hours; or ``quick``, which records nothing
that is quoted). Each script says in ``RUNS`` what of it belongs to which kind.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import subprocess
import sys
from pathlib import Path

from tables import HERE, scripts

__all__ = ["runs_of"]


def runs_of(script: Path, kind: str) -> list[str]:
    """Return the arguments of the runs of a kind, read from the script without importing it."""
    for node in ast.parse(script.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "RUNS":
            return list(ast.literal_eval(node.value).get(kind, ()))  # type: ignore[attr-defined]
    raise ValueError(f"{script.name} has no RUNS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("short", "long", "quick"))
    kind = parser.parse_args().kind
    for script in scripts():
        for arguments in runs_of(script, kind):
            command = [sys.executable, str(script), *shlex.split(arguments)]
            print(shlex.join(command), flush=True)
            subprocess.run(command, check=True)
    if kind != "quick":
        subprocess.run([sys.executable, str(HERE / "tables.py")], check=True)


if __name__ == "__main__":
    main()
