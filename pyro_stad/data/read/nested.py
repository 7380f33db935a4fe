"""Text of nested samplers with a layout of their own: UltraNest's, MultiNest's.

UltraNest writes ``chains/weighted_post.txt`` into its folder, with a header of names. Versions
differ: the header names all columns, or the parameters alone, after a weight and a log-likelihood;
the points of the unit cube beside it are no posterior. MultiNest's ``post_equal_weights.dat`` has
the parameters and then the log-likelihood.
"""

from __future__ import annotations

from pathlib import Path

from pyro_stad.data.layout import element_names
from pyro_stad.data.read.base import AbstractReader, Found, matrix_columns
from pyro_stad.data.read.getdist import names_file, read_names
from pyro_stad.data.read.text import numbers, read_text

__all__ = ["EqualWeights", "UltraNest"]

_EQUAL = "post_equal_weights.dat"


class UltraNest(AbstractReader):
    """Reads the folder of a run, or one of its tables of samples."""

    name = "UltraNest (folder of a run, or weighted_post.txt)"

    def recognises(self, path: Path) -> bool:
        return _table(path).is_file() and "weighted_post" in _table(path).name

    def read(self, path: Path) -> Found:
        file = _table(path)
        if "untransformed" in file.name:
            raise ValueError(f"{file} holds points of the unit cube; read weighted_post.txt")
        header = read_text(file).partition("\n")[0].lstrip("#").split() or _names(file)
        table = numbers(file, skip=1)
        weighted = not file.name.startswith("equal")
        names = header[2:] if header[:1] == ["weight"] else header
        skipped = 2 if weighted else 0
        if table.shape[1] != len(names) + skipped:
            raise ValueError(f"{file} has {table.shape[1]} columns, but the names {header}")
        weights = table[:, 0] if weighted else None
        return Found(matrix_columns(table[:, skipped:], names), weights, files=(file,))


def _table(path: Path) -> Path:
    return path / "chains" / "weighted_post.txt" if path.is_dir() else path


def _names(file: Path) -> list[str]:
    """Return the names that stand beside a table without them."""
    beside_it = file.with_suffix(".paramnames")
    return read_text(beside_it).split() if beside_it.is_file() else []


class EqualWeights(AbstractReader):
    """Reads MultiNest's samples of equal weights."""

    name = f"MultiNest ({_EQUAL})"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and path.name.endswith(_EQUAL)

    def read(self, path: Path) -> Found:
        table = numbers(path)
        root = path.with_name(path.name.removesuffix(_EQUAL))
        source, count = names_file(root), table.shape[1] - 1
        if source is None:
            columns = matrix_columns(table[:, :-1], element_names("x", (count,)))
            return Found(columns, named=False, files=(path,))
        names, labels, derived = read_names(source)
        if len(names) != count:
            raise ValueError(f"{path} has {count} parameters, but {source} names {names}")
        why = dict.fromkeys(derived, "derived parameter")
        columns = matrix_columns(table[:, :-1], names)
        return Found(columns, labels=labels, left_out=why, files=(path, source))
