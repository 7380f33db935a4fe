"""Sections of docs/benchmarks.md: chains, angles, and data in tails."""

from __future__ import annotations

from typing import Any

from page import read, section, source, table


@section
def chain_split() -> str:
    result = read("chain_split")
    rows = [
        [
            row["samples"],
            f"{row['rows']:,}",
            f"{row['effective']:,.0f}",
            f"{row['divergence']:.3f} +- {row['divergence_err']:.3f}",
            "yes" if row["warned"] else "no",
        ]
        for row in result["rows"]
    ]
    header = ["samples", "rows", "worth independent rows", "divergence, nat", "warned"]
    return (
        "## Rows that come again\n\n"
        "Kullback-Leibler divergence of a fit from the law of its samples, normal in five "
        "dimensions. Repeats become weights, and of a chain whole stretches are held out.\n\n"
        f"{table(header, rows)}\n\n{source('chain_split', result)}\n"
    )


@section
def angles() -> str:
    result = read("angles")
    rows = [
        [
            row["law"],
            *(f"{row[kind]['divergence']:.4f}" for kind in ("periodic", "real")),
            f"{row['mass']:.4f}",
            f"{row['jump']:.1e}",
        ]
        for row in result["rows"]
    ]
    header = ["law of the angle", "divergence, periodic", "divergence, as a real number"]
    header += ["mass of one period", "jump at the seam, nat"]
    return (
        "## Angles\n\n"
        "Kullback-Leibler divergence, in nats, of a fit to 4,000 samples of an angle and of a "
        "number that goes with it; fresh samples.\n\n"
        f"{table(header, rows)}\n\n{source('angles', result)}\n"
    )


@section
def tails() -> str:
    result = read("tails")
    laws = list(dict.fromkeys(row["law"] for row in result["rows"]))
    rows = [_tail_row(law, [r for r in result["rows"] if r["law"] == law]) for law in laws]
    header = ["prior", "noise of the datum", "worst error, single", "worst error, double"]
    header += ["worst by icdf, single", "worst by icdf, double", "warned"]
    return (
        "## Evidence of data in tails\n\n"
        "One datum far out in the tail of a prior: log Z less quadrature, in nats. Beside it the "
        "usual map of noise, the prior's own `icdf` of the normal probability, in the same "
        "precision. Warned: how often `log_evidence` said that its two methods disagree.\n\n"
        f"{table(header, rows)}\n\n{source('tails', result)}\n"
    )


def _tail_row(law: str, rows: list[dict[str, Any]]) -> list[str]:
    cells = [law, ", ".join(f"{u:+.0f}" for u in dict.fromkeys(row["noise"] for row in rows))]
    for key in ("error", "icdf_error"):
        for dtype in ("float32", "float64"):
            found = [row[key] for row in rows if row["dtype"] == dtype and row[key] is not None]
            worst = max(found, key=abs, default=None)
            cells.append("-" if worst is None else f"{worst:+.3f}")
    return [*cells, f"{sum(row['warned'] for row in rows)} of {len(rows)}"]
