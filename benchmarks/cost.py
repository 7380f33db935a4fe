"""Claim: the distilled divergence costs half of one Hutchinson probe, at any dimension.

Time of log p of a batch, by the same trunk, solver, grid and batch, with the distilled divergence,
one Hutchinson probe, Hutch++, and the exact trace; and of the flow alone, without a density.
Networks are untrained: weights do not change the price.
"""

from __future__ import annotations

from functools import partial

import torch
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table

from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, Stein, TrunkHead
from pyro_stad.fields import PathField
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "quick": ("--features 2 8 --repeats 3 --name quick_cost",),
    "smoke": ("--features 2 --batch 16 --repeats 1",),
}


def row(features: int, batch: int, repeats: int, seed: int) -> dict[str, float | int]:
    torch.manual_seed(seed)
    field = PathField(OptimalTransport(), features, width=128, depth=3).requires_grad_(False)
    head = TrunkHead.for_field(field).requires_grad_(False)
    divergences = {
        "stein": Stein(head),
        "hutchinson": Hutchinson(1),
        "hutch++ 6": HutchPlusPlus(6),
        "exact": Exact(),
    }
    x = torch.randn(batch, features)
    runs = {
        name: partial(FlowODE(field, divergence, RK4(8)).log_prob, x)
        for name, divergence in divergences.items()
    }
    runs["flow alone"] = partial(FlowODE(field, Exact(), RK4(8)).pull, x)
    seconds = median_seconds(runs, repeats)
    return {
        "features": features,
        "batch": batch,
        "seconds": seconds,
        "stein_over_hutchinson": seconds["stein"] / seconds["hutchinson"],
        "stein_over_exact": seconds["stein"] / seconds["exact"],
    }


def main() -> None:
    parser = arguments(__doc__, "cost")
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    with torch.no_grad():
        # Thrown away: the allocator takes a while to settle, and whoever is first pays for it.
        row(max(options.features), options.batch, 1, options.seed)
        rows = [
            row(features, options.batch, options.repeats, options.seed)
            for features in options.features
        ]
    for r in rows:
        print(r)
    write(options.name, {"provenance": made, "solver": repr(RK4(8)), "rows": rows})


@section(30)
def page() -> str:
    result = read("cost")
    rows = [
        [
            str(row["features"]),
            f"{row['stein_over_hutchinson']:.2f}",
            f"1/{1 / row['stein_over_exact']:.1f}",
            f"{row['seconds']['stein'] / row['seconds']['flow alone']:.2f}",
            f"{row['seconds']['hutch++ 6'] / row['seconds']['hutchinson']:.2f}",
        ]
        for row in result["rows"]
    ]
    header = [
        "D",
        "Stein / one Hutchinson probe",
        "Stein / exact trace",
        "Stein / flow without a density",
        "Hutch++ (6) / one Hutchinson probe",
    ]
    return (
        "## What a call costs\n\n"
        f"Ratios of times of log p of {result['rows'][0]['batch']} points, {result['solver']}.\n\n"
        f"{table(header, rows)}\n\n{source('cost', result)}\n"
    )


if __name__ == "__main__":
    main()
