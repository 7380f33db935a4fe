r"""GetDist, CosmoMC, PolyChord and MultiNest: text without a header, names in a file beside it.

A row is ``weight, column 2, parameters...``; column 2 is minus the log posterior (GetDist, CosmoMC)
or minus twice the log likelihood (PolyChord, MultiNest), and never a weight. Beside ``root.txt`` or
``root_1.txt``, ``root_2.txt``, ... stand

- ``root.paramnames``: a name and a label a line, ``*`` after the names of derived parameters
  (MultiNest's wrapper writes a list of names, ``rootparams.json``, instead);
- ``root.ranges``: a name, a lower and an upper bound a line, ``N`` for none, perhaps ``periodic``.

References:
    Lewis (2019), GetDist: a Python package for analysing Monte Carlo samples. arXiv 1910.13970.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from pyro_stad.data.bounds import Periodic
from pyro_stad.data.read.base import AbstractReader, Found, Pair, join, matrix_columns
from pyro_stad.data.read.text import beside, chain_files, numbers, read_text

__all__ = ["GetDist", "names_file", "read_names", "weighted_table"]

# What may be put on a root; a path that ends so stands for the root, or for one chain of it.
_ENDINGS = re.compile(r"(_equal_weights|[_.]\d+)?\.txt|\.paramnames|\.ranges|params\.json")
_PARTS = ("_dead-birth.txt", "_phys_live-birth.txt", "_dead.txt", "_phys_live.txt")


class GetDist(AbstractReader):
    """Reads a root, or one chain of it."""

    name = "GetDist, CosmoMC, PolyChord or MultiNest (root.txt and root.paramnames)"

    def recognises(self, path: Path) -> bool:
        return any(names_file(root) for root in _roots(path))

    def read(self, path: Path) -> Found:
        root, source = next((r, s) for r in _roots(path) if (s := names_file(r)))
        is_chain = path.is_file() and path.suffix == ".txt"
        files = [path] if is_chain else chain_files(root)
        if not files or path.name.endswith(_PARTS):
            raise ValueError(
                f"the chain is {root}.txt or {root}_1.txt, ..., with weights; there is "
                f"{path.name if is_chain else 'none'}, and dead or live points are no posterior"
            )
        names, labels, derived = read_names(source)
        # Samplers make the files of all chains first and fill them later, as GetDist knows.
        filled = [file for file in files if file.stat().st_size] or files
        found = join([weighted_table(file, names) for file in filled])
        found.labels = labels
        found.left_out = dict.fromkeys(derived, "derived parameter")
        found.files += (source,)
        ranges = beside(root, ".ranges")
        if ranges.is_file():
            found.bounds = _read_ranges(ranges)
            found.files += (ranges,)
        return found


def _roots(path: Path) -> list[Path]:
    """Return what the root may be: the path, and what is left of it without an ending."""
    match = re.search(rf"({_ENDINGS.pattern})$", path.name)
    shorter = [path.with_suffix("")] if path.suffix else []
    if match and match.start():
        shorter.append(path.with_name(path.name[: match.start()]))
    shorter += [path.with_name(path.name.removesuffix(part)) for part in _PARTS]
    return [path, *(root for root in shorter if root.name)]


def names_file(root: Path) -> Path | None:
    """Return the file of names that stands beside a chain, if there is one."""
    choices = (beside(root, ending) for ending in (".paramnames", "params.json"))
    return next((file for file in choices if file.is_file()), None)


def weighted_table(file: Path, names: list[str]) -> Found:
    """Return one chain of rows ``weight, column 2, parameters...``.

    Raises:
        ValueError: if it has other columns.
    """
    table = numbers(file)
    if table.shape[1] != len(names) + 2:
        raise ValueError(
            f"{file} has {table.shape[1]} columns; expected weight, minus log posterior and the "
            f"{len(names)} parameters {names}"
        )
    return Found(matrix_columns(table[:, 2:], names), table[:, 0], files=(file,))


def read_names(file: Path) -> tuple[list[str], dict[str, str], list[str]]:
    """Return names, labels by name, and the names of derived parameters."""
    if file.suffix == ".json":
        return [str(name) for name in json.loads(read_text(file))], {}, []
    names, labels, derived = [], {}, []
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        first, *rest = line.split(None, 1)
        name = first.removesuffix("*")
        names.append(name)
        if first.endswith("*"):
            derived.append(name)
        # CosmoMC writes ! for \ where a backslash is awkward, and # before a remark.
        label = rest[0].partition("#")[0].strip().replace("!", "\\") if rest else ""
        if label:
            labels[name] = label
    return names, labels, derived


def _read_ranges(file: Path) -> dict[str, Pair]:
    """Return bounds by name; a file without any is empty.

    Raises:
        ValueError: for a line that is not understood.
    """
    bounds: dict[str, Pair] = {}
    lines = read_text(file).splitlines() if file.stat().st_size > 0 else []
    for line in lines:
        name, *rest = line.partition("#")[0].split() or [""]
        if not name:
            continue
        try:
            low, high = (None if side.upper() == "N" else float(side) for side in rest[:2])
        except ValueError:
            raise ValueError(
                f"{file} has the line {line.strip()!r}; expected name low high"
            ) from None
        flag = rest[2].lower() if len(rest) > 2 else "f"
        if flag in ("t", "true", "periodic") and low is not None and high is not None:
            bounds[name] = Periodic(low, high)
        elif flag not in ("f", "false"):
            raise ValueError(f"{file} has the line {line.strip()!r}; expected periodic with bounds")
        # A range without width is how a fixed parameter is written.
        elif low != high:
            bounds[name] = (low, high)
    return bounds
