"""Claim: the density is right up to a wall, and in the last percent before it.

One-dimensional laws that end in a wall, 10,000 samples, their bounds given. On places down to a
thousandth of a standard deviation from the wall, the density over the truth; and the mass of the
percent next to the wall, by integration of the density, and by draws. Heavy tails beside: the
density at the quantiles 0.5 and 99.5 percent, and those quantiles of draws.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import torch
from common import arguments, provenance, write
from page import by, read, section, source, table
from scipy import stats
from torch import Tensor

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --seeds 1",),
}

_ROWS, _DRAWS = 10_000, 100_000
# The law, its bounds, and how many of its ends are walls.
WALLS: dict[str, tuple[Any, tuple[float | None, float | None]]] = {
    "uniform": (stats.uniform(), (0.0, 1.0)),
    "half-normal": (stats.halfnorm(), (0.0, None)),
    "exponential": (stats.expon(), (0.0, None)),
}
TAILS: dict[str, Any] = {
    "Student t, 3 dof": stats.t(3),
    "Student t, 2 dof": stats.t(2),
    "Cauchy": stats.t(1),
    "Laplace": stats.laplace(),
}


def density(prior: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return prior.log_prob(torch.as_tensor(x[:, None], dtype=torch.float32)).exp().numpy()


def wall(name: str, budget: str, seed: int) -> dict[str, Any]:
    law, bounds = WALLS[name]
    values = law.rvs((_ROWS, 1), random_state=np.random.default_rng(seed))
    prior = pyro_stad.fit(
        values, bounds=[bounds], budget=budget, members=0, seed=seed, progress=False
    )
    near = law.std() * np.geomspace(1e-3, 1e-1, 41)
    ratio = density(prior, near) / law.pdf(near)
    last = law.ppf(0.01)
    # The density is finite at the wall, so that what is nearer than this has no mass to speak of.
    grid = np.geomspace(1e-6 * last, last, 2001)
    mass = np.trapezoid(density(prior, grid), grid)
    return {
        "law": name,
        "seed": seed,
        "largest_error": float(np.abs(ratio - 1).max()),
        "at_a_thousandth": float(ratio[0] - 1),
        "last_percent": float(mass / 0.01 - 1),
        "last_percent_of_draws": float((drawn(prior, seed) < last).mean() / 0.01 - 1),
        "way": repr(prior.likelihood),
    }


def tail(name: str, budget: str, seed: int) -> dict[str, Any]:
    law = TAILS[name]
    values = law.rvs((_ROWS, 1), random_state=np.random.default_rng(seed))
    prior = pyro_stad.fit(values, budget=budget, members=0, seed=seed, progress=False)
    levels = np.array([0.0005, 0.005, 0.995, 0.9995])
    found = np.quantile(drawn(prior, seed), levels)
    return {
        "law": name,
        "seed": seed,
        "quantiles": (found / law.ppf(levels) - 1).tolist(),
        "median_over_sd": float(np.quantile(drawn(prior, seed), 0.5) / (law.ppf(0.84))),
        "densities": (density(prior, law.ppf(levels)) / law.pdf(law.ppf(levels)) - 1).tolist(),
        "way": repr(prior.likelihood),
    }


def drawn(prior: Any, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    parts: list[Tensor] = [prior.sample((10_000,)) for _ in range(_DRAWS // 10_000)]
    return torch.cat(parts)[:, 0].double().numpy()


def main() -> None:
    parser = arguments(__doc__, "walls")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made, seeds = provenance(options.seed), range(options.seed, options.seed + options.seeds)
    rows: list[dict[str, Any]] = []
    for kind, laws, measure in (("wall", WALLS, wall), ("tail", TAILS, tail)):
        for name in laws:
            for seed in seeds:
                rows.append({"kind": kind, **measure(name, options.budget, seed)})
                print(rows[-1], file=sys.stderr, flush=True)
    worst = max(row["largest_error"] for row in rows if row["kind"] == "wall")
    print(f"largest error near a wall: {worst:.1%}")
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(160)
def page() -> str:
    result = read("walls")
    known = by(result["rows"], "kind", "law")
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


if __name__ == "__main__":
    main()
