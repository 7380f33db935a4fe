"""Sections of docs/benchmarks.md: evidences, and what they are for."""

from __future__ import annotations

import math
import statistics
from typing import Any

from figures import draw_reliability
from page import read, section, source, table

_EVIDENCES = ("evidence", "evidence_more", "evidence_bridge", "evidence_nested")


@section
def evidence() -> str:
    results = [read(name) for name in _EVIDENCES]
    measured = [row for result in results for row in result["rows"]]
    order = list(dict.fromkeys(row["problem"] for row in measured))
    measured.sort(key=lambda row: order.index(row["problem"]))
    rows = []
    for row in measured:
        errors = row["errors"]
        rms = math.sqrt(statistics.fmean(e**2 for e in errors)) if errors else math.nan
        rows.append(
            [
                row["problem"],
                row["method"],
                "-" if row["method"] == "bridge" else f"{row.get('particles', 1000):,}",
                f"{row['truth']:.3f}",
                f"{statistics.fmean(errors):+.3f}" if errors else "-",
                f"{rms:.3f}" if errors else "-",
                f"{max(map(abs, errors)):.3f}" if errors else "-",
                f"{max(map(abs, row['z'])):.1f}" if errors else "-",
                str(row["refused"]),
                f"{row['calls']:,.0f}" if errors else "-",
            ]
        )
    header = ["problem", "method", "particles", "log Z", "bias", "root mean square", "worst"]
    header += ["worst z", "refused", "likelihoods"]
    every = _coverage(measured)
    rest = _coverage([row for row in measured if row["problem"] != "spike"])
    sources = " ".join(source("evidence", result) for result in results)
    ratios: dict[str, list[float]] = {}
    for row in measured:
        ratios.setdefault(row["problem"], []).extend(row["z"])
    draw_reliability(ratios, apart="spike")
    return (
        "## Evidence against the truth\n\n"
        "SMC and importance sampling: twelve seeds of four runs each; the bridge: twelve chains of "
        "1,000 draws; nested sampling: one seed of four runs, particles being live points. "
        f"{every}. Without the spike, where SMC says that its particles are stuck: {rest}.\n\n"
        "![Errors of evidences over their quoted errors, and how often intervals hold the truth]"
        f"(reliability.png)\n\n{table(header, rows)}\n\n{sources}\n"
    )


def _coverage(rows: list[dict[str, Any]]) -> str:
    z = [value for row in rows for value in row["z"]]
    within = statistics.fmean(abs(value) < 3 for value in z)
    return (
        f"{len(z)} estimates, {within:.1%} of them within three of their own standard errors; the "
        f"ratio has a standard deviation of {statistics.stdev(z):.2f}"
    )


@section
def evidence_cost() -> str:
    result = read("evidence_cost")
    rows = [
        [
            row["problem"],
            row["method"],
            f"{math.sqrt(statistics.fmean(e**2 for e in row['errors'])):.3f}",
            f"{statistics.fmean(row['quoted']):.3f}",
            f"{row['calls']:,.0f}",
            f"{row['calls_to_a_tenth']:,.0f}",
            f"{row['seconds_to_a_tenth'] / _least(result['rows'], row['problem']):.1f}",
        ]
        for row in result["rows"]
    ]
    header = ["problem", "method", "error, root mean square", "quoted error", "likelihoods"]
    header += ["likelihoods to 0.1 nat", "time to 0.1 nat, over the quickest"]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        "## What an evidence costs\n\n"
        "The same likelihood in the same noise, one thread; the price of a root mean square error "
        f"of 0.1 nat grows with the square of the error. {versions}.\n\n"
        f"{table(header, rows)}\n\n{source('evidence_cost', result)}\n"
    )


def _least(rows: list[dict[str, Any]], problem: str) -> float:
    return min(row["seconds_to_a_tenth"] for row in rows if row["problem"] == problem)


@section
def sequential() -> str:
    result = read("sequential")
    rows = [
        [
            row["what"],
            row["method"],
            f"{row['truth']:.3f}",
            f"{row['log_z']:.3f} +- {row['log_z_err']:.3f}",
            f"{row['log_z'] - row['truth']:+.3f}",
            "-" if row["correction"] is None else "{:+.3f} +- {:.3f}".format(*row["correction"]),
        ]
        for row in result["rows"]
    ]
    header = ["evidence", "method", "closed form", "log Z", "error", "correction in it"]
    identity, error = result["identity"]
    return (
        "## Evidence adds up\n\n"
        "The demo's patients. log Z(all) - log Z(A) - log Z(B | the prior learned from A) = "
        f"{identity:+.3f} +- {error:.3f}, zero in closed form.\n\n"
        f"{table(header, rows)}\n\n{source('sequential', result)}\n"
    )


@section
def digits() -> str:
    result = read("digits")
    names = ("accuracy", "mean_confidence", "log_score", "brier")
    rows = [
        [name, str(judged["images"]), *(f"{judged[key]:.2f}" for key in names)]
        for name, judged in result["rows"].items()
    ]
    header = ["priors", "images", "accuracy", "mean confidence", "log score", "Brier score"]
    return (
        "## Which digit is it?\n\n"
        "[The digits](digits.md): held-out images, blurred, noisy, and without their lower rows; "
        "confidence is the posterior probability of the class that is taken.\n\n"
        f"{table(header, rows)}\n\n{source('digits', result)}\n"
    )
