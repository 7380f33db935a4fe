"""Claim: draws are made on a cheaper grid than a density needs, and are as true.

Flows of 10,000 samples, by the standard budget: mixtures of five normals, a banana, and two narrow
modes. For each grid, with the same noise: network calls; how far draws are, a whitened coordinate
(root mean square), from those on 64 steps; the p-value of a test of 2,000 of them against 2,000
other ones on 64 steps; and how far their noise comes back from where it was, on the same grid and
on that of the density. One thread; times of 10,000 draws in turns, beside zuko's spline flow and
masked autoregressive flow of default size, untrained, for a draw is a draw.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import zuko
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table
from torch import Tensor

import pyro_stad
from pyro_stad.calibrate.two_sample import two_sample
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.ode import RK4
from pyro_stad.transport import Flow

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
}  # fmt: skip

_ROWS, _COMPARED, _TIMED = 10_000, 2000, 10_000
_STEPS = (1, 2, 3, 4, 6, 8, 16)


def samples(name: str) -> Tensor:
    kind, features = name.split(", D = ")
    if kind == "mixture":
        return sample_mixture(random_mixture(int(features)), _ROWS, 1).float()
    source = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, int(features), generator=source)
    if kind == "banana":
        x[:, 1] = 0.6 * x[:, 0].square() + 0.3 * x[:, 1]
        return x
    side = 2.0 * (torch.rand(_ROWS, 1, generator=source) < 0.5) - 1
    return 0.1 * x + side


SAMPLES = (
    "mixture, D = 2",
    "banana, D = 2",
    "two modes, D = 2",
    "mixture, D = 8",
    "mixture, D = 16",
)


def root_mean_square(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@torch.no_grad()
def measured(name: str, seed: int) -> dict[str, Any]:
    """Return what grids are worth on one law, and what the fit has chosen."""
    with torch.enable_grad():
        prior = pyro_stad.fit(samples(name), members=0, seed=seed, progress=False)
    flow, size = prior.transport, len(prior.names)
    source = torch.Generator().manual_seed(seed)
    noise, other = (torch.randn(_COMPARED, size, generator=source) for _ in range(2))
    fine = Flow(flow.field, RK4(64))
    truth, others = fine.push(noise), fine.push(other)
    rows = []
    for grid in map(RK4, _STEPS):
        x = Flow(flow.field, grid).push(noise)
        rows.append({
            "grid": repr(grid),
            "calls": grid.sequential_calls(),
            "displacement": root_mean_square(x - truth),
            "p_value": two_sample(x, others).p_value,
            "there_and_back": root_mean_square(Flow(flow.field, grid).pull(x) - noise),
            "back_on_the_density_grid": root_mean_square(flow.pull(x) - noise),
        })  # fmt: skip
    z = torch.randn(_TIMED, size)
    runs = {
        "chosen": partial(flow.push, z),
        "grid of the density": partial(_density(prior).push, z),
    }
    for peer, kind in {"zuko NSF": zuko.flows.NSF, "zuko MAF": zuko.flows.MAF}.items():
        made = kind(size).requires_grad_(False)
        runs[peer] = lambda made=made: made().sample((_TIMED,))
    return {
        "samples": name,
        "chosen": repr(flow.solver),
        "density": repr(prior.likelihood.solver),
        "rows": rows,
        "microseconds": {k: 1e6 * s / _TIMED for k, s in median_seconds(runs).items()},
    }


def _density(prior: pyro_stad.FlowPrior) -> Flow:
    return prior.likelihood.transport()


def main() -> None:
    parser = arguments(__doc__, "draws")
    parser.add_argument("--samples", nargs="+", default=list(SAMPLES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    made = {**provenance(options.seed), "peers": {"zuko": version("zuko")}}
    rows = []
    for name in options.samples:
        rows.append(measured(name, options.seed))
        print(rows[-1], flush=True)
    write(options.name, {"provenance": made, "rows": rows})


@section(80)
def page() -> str:
    result = read("draws")
    rows = [
        [
            of_law["samples"],
            f"{row['grid']}{', chosen' if row['grid'] == of_law['chosen'] else ''}",
            str(row["calls"]),
            f"{row['displacement']:.4f}",
            f"{row['p_value']:.2g}",
            f"{row['there_and_back']:.4f}",
            f"{row['back_on_the_density_grid']:.4f}",
        ]
        for of_law in result["rows"]
        for row in of_law["rows"]
    ]
    header = ["samples", "grid", "calls", "displacement", "p", "there and back", "back, finer"]
    times = [
        [of_law["samples"], of_law["chosen"], of_law["density"]]
        + [f"{found:.1f}" for found in of_law["microseconds"].values()]
        for of_law in result["rows"]
    ]
    heads = ["samples", "for draws", "for the density", *result["rows"][0]["microseconds"]]
    return (
        "## Draws\n\n"
        "Flows of 10,000 samples. How far draws on a grid are from those of the same noise on 64 "
        "steps (root mean square a whitened coordinate); the chance of a test of 2,000 of them "
        "against 2,000 other ones of 64 steps; and how far their noise comes back from where it "
        "was, on the same grid and on the density's.\n\n"
        f"{table(header, rows)}\n\n"
        "Microseconds a draw, of 10,000, beside peers of default size, untrained.\n\n"
        f"{table(heads, times)}\n\n{source('draws', result)}\n"
    )


if __name__ == "__main__":
    main()
