"""Claims: the distilled divergence is flat in D per network call; a million points fit in 2 GB.

(a) One call of velocity and divergence, over one of the velocity alone, for D from 2 to 1,024, with
the slope in D of what the divergence adds, from D = 16 on. (b) The log-density of 1 to a million
points in 16 dimensions, along the constant curve and by the flow: microseconds a point, the most
memory, and whether rows of the large batch are, to the bit, what they are on their own. One
thread; networks are untrained, but no weight is zero.
"""

from __future__ import annotations

import math
import resource
from functools import partial
from typing import Any

import torch
from common import arguments, median_seconds, provenance, write
from matplotlib.figure import Figure
from page import DOCS, read, section, source, table

from pyro_stad.divergence import Exact, Hutchinson, Stein, TrunkHead
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields import PathField
from pyro_stad.likelihood import AbstractLikelihood, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "quick": ("--features 2 16 64 --points 1 1000 --name quick_scaling",),
    "smoke": ("--features 2 16 32 --points 1 16 --repeats 1",),
}


def networks(features: int, seed: int) -> tuple[PathField, Stein]:
    torch.manual_seed(seed)
    field = PathField(OptimalTransport(), features, width=128, depth=3)
    head = Stein(TrunkHead.for_field(field))
    with torch.no_grad():
        for parameter in (*field.parameters(), *head.parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))
    return field.requires_grad_(False), head.requires_grad_(False)


def per_call(features: int, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    field, head = networks(features, seed)
    t, x = torch.full((batch,), 0.7), torch.randn(batch, features)
    divergences: dict[str, AbstractDivergence] = {
        "stein": head, "hutchinson": Hutchinson(1), "exact": Exact(),
    }  # fmt: skip
    runs = {
        name: partial(divergence.velocity_and_divergence, field, t, x)
        for name, divergence in divergences.items()
    }
    runs["velocity"] = partial(field.velocity, t, x)
    seconds = median_seconds(runs, repeats)
    over = {name: seconds[name] / seconds["velocity"] for name in divergences}
    return {"features": features, "batch": batch, "seconds": seconds, "over_velocity": over}


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """Return the slope of log(what the divergence adds, in velocities) against log D."""
    kept = [row for row in rows if row["features"] >= 16]
    x = torch.tensor([math.log(row["features"]) for row in kept])
    y = torch.tensor([math.log(max(row["over_velocity"][name] - 1, 1e-3)) for row in kept])
    return (torch.cov(torch.stack([x, y]))[0, 1] / x.var()).item()


def most_memory() -> float:
    """Return the most memory that this process has held, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def per_point(name: str, way: AbstractLikelihood, count: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, way.field.features, generator=generator)
    before = most_memory()
    kept: list[torch.Tensor] = []
    seconds = median_seconds(
        {name: lambda: kept.append(way.log_prob(x))}, repeats=1 if count > 10_000 else 7
    )
    ends = torch.cat([x[:100], x[-100:]])
    values = torch.cat([kept[-1][:100], kept[-1][-100:]])
    return {
        "way": name,
        "points": count,
        "microseconds_per_point": 1e6 * seconds[name] / count,
        "gigabytes": most_memory(),
        "gigabytes_before": before,
        "bitwise": torch.equal(values, way.log_prob(ends)),
    }


def main() -> None:
    parser = arguments(__doc__, "scaling")
    parser.add_argument(
        "--features", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    )
    parser.add_argument("--points", nargs="+", type=int, default=[10**k for k in range(7)])
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    with torch.no_grad():
        field, head = networks(16, options.seed)
        ways: dict[str, AbstractLikelihood] = {
            "constant curve, 16 nodes": SteinPath(field, head, RK4(4), nodes=16),
            "flow, RK4(4)": FlowODE(field, head, RK4(4)),
        }
        points = []
        for count in options.points:
            for name, way in ways.items():
                points.append(per_point(name, way, count, options.seed))
                print(points[-1], flush=True)
        calls = [per_call(d, 64, options.repeats, options.seed) for d in options.features]
    for row in calls:
        print(row)
    slopes = {name: slope(calls, name) for name in ("stein", "hutchinson", "exact")}
    print(slopes)
    result = {"provenance": made, "rows": calls, "slopes": slopes, "points": points}
    write(options.name, result)


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


@section(40)
def page() -> str:
    result = read("scaling")
    calls, slopes = result["rows"], result["slopes"]
    names = list(slopes)
    rows = [
        [str(row["features"]), *(f"{row['over_velocity'][name]:.1f}" for name in names)]
        for row in calls
    ]
    rows.append(["slope of what is added", *(f"{slopes[name]:.2f}" for name in names)])
    points = [
        [
            f"{row['points']:,}",
            row["way"],
            f"{row['microseconds_per_point']:.0f}",
            f"{row['gigabytes']:.2f}",
            "yes" if row["bitwise"] else "no",
        ]
        for row in result["points"]
    ]
    header = ["points", "density", "microseconds a point", "most memory so far, GB", "bitwise"]
    draw_scaling(result)
    return (
        "## How cost grows\n\n"
        "Velocity and divergence, one call, 64 points, over the velocity alone; and the slope in D "
        "of what the divergence adds, from D = 16 on.\n\n"
        f"{table(['D', *names], rows)}\n\n![Cost against D and batch](scaling.png)\n\n"
        "Log-density of many points in 16 dimensions; bitwise: the first and last hundred are what "
        f"they are on their own.\n\n{table(header, points)}\n\n{source('scaling', result)}\n"
    )


if __name__ == "__main__":
    main()
