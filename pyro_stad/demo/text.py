"""The demonstration as text: one compact table a part, and what it says."""

from __future__ import annotations

from typing import Any

__all__ = ["HEADER", "rows", "text"]

HEADER = ("answer", "mean", "sd", "R-hat", "ESS", "divergences")
_TITLES = {
    "kinetics": "Enzyme kinetics: a ridge between walls, after four measurements",
    "regression": "Regression of the diabetes study: nearly normal, after half of the patients",
}


def rows(part: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of cells, as ``HEADER`` names them, for each answer of a part."""
    found: list[tuple[str, ...]] = []
    for name, answer in part["answers"].items():
        chained = "r_hat" in answer
        found.append(
            (
                name,
                f"{answer['worst_mean_error']:.3f}",
                f"{answer['worst_sd_error']:.1%}",
                f"{answer['r_hat']:.3f}" if chained else "-",
                f"{answer['ess_bulk']:.0f}" if chained else "-",
                str(answer["divergences"]) if chained else "-",
            )
        )
    return found


def text(summary: dict[str, Any]) -> str:
    """Return the summary of ``run_demo`` for a terminal."""
    lines = []
    for name, title in _TITLES.items():
        part = summary[name]
        lines += [title, "  largest errors, of means in posterior sds and of sds, by each prior:"]
        for cells in (HEADER, *rows(part)):
            lines.append(f"  {cells[0]:<31}" + "".join(f"{cell:>12}" for cell in cells[1:]))
        lines.append(_evidence(part["evidence"]))
        if "comparison" in part:
            lines.append(_comparison(part["comparison"]))
        lines += [f"  {summary['says'][name]}", ""]
    return "\n".join(lines).rstrip()


def _evidence(evidence: dict[str, Any]) -> str:
    others = "".join(
        f", {value:.3f} with a {name}" for name, value in evidence.get("normal fits", {}).items()
    )
    line = (
        f"  log Z of B given A: {evidence['log_z']:.3f} +- {evidence['log_z_err']:.3f} with the "
        f"learned prior{others}; truth {evidence['truth']:.3f}"
    )
    return "\n".join([line, *(f"    warning: {text}" for text in evidence["warnings"])])


def _comparison(models: dict[str, Any]) -> str:
    each = ", ".join(
        f"{name} {found['log_z']:.3f} +- {found['log_z_err']:.3f} (truth {found['truth']:.3f})"
        for name, found in models.items()
    )
    best, found = next(iter(models.items()))
    return f"  log Z of all the data: {each}; probability of {best}: {found['probability']:.2f}"
