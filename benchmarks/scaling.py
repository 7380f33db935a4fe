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

from pyro_stad.divergence import Exact, Hutchinson, Stein, TrunkHead
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields import PathField
from pyro_stad.likelihood import AbstractLikelihood, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport


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


if __name__ == "__main__":
    main()
