"""Claim: with many samples, accuracy grows with the budget.

A mixture of five normals in 8 dimensions, 100,000 samples, each budget: how far the flow's exact
trace and the density that calibration took are from the truth, at 4,000 fresh points. One thread.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table

import pyro_stad
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.paths import OptimalTransport

RUNS = {
    "long": ("",),
    "smoke": ("--budgets tiny --samples 500 --features 2",),
}
_POINTS = 4000


def measured(budget: str, features: int, samples: int, seed: int) -> dict[str, Any]:
    """Return the errors of one fit against the truth, in nats."""
    law = random_mixture(features, seed=seed)
    x, train = sample_mixture(law, _POINTS, 99), sample_mixture(law, samples, 1)
    truth = GaussianMixtureField(OptimalTransport(), *law).log_density(torch.zeros(()), x)
    started = time.perf_counter()
    prior = pyro_stad.fit(train.float(), budget=budget, members=0, seed=seed, progress=False)
    row: dict[str, Any] = {"budget": budget, "seconds": time.perf_counter() - started}
    with torch.no_grad():
        for name, way in {"exact": prior.exact(), "chosen": prior}.items():
            error = way.log_prob(x.float()).double() - truth
            row[name] = {"loss": -error.mean().item(), "sd": error.std().item()}
    return {**row, "way": repr(prior.likelihood)}


def main() -> None:
    parser = arguments(__doc__, "budgets")
    parser.add_argument("--budgets", nargs="+", default=["quick", "standard", "thorough"])
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made, rows = provenance(options.seed), []
    for budget in options.budgets:
        rows.append(measured(budget, options.features, options.samples, options.seed))
        print(rows[-1], flush=True)
        result = {"features": options.features, "samples": options.samples, "rows": rows}
        write(options.name, {"provenance": made, **result})


@section(105)
def page() -> str:
    result = read("budgets")
    rows = [
        [row["budget"], f"{row['seconds']:.0f}"]
        + [f"{row[name][key]:.3f}" for name in ("exact", "chosen") for key in ("loss", "sd")]
        + [row["way"].split("(")[0]]
        for row in result["rows"]
    ]
    header = ["budget", "seconds", "loss, exact", "sd, exact", "loss, chosen", "sd, chosen", "way"]
    return (
        "## What a larger budget buys\n\n"
        f"A mixture of five normals in {result['features']} dimensions, {result['samples']:,} "
        "samples: mean loss of log p against the truth and the error's standard deviation, in "
        "nats, of the flow's exact trace and of the density that was chosen.\n\n"
        f"{table(header, rows)}\n\n{source('budgets', result)}\n"
    )


if __name__ == "__main__":
    main()
