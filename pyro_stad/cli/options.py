"""Options that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsJson",
    "BurnIn",
    "Given",
    "LogWeights",
    "NoProgress",
    "NoWeights",
    "Precision",
    "PriorFile",
    "Seed",
    "Weights",
]


PriorFile = Annotated[Path, typer.Argument(help="A prior that `pyro-stad fit` wrote.")]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress bars.")]


Given = Annotated[
    list[str] | None,
    typer.Option(help="A coordinate of the context of a conditional flow, name=value; for each."),
]


Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


Weights = Annotated[
    str | None,
    typer.Option(help="Column that holds weights. Formats that have weights need no telling."),
]


LogWeights = Annotated[
    str | None, typer.Option(help="Column that holds the logarithms of weights.")
]


NoWeights = Annotated[bool, typer.Option("--no-weights", help="Take all rows as equal.")]


BurnIn = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="What to leave out at the beginning of each chain: a fraction below 1, or rows. "
        "By default only what the file marks as warm-up.",
    ),
]


class Precision(StrEnum):
    """Floating-point types of a prior."""

    float32 = "float32"
    float64 = "float64"
