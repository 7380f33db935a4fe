"""Where the distilled divergence is off: its error against t, before and after the polish.

A mixture in 16 dimensions, teacher and divergence trained as by the standard budget. At 25 places
between data and noise: root mean square of the error of the divergence over 500 points of the
path's law, against the exact trace, in units of the square root of D; and of the spread of the
exact divergence itself, which is what a head that knows the mean alone would be off by.
"""

from __future__ import annotations

from typing import Any

import torch
from common import arguments, provenance, write
from distillation import Bench
from matplotlib.figure import Figure
from page import CURVES, DOCS, read, section, source
from torch import Tensor

from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.fitting import BUDGETS
from pyro_stad.learn.clouds import AbstractCloud
from pyro_stad.learn.objectives import ExactLabels, SteinObjective

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
}  # fmt: skip


def errors(head: TrunkHead, bench: Bench, cloud: AbstractCloud, places: Tensor) -> list[float]:
    """Return the root mean square error at every place."""
    found, generator = [], torch.Generator().manual_seed(7)
    for place in places:
        t, x, *_ = cloud.at(place.expand(250), generator)
        with torch.no_grad():
            error = Stein(head)(bench.field, t, x) - Exact()(bench.field, t, x)
        found.append((error.square().mean() / bench.field.features).sqrt().item())
    return found


def spread(bench: Bench, cloud: AbstractCloud, places: Tensor) -> list[float]:
    found, generator = [], torch.Generator().manual_seed(7)
    for place in places:
        t, x, *_ = cloud.at(place.expand(250), generator)
        with torch.no_grad():
            exact = Exact()(bench.field, t, x)
        found.append((exact.var() / bench.field.features).sqrt().item())
    return found


def main() -> None:
    parser = arguments(__doc__, "error_in_time")
    parser.add_argument("--features", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made, budget = provenance(options.seed), BUDGETS["standard"]
    sizes = {"features": options.features, "width": budget.width, "depth": budget.depth}
    bench = Bench("ot", sizes, 1.0, options.seed)
    cloud, places = bench.cloud(bench.held, "conditional"), torch.linspace(0, 1, 25)
    head = bench.head()
    curves = {"spread of the exact divergence": spread(bench, cloud, places)}
    bench.distil(head, SteinObjective(), budget.stein, [])
    curves["stein"] = errors(head, bench, cloud, places)
    bench.distil(head, ExactLabels(), budget.polish or budget.stein, [])
    curves["stein and polish"] = errors(head, bench, cloud, places)
    rows = [
        {"fraction": f, **{k: c[i] for k, c in curves.items()}}
        for i, f in enumerate(places.tolist())
    ]
    for row in rows:
        print(row)
    write(options.name, {"provenance": made, "features": options.features, "rows": rows})


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


@section(20)
def page() -> str:
    result = read("error_in_time")
    draw_error_in_time(result)
    return (
        "## Where the divergence is off\n\n"
        f"A mixture in {result['features']} dimensions, trained as by the standard budget: error "
        "of the distilled divergence against the exact trace, and the spread of the exact one.\n\n"
        f"![Error against time](error_in_time.png)\n\n{source('error_in_time', result)}\n"
    )


if __name__ == "__main__":
    main()
