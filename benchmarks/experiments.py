"""Claim: of two experiments' chains, the Bayes ratio is within 0.1 or its error, or it is flagged.

Pairs of standard normal posteriors in D = 2 and 6, 10,000 draws each, under a common prior
N(0, 100 I), zero to five of their joint standard deviations apart along the diagonal: log R by
``tension``, with its error and the truth in closed form; log S, whose truth is (D - x^2) / 2 at x
sigma; and which were flagged.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table

import pyro_stad
from pyro_stad.infer import tension

RUNS = {
    "long": ("",),
    "smoke": ("--features 2 --apart 0 2 --budget tiny --rows 1000 --name smoke_experiments",),
}

_WIDE = 10.0


def along(apart: float) -> float:
    """Return log R of one direction in closed form, a grid's sum."""
    axis = torch.linspace(-30, 40, 40_001, dtype=torch.float64)
    total = -dist.Normal(0.0, _WIDE).log_prob(axis)
    for shift in (0.0, apart):
        total = total + dist.Normal(shift, 1.0).log_prob(axis)
    return (torch.logsumexp(total, 0) + (axis[1] - axis[0]).log()).item()


def one(features: int, sigma: float, options: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(options.seed + 1000 * features + int(100 * sigma))
    names = [f"p{index}" for index in range(features)]
    # Along the diagonal, so that no direction of the axes has a part.
    apart = sigma * math.sqrt(2)
    fits = []
    for shift in (0.0, apart / math.sqrt(features)):
        x = torch.randn(options.rows, features, generator=draw) + shift
        fits.append(pyro_stad.fit(x, names=names, budget=options.budget, progress=False))
    common = {name: dist.Normal(0.0, _WIDE) for name in names}
    started = time.perf_counter()
    found = tension(*fits, shared_prior=common, seed=options.seed, progress=False)
    row = {
        "features": features, "sigma": sigma, "seconds": time.perf_counter() - started,
        "truth": along(apart) + (features - 1) * along(0.0), "log_ratio": found.log_ratio,
        "log_ratio_err": found.log_ratio_err, "log_s": found.log_suspiciousness,
        "log_s_err": found.log_suspiciousness_err, "log_s_truth": 0.5 * (features - sigma**2),
        "shift": found.shift, "by_s": found.sigma, "troubles": list(found.troubles),
        "sentence": found.sentence(),
    }  # fmt: skip
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__, "experiments")
    parser.add_argument("--features", nargs="*", type=int, default=[2, 6])
    parser.add_argument("--apart", nargs="*", type=float, default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--budget", default="quick")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [one(size, sigma, options) for size in options.features for sigma in options.apart]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(195)
def page() -> str:
    result = read("experiments")
    header = ["D", "apart", "log R", "truth", "log S", "truth", "sigma by S", "flagged"]
    rows = [
        [
            str(row["features"]),
            f"{row['sigma']:g} sigma",
            f"{row['log_ratio']:.2f} +- {row['log_ratio_err']:.2f}",
            f"{row['truth']:.2f}",
            f"{row['log_s']:.2f} +- {row['log_s_err']:.2f}",
            f"{row['log_s_truth']:.2f}",
            f"{row['by_s']:.1f}",
            "yes" if row["troubles"] else "no",
        ]
        for row in result["rows"]
    ]
    return (
        "## Experiments combined, and their tension\n\n"
        "Two standard normal posteriors under a common prior ten times as wide, each learned from "
        f"10,000 draws with budget `{result['budget']}`. Flagged is what one of them has hardly "
        f"seen.\n\n{table(header, rows)}\n\n{source('experiments', result)}\n"
    )


if __name__ == "__main__":
    main()
