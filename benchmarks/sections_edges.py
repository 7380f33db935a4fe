"""Sections of docs/benchmarks.md: what holds away from the bulk of the samples."""

from __future__ import annotations

import statistics
from typing import Any

from page import read, section, source, table


def _by(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return rows by the values of keys, in the order in which they come."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


@section
def mass() -> str:
    result = read("mass")
    sizes = sorted({row["dimensions"] for row in result["rows"]})
    rows = []
    for (law,), of_law in _by(result["rows"], "law").items():
        cells = []
        for size in sizes:
            found = [r["mass"]["chosen"][0] for r in of_law if r["dimensions"] == size]
            cells.append(f"{min(found):.3f} to {max(found):.3f}" if found else "")
        rows.append([law, *cells])
    seeds = len({row["seed"] for row in result["rows"]})
    return (
        "## Mass of a density\n\n"
        f"Mass of exp(log_prob) over the whole space, least and largest of {seeds} seeds, of the "
        f"way that calibration took; budget `{result['budget']}`, 10,000 samples.\n\n"
        f"{table(['law', *(f'D = {size}' for size in sizes)], rows)}\n\n{source('mass', result)}\n"
    )


@section
def mass_by_way() -> str:
    result = read("mass_ways")
    ways = list(dict.fromkeys(way for row in result["rows"] for way in row["mass"]))
    rows = []
    for (law,), of_law in _by(result["rows"], "law").items():
        each = ([r["mass"][way][0] for r in of_law if way in r["mass"]] for way in ways)
        rows.append([law, *(f"{max(found, key=lambda m: abs(m - 1)):.3f}" for found in each)])
    sizes = sorted({row["dimensions"] for row in result["rows"]})
    return (
        "### Of every way that a calibration may take\n\n"
        f"The mass that is farthest from one, of D = {', '.join(map(str, sizes))}, one seed. But "
        "for the one that was chosen, ways are not normalised by a calibration.\n\n"
        f"{table(['law', *ways], rows)}\n\n{source('mass_ways', result)}\n"
    )


@section
def walls() -> str:
    result = read("walls")
    known = _by(result["rows"], "kind", "law")
    ends = [
        [
            law,
            f"{max(row['largest_error'] for row in found):.1%}",
            f"{statistics.median(row['largest_error'] for row in found):.1%}",
            f"{max(abs(row['last_percent']) for row in found):.1%}",
        ]
        for (kind, law), found in known.items()
        if kind == "wall"
    ]
    tails = [
        [
            law,
            *(
                f"{statistics.median(abs(row[kind][at]) for row in found for at in (1, 2)):.0%}, "
                f"{max(abs(row[kind][at]) for row in found for at in (1, 2)):.0%}"
                for kind in ("quantiles", "densities")
            ),
        ]
        for (kind, law), found in known.items()
        if kind == "tail"
    ]
    header = ["law", "density near the wall, worst", "median of seeds", "mass of the last percent"]
    return (
        "## Walls and tails\n\n"
        "Density over the truth down to a thousandth of a standard deviation from a wall, and the "
        "mass of the percent next to it. A hundred of the 10,000 samples are in that percent: "
        "chance alone is 10 %. Seeds, budget: "
        f"{len({row['seed'] for row in result['rows']})}, `{result['budget']}`.\n\n"
        f"{table(header, ends)}\n\n"
        "Tails: errors of the quantiles 0.5 and 99.5 % of draws and of the density there, median "
        "and worst. Fifty samples are beyond each.\n\n"
        f"{table(['law', 'quantile', 'density'], tails)}\n\n{source('walls', result)}\n"
    )


@section
def coverage() -> str:
    result = read("coverage")
    rows = []
    for (law, place), found in _by(result["rows"], "law", "place").items():
        given = [row for row in found if not row["refused"]]
        z = [row["z"] for row in given]
        rows.append([
            law, "in the bulk" if place == "bulk" else "off the ridge", str(len(found)),
            str(len(found) - len(given)),
            f"{sum(abs(v) < 3 for v in z)} of {len(z)}",
            f"{statistics.pstdev(z):.2f}" if len(z) > 1 else "",
            f"{max(abs(row['log_z'] - row['truth']) for row in given):.2f}" if given else "",
        ])  # fmt: skip
    header = ["law", "likelihoods", "number", "refused", "within three errors", "sd of z"]
    return (
        "## Errors of evidences of learned priors\n\n"
        f"log Z with priors learned from 10,000 samples, budget `{result['budget']}`, against that "
        "of the law by quadrature; z in units of the quoted error.\n\n"
        f"{table([*header, 'largest error given, nat'], rows)}\n\n{source('coverage', result)}\n"
    )


@section
def price() -> str:
    result, keys = read("price"), ("alone", "fit", "one", "thousand")
    header = [
        "samples",
        "fit without members",
        "fit",
        "value and gradient, one point",
        "a thousand",
    ]
    rows = [
        [row["samples"], *(f"{row['ratio'][key]:.2f}" for key in keys)] for row in result["rows"]
    ]
    return (
        "## What margins, gate, alarms and members cost\n\n"
        f"Time over that of commit {result['before'][:10]}, which had none of them. Budget "
        f"`{result['budget']}`.\n\n{table(header, rows)}\n\n"
        f"{source('price', result)}\n"
    )


@section
def learning() -> str:
    result = read("learning")
    rows = [
        [
            law,
            f"{statistics.mean(row['covered'] for row in found):.1%}",
            f"{min(row['covered'] for row in found):.0%} to "
            f"{max(row['covered'] for row in found):.0%}",
            f"{statistics.mean(row['error'] for row in found):.3f}",
            f"{statistics.mean(row['learning_error'] for row in found):.3f}",
            f"{max(row['factor'] for row in found):.2g}",
        ]
        for (law,), found in _by(result["rows"], "law").items()
    ]
    header = ["law", "covered", "by seeds", "error, nat", "`learning_error`", "largest factor"]
    return (
        "## Error of learning\n\n"
        "Share of fresh points of the bulk at which the bound `learning_error(x, level=0.9)` holds "
        "against the law itself; the error of `log_prob` and its standard error, root mean "
        f"squares. Budget `{result['budget']}`, 10,000 samples.\n\n"
        f"{table(header, rows)}\n\n{source('learning', result)}\n"
    )


@section
def tension() -> str:
    result = read("tension")
    apart = sorted({row["apart"] for row in result["rows"]})
    rows = []
    for (law,), found in _by(result["rows"], "law").items():
        cells = []
        for k in apart:
            here = [row for row in found if row["apart"] == k]
            given = [row for row in here if not row["refused"]]
            refused = f", {len(here) - len(given)} refused" if len(given) < len(here) else ""
            worst = max((abs(row["z"]) for row in given), default=None)
            cells.append("refused" if worst is None else f"{worst:.1f}{refused}")
        rows.append([law, *cells])
    return (
        "## Posteriors in tension\n\n"
        "A learned posterior times another of its shape, some standard deviations away: the "
        "largest error of log Z in units of the quoted one, or that it is refused. Budget "
        f"`{result['budget']}`.\n\n"
        f"{table(['law', *(f'{k:g} sd' for k in apart)], rows)}\n\n{source('tension', result)}\n"
    )


@section
def alone() -> str:
    result = read("alone")
    names = {"density": "NUTS on the density", "noise": "NUTS on the noise", "draws": "draws"}
    rows = [
        [
            row["law"], names[row["route"]], f"{row.get('effective', result['draws']):.0f}",
            str(row.get("divergences", "")), f"{row['median']:.3f}",
            f"{row['mean']:.3f}" if "mean" in row else "", f"{row['outer']:.0%}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["law, D = 2", "by", "effective draws", "divergences", "median", "mean"]
    return (
        "## NUTS on the prior alone\n\n"
        "Largest errors of two coordinates: median and mean in standard deviations of the law (or "
        "half its central 68 percent), and the quantiles 0.5 and 99.5 percent, as a share of their "
        f"distance from the median. {result['draws']:,} draws, budget `{result['budget']}`; of so "
        "many, forty lie beyond such a quantile, and fewer of effective ones.\n\n"
        f"{table([*header, 'outer quantiles'], rows)}\n\n{source('alone', result)}\n"
    )


@section
def edges() -> str:
    result = read("edges")
    rows = [
        [
            law,
            way,
            f"{statistics.mean(row['loss'] for row in found):.4f}",
            f"{statistics.mean(row['held_out'] for row in found):.4f}",
            *(f"{statistics.mean(row['off'][i] for row in found):+.2f}" for i in (0, 1)),
            f"{statistics.mean(row['seconds'] for row in found):.0f}",
        ]
        for (law, way), found in _by(result["rows"], "law", "way").items()
    ]
    header = ["law", "training", "loss on fresh points, nat", "held-out log-density"]
    return (
        "## Off the ridge, by other trainings\n\n"
        "What was tried to make the flow steeper where there are no samples: log Z less the truth "
        "for two likelihoods there (banana: the hollow at (0, 0.5) and (0, 1); modes: the valley, "
        "and beyond a mode), means of "
        f"{len({row['seed'] for row in result['rows']})} seeds. None is kept.\n\n"
        f"{table([*header, 'first', 'second', 'seconds'], rows)}\n\n{source('edges', result)}\n"
    )
