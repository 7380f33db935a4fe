"""Claim: with an exact field, the exact trace is the closed form to 1e-3 nat, on every path.

The field of a Gaussian and of a five-component mixture, whitened, in float64: the density of the
flow against the mixture's own density at the path's data end, in data coordinates. Also what the
little noise at that end costs: the same against the density of the data without any noise.
"""

from __future__ import annotations

import math

import torch
from common import arguments, provenance, write
from page import read, section, source, table

from pyro_stad.divergence import Exact
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import PATHS

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "quick": ("--features 2 --name quick_oracle",),
    "smoke": ("--features 2 --points 4",),
}

SOLVER = RK4(steps=64)


def row(path: str, features: int, components: int, points: int, seed: int) -> dict[str, object]:
    parts = random_mixture(features, components, seed)
    field = GaussianMixtureField(PATHS[path](), *parts)
    x = sample_mixture(parts, points, seed + 1)
    with torch.no_grad():
        found = FlowODE(field, Exact(), SOLVER).log_prob(x)
    angle = torch.tensor(field.t_min, dtype=x.dtype)
    blurred = field.log_density(angle, x * field.data_scale)
    blurred = blurred + features * math.log(field.data_scale)
    sharp = field.log_density(torch.zeros((), dtype=x.dtype), x)
    print(path, features, components, flush=True)
    return {
        "path": path,
        "features": features,
        "components": components,
        "worst": (found - blurred).abs().max().item(),
        "blur_bias": (blurred - sharp).mean().item(),
        "blur_sd": (blurred - sharp).std().item(),
    }


def main() -> None:
    parser = arguments(__doc__, "oracle")
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8, 32])
    parser.add_argument("--points", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = [
        row(path, features, components, options.points, options.seed)
        for path in PATHS
        for features in options.features
        for components in (1, 5)
    ]
    write(options.name, {"provenance": made, "solver": repr(SOLVER), "rows": rows})


@section(130)
def page() -> str:
    result = read("oracle")
    rows = [
        [
            row["path"],
            str(row["features"]),
            "Gaussian" if row["components"] == 1 else "mixture",
            f"{row['worst']:.1e}",
            f"{row['blur_bias']:+.1e}",
            f"{row['blur_sd']:.1e}",
        ]
        for row in result["rows"]
    ]
    header = ["path", "D", "law", "worst error", "bias of the blur", "sd of the blur"]
    return (
        "## Exact trace against closed forms\n\n"
        "Exact field and exact trace in float64: the largest error of log p in nats over 64 "
        "points, against the closed-form density at the path's data end; and what the blur of that "
        "end costs, against the density of the data without noise.\n\n"
        f"{table(header, rows)}\n\n{source('oracle', result)}\n"
    )


if __name__ == "__main__":
    main()
