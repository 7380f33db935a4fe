"""What the sections of docs/benchmarks.md share: results, tables, sources, and their places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS

__all__ = ["CURVES", "DOCS", "SECTIONS", "by", "read", "section", "source", "table"]

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS: dict[int, Callable[[], str]] = {}
CURVES = {
    "stein": "#0b6e4f",
    "stein and polish": "#2b5c9e",
    "hutchinson regression": "#c28c1a",
    "stein, teacher score": "#c0392b",
}


def section(place: int) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Put a part on the page; ``place`` says after which others."""
    if not isinstance(place, int):
        raise TypeError("a section needs its place: @section(120)")

    def put(part: Callable[[], str]) -> Callable[[], str]:
        if place in SECTIONS:
            raise ValueError(f"place {place} is taken by {SECTIONS[place].__module__}")
        SECTIONS[place] = part
        return part

    return put


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def source(name: str, result: dict[str, Any]) -> str:
    made = result["provenance"]
    state = "" if made["clean"] else ", with uncommitted changes"
    return (
        f"`benchmarks/{name}.py`, commit {made['commit'][:10]}{state}, {made['date'][:10]}, "
        f"{made['processor']}, {made['threads']} thread(s), torch {made['versions']['torch']}."
    )


def by(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return rows by the values of keys, in the order in which they come."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
