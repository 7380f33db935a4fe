"""What the command line is given, as the library takes it; and what it prints, as JSON."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

import typer
from torch import Tensor

from pyro_stad.data import Periodic
from pyro_stad.density import FlowPrior

__all__ = [
    "description",
    "finite",
    "names_of",
    "parse_bounds",
    "print_json",
    "rows_or_fraction",
    "weights_of",
]


def parse_bounds(entries: list[str]) -> dict[str, Any] | None:
    """Return bounds by name from entries such as ``scale=0,inf`` or ``angle=periodic``."""
    parsed: dict[str, Any] = {}
    for entry in entries:
        match = re.fullmatch(r"([^=]+)=([^,]*),([^,]*)(,\s*periodic)?", entry)
        name, _, period = entry.partition("=")
        try:
            if period.strip() == "periodic":
                parsed[name] = "periodic"
            elif match is None:
                parsed[name] = float(period)
            elif match[4]:
                parsed[name] = Periodic(float(match[2]), float(match[3]))
            else:
                low, high = (float(side) if side.strip() else None for side in match.group(2, 3))
                parsed[name] = (low, high)
        except ValueError:
            raise typer.BadParameter(
                f"--bounds must be NAME=LOW,HIGH, NAME=periodic or NAME=PERIOD; got {entry!r}"
            ) from None
    return parsed or None


def names_of(entries: list[str] | None) -> list[str] | None:
    """Split at commas, but not at those within the brackets of ``theta[0, 1]``."""
    parts = [part.strip() for entry in entries or [] for part in re.split(r",(?![^\[]*\])", entry)]
    return [part for part in parts if part] or None


def weights_of(
    weights: str | None, log_weights: str | None, *, no_weights: bool
) -> str | Literal[False] | None:
    """Return which column has the weights, False for none, None for what the file says."""
    if no_weights and (weights or log_weights):
        raise typer.BadParameter("--no-weights excludes --weights and --log-weights")
    return False if no_weights else weights


def rows_or_fraction(burn_in: float | None) -> float | None:
    """Make a whole number of a number of rows."""
    whole = burn_in is not None and burn_in >= 1 and burn_in.is_integer()
    return int(burn_in) if burn_in is not None and whole else burn_in


def description(prior: FlowPrior) -> dict[str, Any]:
    """Return report and calibration of a prior, ready for JSON."""
    parts = {"report": prior.report, "calibration": prior.calibration}
    return {name: part and part.to_dict() for name, part in parts.items()}


def finite(values: Tensor) -> list[float | None]:
    """JSON has no infinities: the log-density of a point outside the support is null."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def print_json(value: object) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))
