r"""Stan CSV, as CmdStan and its interfaces write it: one file a chain.

Lines that begin with # are comments, and stand anywhere: the settings before the header, the
adapted step size after the warm-up, the times at the end. Columns whose names end in ``__`` are the
sampler's. With ``save_warmup`` the first :math:`\lceil n/\mathrm{thin} \rceil` of the n warm-up
iterations are in the file, and are left out. Elements of arrays are ``theta.1.2``, counted from one
and written column by column; here they are ``theta[0, 1]``, row by row, as in Python.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from pyro_stad.data.read.base import AbstractReader, Found, join
from pyro_stad.data.read.text import chain_files, head, read_text

__all__ = ["Stan"]


class Stan(AbstractReader):
    """Reads the file of a chain, or the root of the files of several."""

    name = "Stan CSV (root_1.csv, ...)"

    def recognises(self, path: Path) -> bool:
        return any(_is_stan(file) for file in _files(path)[:1])

    def read(self, path: Path) -> Found:
        return join([_read_one(file) for file in _files(path)])


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else chain_files(path, "csv", "_.-")


def _is_stan(file: Path) -> bool:
    start = head(file, 100_000).decode("utf-8", "replace")
    return bool(re.search(r"^#\s*(stan_version_major|method)\s*=", start, re.MULTILINE))


def _read_one(file: Path) -> Found:
    lines = [line.strip() for line in read_text(file).splitlines()]
    comments = "\n".join(line for line in lines if line.startswith("#"))
    header, *rows = [line for line in lines if line and not line.startswith("#")] or [""]
    if not header or not rows:
        raise ValueError(f"{file} has no draws; did the run end?")
    try:
        table = np.loadtxt(io.StringIO("\n".join(rows)), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{file} is not a table of draws: {error}") from error
    names = header.split(",")
    if table.shape[1] != len(names):
        raise ValueError(f"{file} names {len(names)} columns and has {table.shape[1]}")
    table, warmup = _without_warmup(table, comments, file)
    columns = dict(zip(names, table.T))
    return Found(
        {new: columns[old] for old, new in _python_names(names)}, warmup=warmup, files=(file,)
    )


def _without_warmup(table: np.ndarray, comments: str, file: Path) -> tuple[np.ndarray, int]:
    """Return the draws of the posterior, and how many rows before them were left out."""
    settings = dict(re.findall(r"^#\s*(\w+)\s*=\s*(\S+)", comments, re.MULTILINE))
    method = settings.get("method", "sample")
    if method not in ("sample", "variational", "pathfinder", "laplace", "generate_quantities"):
        raise ValueError(f"{file} is the result of `{method}`, which draws no posterior")
    if method == "variational":
        # The first row is the mean of the approximation and not a draw of it.
        return table[1:], 1
    if settings.get("save_warmup", "0") in ("0", "false") or method != "sample":
        return table, 0
    # RStan and PyStan 2 leave out the num.
    count = settings.get("num_warmup") or settings.get("warmup") or 0
    warmup = -(-int(count) // int(settings.get("thin", 1)))
    if warmup >= len(table):
        raise ValueError(f"{file} has {len(table)} rows, all of them warm-up; did the run end?")
    return table[warmup:], warmup


def _python_names(names: list[str]) -> list[tuple[str, str]]:
    """Return pairs of Stan's names and Python's, the elements of an array row by row."""
    arrays: dict[str, list[tuple[tuple[int, ...], str]]] = defaultdict(list)
    for name in names:
        match = re.fullmatch(r"([^.]+)((?:\.\d+)+)", name)
        if match:
            index = tuple(int(i) - 1 for i in match[2][1:].split("."))
            arrays[match[1]].append((index, name))
        else:
            arrays[name].append(((), name))
    return [
        (old, f"{stem}[{', '.join(map(str, index))}]" if index else stem)
        for stem, elements in arrays.items()
        for index, old in sorted(elements)
    ]
