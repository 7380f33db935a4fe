"""What the sections of docs/benchmarks.md share: results, tables, sources, and their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from common import RESULTS

__all__ = ["SECTIONS", "read", "section", "source", "table"]

SECTIONS: list[Callable[[], str]] = []


def section(part: Callable[[], str]) -> Callable[[], str]:
    """Put a part on the page, after those before it."""
    SECTIONS.append(part)
    return part


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
