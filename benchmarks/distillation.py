"""Claim: the distilled divergence comes within 0.1 nat of the exact trace.

For mixtures in D = 2, 8, 16, 32 and teachers on the VP path, the optimal-transport path and a
free-form flow: train the teacher, then its divergence (a) by the Stein objective, (b) by the Stein
objective and a polish on exact labels, and, in 16 dimensions, (c) by regression on one Hutchinson
probe and (d) by the Stein objective with the teacher's score, both for as many steps as (a). Error
is that of log p on held-out points, same solver, same grid, against the teacher's exact trace; that
one's own error, against the closed form, stands beside it. Curves of error against training time
are recorded along the way; what a call costs is the business of ``cost.py``.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import RESULTS, arguments, provenance, write
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from page import CURVES, DOCS, read, section, source, table
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Hutchinson, Stein, TrunkHead
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields import AbstractTrunkField, FreeFormField, PathField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.learn import TrainingSettings, train
from pyro_stad.learn.clouds import AbstractCloud, ConditionalCloud, PerturbedCloud, TeacherCloud
from pyro_stad.learn.matching import match
from pyro_stad.learn.maximum_likelihood import train_free_form
from pyro_stad.learn.objectives import (
    AbstractObjective,
    ExactLabels,
    HutchinsonLabels,
    SteinObjective,
)
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import PATHS

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": (
        "--teachers vp ot --features 16 32",
        "--teachers vp ot --features 2 8 --name distillation_low",
        "--teachers cnf --name distillation_cnf",
    ),
    "smoke": ("--features 2 --teachers ot --scale 0.004",),
}

SOLVER = RK4(steps=16)
# The dimension in which the objectives are compared.
COMPARED = 16


class Bench:
    """One teacher, its data, and the reference that every divergence is held against."""

    def __init__(self, name: str, sizes: dict[str, int], scale: float, seed: int) -> None:
        parts = random_mixture(sizes["features"], 5, seed)
        self.name, self.scale = name, scale
        self.generator = torch.Generator().manual_seed(seed)
        self.kept = Batches(sample_mixture(parts, 20_000, seed + 1).float())
        self.held = Batches(sample_mixture(parts, 4_000, seed + 2).float())
        self.points = sample_mixture(parts, 1_000, seed + 3).float()
        torch.manual_seed(seed)
        started = time.perf_counter()
        self.field = self._teacher(sizes)
        self.teacher_seconds = time.perf_counter() - started
        self.field.requires_grad_(False)
        with torch.no_grad():
            self.reference = self.flow(Exact()).log_prob(self.points)
        weights, means, covariances = parts
        components = MultivariateNormal(means, covariances).log_prob(self.points.double()[:, None])
        self.truth = torch.logsumexp(components + weights.log(), -1)

    def settings(self, steps: int, **changes: Any) -> TrainingSettings:
        steps = max(20, round(steps * self.scale))
        base = TrainingSettings(steps, clip_norm=100.0, patience=0, validate_every=steps // 10)
        return replace(base, **changes)

    def flow(self, divergence: AbstractDivergence) -> FlowODE:
        return FlowODE(self.field, divergence, SOLVER)

    def error(self, divergence: AbstractDivergence) -> dict[str, float]:
        with torch.no_grad():
            return moments(self.flow(divergence).log_prob(self.points) - self.reference)

    def cloud(self, batches: Batches, kind: str) -> AbstractCloud:
        if isinstance(self.field, FreeFormField):
            return PerturbedCloud(self.field, batches, RK4(16), generator=self.generator)
        cloud = {"conditional": ConditionalCloud, "teacher": TeacherCloud}[kind]
        return cloud(self.field, batches)

    def _teacher(self, sizes: dict[str, int]) -> AbstractTrunkField:
        options = {"generator": self.generator, "progress": False}
        if self.name == "cnf":
            field = FreeFormField(**sizes)
            settings = self.settings(300, batch_size=256, warmup=20)
            train_free_form(field, self.kept, self.held, settings, **options)
            return field
        on_path = PathField(PATHS[self.name](), **sizes)
        settings = self.settings(5000, learning_rate=5e-3)
        match(on_path, self.kept, self.held, settings, **options)
        return on_path

    def distil(
        self,
        head: TrunkHead,
        objective: AbstractObjective,
        settings: TrainingSettings,
        curve: list[dict[str, float]],
        kind: str = "conditional",
    ) -> dict[str, float]:
        """Train ``head``; append to ``curve`` the error against seconds of training."""
        cloud, clock = self.cloud(self.kept, kind), {"start": time.perf_counter(), "pause": 0.0}
        before = curve[-1]["seconds"] if curve else 0.0
        frame = objective.frame(self.field.features, settings.batch_size)

        def loss(module: nn.Module, source: torch.Generator) -> Tensor:
            points = cloud.draw(settings.batch_size, source, frame=frame)
            return objective(module, self.field, points, source).mean()

        def validate(module: nn.Module) -> float:
            now = time.perf_counter()
            seconds = before + now - clock["start"] - clock["pause"]
            curve.append({"seconds": seconds, **self.error(Stein(module))})
            clock["pause"] += time.perf_counter() - now
            # The last weights, not the best by this very error.
            return -float(len(curve))

        train(head, loss, validate, settings, generator=self.generator, progress=False)
        return curve[-1]

    def head(self) -> TrunkHead:
        torch.manual_seed(1)
        return TrunkHead.for_field(self.field)


def moments(error: Tensor) -> dict[str, float]:
    return {"sd": error.std().item(), "bias": error.mean().item()}


def hutchinson_errors(bench: Bench) -> dict[str, float]:
    """Return the error of one frozen probe: sd over points, root mean square over 16 seeds."""
    errors = [bench.error(Hutchinson(1, seed)) for seed in range(16)]
    rms = {key: math.sqrt(statistics.fmean(e[key] ** 2 for e in errors)) for key in ("sd", "bias")}
    return {**rms, "total": math.hypot(rms["sd"], rms["bias"])}


def run(name: str, sizes: dict[str, int], scale: float, seed: int) -> dict[str, Any]:
    bench = Bench(name, sizes, scale, seed)
    settings = bench.settings(3000, batch_size=1024)
    stein: list[dict[str, float]] = []
    head = bench.head()
    alone = dict(bench.distil(head, SteinObjective(), settings, stein))
    polish = list(stein)
    # The rate that serves a field on a path makes a free-form field's head worse.
    rate = 5e-3 if name == "cnf" else 1e-2
    bench.distil(head, ExactLabels(), bench.settings(1500, learning_rate=rate), polish)
    result = {
        "teacher": name,
        **sizes,
        "teacher_seconds": bench.teacher_seconds,
        "exact_against_truth": moments(bench.reference - bench.truth),
        "stein": alone,
        "stein_and_polish": polish[-1],
        "hutchinson_one_probe": hutchinson_errors(bench),
    }
    curves = {"stein": stein, "stein and polish": polish}
    if sizes["features"] == COMPARED:
        curves |= compared(bench, settings, name)
    return {**result, "curves": curves}


def compared(
    bench: Bench, settings: TrainingSettings, name: str
) -> dict[str, list[dict[str, float]]]:
    """Return the curves of the other objectives, for as many steps as the Stein objective got."""
    regression: list[dict[str, float]] = []
    bench.distil(bench.head(), HutchinsonLabels(), settings, regression)
    curves = {"hutchinson regression": regression}
    if name != "cnf":
        curves["stein, teacher score"] = teacher_score = []
        bench.distil(bench.head(), SteinObjective(), settings, teacher_score, kind="teacher")
    return curves


def main() -> None:
    parser = arguments(__doc__, "distillation")
    parser.add_argument("--teachers", nargs="+", default=["vp", "ot", "cnf"])
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8, 16, 32])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training budget")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = []
    for features in options.features:
        for name in options.teachers:
            sizes = {"features": features, "width": options.width, "depth": options.depth}
            rows.append(run(name, sizes, options.scale, options.seed))
            summary = {k: v for k, v in rows[-1].items() if k != "curves"}
            print(summary, flush=True)
            result = {"solver": repr(SOLVER), "scale": options.scale, "rows": rows}
            write(options.name, {"provenance": made, **result})


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


def distillation_rows(measured: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["teacher"],
            str(row["features"]),
            f"{row['stein']['sd']:.3f} ({row['stein']['bias']:+.3f})",
            f"{row['stein_and_polish']['sd']:.3f} ({row['stein_and_polish']['bias']:+.3f})",
            f"{row['hutchinson_one_probe']['sd']:.2f}",
            f"{row['exact_against_truth']['sd']:.2f} ({row['exact_against_truth']['bias']:+.2f})",
            f"{row['stein_and_polish']['seconds']:.0f}",
        ]
        for row in measured
    ]
    header = [
        "teacher",
        "D",
        "Stein: sd (bias)",
        "Stein and polish: sd (bias)",
        "one Hutchinson probe: sd",
        "exact trace against the truth: sd (bias)",
        "seconds of distillation",
    ]
    return table(header, rows)


def objective_rows(measured: list[dict[str, Any]]) -> str:
    rows = []
    for row in measured:
        for name, curve in row["curves"].items():
            if name != "stein and polish" and len(row["curves"]) > 2:
                end = curve[-1]
                errors = f"{end['sd']:.3f} ({end['bias']:+.3f})"
                rows.append([row["teacher"], str(row["features"]), name, errors])
    return table(["teacher", "D", "objective", "sd (bias)"], rows)


@section(10)
def page() -> str:
    results = [read(path.stem) for path in RESULTS.glob("distillation*.json")]
    results.sort(key=lambda result: result["provenance"]["date"])
    # A later run replaces what it repeats of an earlier one.
    latest = {(r["features"], r["teacher"]): r for result in results for r in result["rows"]}
    order = {name: index for index, name in enumerate(("vp", "ot", "cnf"))}
    measured = [latest[key] for key in sorted(latest, key=lambda key: (key[0], order[key[1]]))]
    draw_distillation(measured)
    sources = "\n\n".join(source("distillation", result) for result in results)
    return (
        "## Distilled divergence against the exact trace\n\n"
        "Error of log p in nats on 1,000 held-out points of five-component mixtures, against the "
        f"exact trace of the same teacher on the same grid, {results[0]['solver']}. Trunks of "
        "three layers of 128. The probe's error is the root mean square over 16 seeds. The last "
        "error is the teacher's own, against the closed-form density of the data without noise.\n\n"
        f"{distillation_rows(measured)}\n\n"
        "Other objectives, for as many steps as the Stein objective got:\n\n"
        f"{objective_rows(measured)}\n\n"
        f"![Error against training time](distillation.png)\n\n{sources}\n"
    )


if __name__ == "__main__":
    main()
