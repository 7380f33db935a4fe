"""The figures of docs/benchmarks.md, from the raw results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy import stats

__all__ = ["DOCS", "draw_distillation", "draw_error_in_time", "draw_reliability", "draw_scaling"]

DOCS = Path(__file__).parents[1] / "docs"
CURVES = {
    "stein": "#0b6e4f",
    "stein and polish": "#2b5c9e",
    "hutchinson regression": "#c28c1a",
    "stein, teacher score": "#c0392b",
}


def draw_distillation(rows: list[dict[str, Any]]) -> None:
    sizes = sorted({row["features"] for row in rows})
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))
    sheet = Figure(figsize=(3.1 * len(sizes), 2.6 * len(teachers)), layout="constrained")
    axes = sheet.subplots(len(teachers), len(sizes), squeeze=False, sharex="col")
    for row in rows:
        panel = axes[teachers.index(row["teacher"])][sizes.index(row["features"])]
        for name, curve in row["curves"].items():
            seconds = [point["seconds"] for point in curve]
            # The polish starts where the Stein objective ends: that one is drawn on top.
            order = 3 if name == "stein" else 2
            errors = [point["sd"] for point in curve]
            panel.loglog(seconds, errors, color=CURVES[name], label=name, zorder=order)
        panel.axhline(row["hutchinson_one_probe"]["sd"], color="grey", linestyle=":")
        panel.set_title(f"{row['teacher']}, D = {row['features']}", fontsize=9)
        panel.xaxis.set_minor_formatter(NullFormatter())
    for panel in axes[-1]:
        panel.set_xlabel("seconds of training")
    for line in axes:
        line[0].set_ylabel("sd of log p, nat")
    handles = {}
    for panel in axes.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels())))
    handles["one Hutchinson probe, no training"] = axes[0][0].lines[-1]
    sheet.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    sheet.savefig(DOCS / "distillation.png", dpi=110)


def draw_error_in_time(result: dict[str, Any]) -> None:
    sheet = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = sheet.subplots()
    colors = {"spread of the exact divergence": "#999999", **CURVES}
    places = [row["fraction"] for row in result["rows"]]
    for name in [key for key in result["rows"][0] if key != "fraction"]:
        values = [row[name] for row in result["rows"]]
        axes.semilogy(places, values, "o-", markersize=3, color=colors[name], label=name)
    axes.set_xlabel("fraction of the way from data to noise")
    axes.set_ylabel("root mean square, over $\\sqrt{D}$")
    axes.legend(frameon=False, fontsize=9)
    sheet.savefig(DOCS / "error_in_time.png", dpi=130)


def draw_scaling(result: dict[str, Any]) -> None:
    sheet = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = sheet.subplots(1, 2)
    for name, color in zip(result["slopes"], ("#0b6e4f", "#c28c1a", "#c0392b")):
        sizes = [row["features"] for row in result["rows"]]
        cost = [row["over_velocity"][name] for row in result["rows"]]
        left.loglog(sizes, cost, "o-", markersize=4, color=color, label=name)
    left.set_xlabel("D")
    left.set_ylabel("cost of a call, over the velocity alone")
    for way, color in zip(
        dict.fromkeys(row["way"] for row in result["points"]), ("#0b6e4f", "#2b5c9e")
    ):
        chosen = [row for row in result["points"] if row["way"] == way]
        sizes = [row["points"] for row in chosen]
        cost = [row["microseconds_per_point"] for row in chosen]
        right.loglog(sizes, cost, "o-", markersize=4, color=color, label=way)
    right.set_xlabel("points in a batch")
    right.set_ylabel("microseconds a point")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
    sheet.savefig(DOCS / "scaling.png", dpi=130)


def draw_reliability(ratios: dict[str, list[float]], *, apart: str) -> None:
    """Draw errors of evidences over their quoted errors, beside the law that they should have.

    Arguments:
        ratios: errors over quoted errors, by problem.
        apart: the problem that is shown in a colour of its own, and left out of the coverage.
    """
    sheet = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = sheet.subplots(1, 2)
    usual = np.concatenate([values for name, values in ratios.items() if name != apart])
    groups, edges = [usual, np.array(ratios[apart])], np.arange(-4, 4.1, 0.5)
    # What is further out is drawn at the ends.
    clipped = [np.clip(group, -3.99, 3.99) for group in groups]
    left.hist(
        clipped,
        edges,
        stacked=True,
        color=["#2b5c9e", "#c0392b"],
        label=[f"{len(usual)} estimates", f"{apart}: SMC is stuck, and says so"],
    )
    z = np.linspace(-4, 4, 200)
    left.plot(z, 0.5 * len(usual) * stats.norm.pdf(z), color="black", label="N(0, 1)")
    left.set(xlabel="error of log Z, over its quoted error", ylabel="estimates", xlim=(-4, 4))
    left.set_ylim(0, 1.35 * left.get_ylim()[1])  # for the legend
    left.legend(frameon=False, fontsize=9, loc="upper left")

    levels = np.linspace(0.005, 0.995, 199)
    held = np.mean(np.abs(usual)[:, None] < stats.norm.ppf(0.5 + levels / 2), axis=0)
    noise = 2 * np.sqrt(levels * (1 - levels) / len(usual))
    right.fill_between(levels, levels - noise, levels + noise, color="#dddddd", label="by chance")
    right.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    right.plot(levels, held, color="#2b5c9e", linewidth=2, label="found")
    right.set(xlabel="probability of an interval", ylabel="share of truths within", xlim=(0, 1))
    right.set(ylim=(0, 1), aspect="equal")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    sheet.savefig(DOCS / "reliability.png", dpi=130)
