"""Opening plain text: compressed or not, with or without a byte-order mark; roots of many files."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from pathlib import Path

import numpy as np

__all__ = ["beside", "chain_files", "head", "numbers", "read_text"]

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def head(path: Path, count: int = 8) -> bytes:
    """Return the first bytes of a file; none of a folder, or of what does not exist."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(count)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: if it is empty, or no text.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        # Names in the old encoding of Western Europe; any byte has a meaning in it.
        text = raw.decode("latin-1")
    if "\0" in text:
        raise ValueError(f"{path} is neither text nor a format that is known")
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def numbers(path: Path, skip: int = 0) -> np.ndarray:
    """Return a table of nothing but numbers, ``(N, K)``, lines that begin with # apart.

    Arguments:
        path: the file.
        skip: lines of header.

    Raises:
        ValueError: if it is anything else.
    """
    lines = read_text(path).splitlines()[skip:]
    lines = [s for s in lines if s.strip() and s.lstrip()[0] != "#"]
    if not lines:
        raise ValueError(f"{path} has no rows")
    try:
        return np.loadtxt(io.StringIO("\n".join(lines)), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error


def beside(path: Path, ending: str) -> Path:
    """Return the path with ``ending`` put on, as ``root`` becomes ``root.paramnames``."""
    return path.with_name(path.name + ending)


def chain_files(root: Path, ending: str = "txt", marks: str = "_.") -> list[Path]:
    """Return ``root.txt``, ``root_1.txt``, ``root.1.txt``, ... by their number."""
    if not root.name or not root.parent.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(root.name)}(?:[{marks}](\d+))?\.{ending}")
    found = ((pattern.fullmatch(file.name), file) for file in root.parent.iterdir())
    return [f for _, f in sorted((int(m[1] or 0), f) for m, f in found if m and f.is_file())]
