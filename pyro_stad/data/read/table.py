"""Tables of text: any delimiter, a header or none, in the first line or in the last comment.

What decides, in this order: lines that begin with # are comments; the delimiter is a semicolon, a
tab, a comma or a bar, if the first line below the header has one, else white space; a first line
that is all numbers is no header, unless it counts the columns, as pandas names those of an array. A
column without a name is the index that pandas or R wrote.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from pyro_stad.data.layout import element_names
from pyro_stad.data.read.base import AbstractReader, Found
from pyro_stad.data.read.text import head, read_text

__all__ = ["Table"]

# Double precision as Fortran writes it: 1.25D+00.
_FORTRAN = re.compile(r"(\d\.\d*|\.\d+)[dD]([+-]?\d+)")
_INDEX = "index of the rows"


class Table(AbstractReader):
    """Reads any table of text."""

    name = "a table of text (.csv, .tsv, .dat, .txt)"

    def recognises(self, path: Path) -> bool:
        return path.is_file() and (b"\0" not in head(path, 4096) or _is_wide(path))

    def read(self, path: Path) -> Found:
        header, rows, delimiter = _header_and_rows(path)
        if not rows:
            raise ValueError(f"{path} has no rows")
        labels: dict[str, str] = {}
        if header is not None and header[:2] == ["", ""] and rows[0].startswith("labels"):
            header, rows, labels = _anesthetic(header, rows, delimiter)
        frame = _parse(rows, delimiter, path)
        names, left_out = _names(header, frame, path)
        columns: dict[str, np.ndarray] = {}
        for name, position in names.items():
            values = _numbers(frame[position], name, path)
            if values is None:
                left_out.setdefault(name, "text")
            else:
                columns[name] = values
                if name == "index" and _counts(values):
                    left_out[name] = _INDEX
        return Found(
            columns, labels=labels, left_out=left_out, named=header is not None, files=(path,)
        )


def _is_wide(path: Path) -> bool:
    return head(path, 2) in (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b")


def _header_and_rows(path: Path) -> tuple[list[str] | None, list[str], str | None]:
    """Return the names if there are any, the lines below them, and the delimiter."""
    text = _FORTRAN.sub(r"\1e\2", read_text(path))
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((i for i, s in enumerate(lines) if not s.lstrip().startswith("#")), len(lines))
    rows = [line for line in lines[start:] if not line.lstrip().startswith("#")]
    if not rows:
        return None, [], None
    delimiter = next((mark for mark in ";\t,|" if mark in rows[min(1, len(rows) - 1)]), None)
    first = _fields(rows[0], delimiter)
    second = _fields(rows[min(1, len(rows) - 1)], delimiter)
    width = len(second)
    last = len(_fields(rows[-1], delimiter))
    if last < width:
        raise ValueError(
            f"{path} ends in a row of {last} where the others have {width}: was it cut short? Take "
            "that row away, or write the file again"
        )
    numeric = all(_is_number(field, delimiter) for field in first)
    if not numeric or _counts_columns(first, second):
        # A name of several words above a single column.
        return (first if width > 1 else [rows[0].strip().strip("\"'")]), rows[1:], delimiter
    if start:
        above = _fields(lines[start - 1].lstrip("# \t"), delimiter)
        if len(above) == width and not all(_is_number(field, delimiter) for field in above):
            return above, rows, delimiter
    return None, rows, delimiter


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return [field.strip("\"'") for field in line.split()]
    return [f.strip() for f in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _counts_columns(first: list[str], second: list[str]) -> bool:
    """Tell whether a first line is 0, 1, 2, ..., maybe after the empty name of an index.

    Above integers it may be a row like them, unless there is such an empty name.
    """
    has_index = first[0] == ""
    names = first[1:] if has_index else first
    counts = len(first) > 1 and names == [str(place) for place in range(len(names))]
    return counts and (has_index or not all(field.isdigit() for field in second))


def _is_number(field: str, delimiter: str | None) -> bool:
    try:
        float(field.replace(",", ".") if delimiter == ";" else field or "nan")
    except ValueError:
        return field.upper() in ("NA", "N/A", "NULL", "-")
    return True


def _parse(rows: list[str], delimiter: str | None, path: Path) -> Any:
    import pandas

    # A decimal comma goes with a semicolon, in half of Europe's spreadsheets.
    comma = delimiter == ";" and "," in rows[0] and "." not in rows[0]
    try:
        return pandas.read_csv(
            io.StringIO("\n".join(rows)),
            sep=r"\s+" if delimiter is None else delimiter,
            header=None,
            index_col=False,
            skipinitialspace=True,
            decimal="," if comma else ".",
            # The fast parser errs in the last digits.
            float_precision="round_trip",
        )
    except (pandas.errors.ParserError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a table: {reason}") from error


def _names(
    header: list[str] | None, frame: Any, path: Path
) -> tuple[dict[str, int], dict[str, str]]:
    """Return positions by name, and which columns are an index."""
    width = frame.shape[1]
    if header is None:
        return {name: i for i, name in enumerate(element_names("x", (width,)))}, {}
    # R names the rows, and gives the column of their names no name of its own.
    header = ["", *header] if len(header) == width - 1 else header
    # A delimiter at the end of each line makes a column of nothing.
    if len(header) in (width, width + 1) and not header[-1] and frame[width - 1].isna().all():
        header = header[: width - 1]
    if len(header) > width or len(header) < width - 1:
        raise ValueError(f"{path} names {len(header)} columns, and its rows have {width}")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has several columns with the names {repeated}")
    names = {name or "Unnamed: 0": i for i, name in enumerate(header)}
    return names, {name: _INDEX for name in names if name.startswith("Unnamed: ")}


def _anesthetic(
    header: list[str], rows: list[str], delimiter: str | None
) -> tuple[list[str], list[str], dict[str, str]]:
    """Return names, rows and labels of a table of anesthetic, which has a header of three lines."""
    texts, weights = (_fields(row, delimiter) for row in rows[:2])
    labels = {name: text.strip("$") for name, text in zip(header[2:], texts[2:])}
    return ["", weights[1], *header[2:]], rows[2:], labels


def _numbers(column: Any, name: str, path: Path) -> np.ndarray | None:
    """Return a column of numbers; None for one of text.

    Raises:
        ValueError: for numbers with some text among them, naming the first.
    """
    import pandas

    if column.dtype.kind in "fiub":
        return column.to_numpy(np.float64)
    values = pandas.to_numeric(column, errors="coerce")
    bad = values.isna() & column.notna()
    if bad.all() or not values.notna().any():
        return None
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise ValueError(f"{path} has {column[row]!r} in row {row} of {name!r}, among numbers")
    return values.to_numpy(np.float64)


def _counts(values: np.ndarray) -> bool:
    """Tell whether a column is 0, 1, 2, ... or 1, 2, 3, ..."""
    return bool(len(values) and values[0] in (0, 1) and (np.diff(values) == 1).all())
