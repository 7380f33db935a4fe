"""Claim: in batches, a distilled log-density costs what an autoregressive network does.

Log-density, and its gradient, of 10,000 points in 16 dimensions: by each of our ways, and by zuko's
spline flow and masked autoregressive flow. For the time, networks of default size, untrained, with
no weight of zero, in turns, one thread. For the accuracy, the same law (a mixture of five normals),
the same 10,000 samples, and for the peers the time that our fit took. Where the fit's own choice is
not the distilled density, its row in the trials of the fit's summary says how far off that was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import zuko
from accuracy import mixture
from common import arguments, median_seconds, provenance, write
from latency import priors
from page import read, section, source, table
from peers import zuko_flow
from torch import Tensor

import pyro_stad
from pyro_stad.data import Standardise, whitening
from pyro_stad.divergence import Exact
from pyro_stad.likelihood import Constant, FlowODE, SteinPath

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
}  # fmt: skip

_PEERS = {"zuko NSF": zuko.flows.NSF, "zuko MAF": zuko.flows.MAF}
_CHUNKS = (512, 1024, 2048, 4096, 8192, 16384)


def value_and_gradient(log_prob: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(leaf).sum(), leaf)[0]


def prices(features: int, points: int, repeats: int) -> list[dict[str, Any]]:
    """Return microseconds a point by contender."""
    x = torch.randn(points, features)
    ours = priors(features)
    chosen = {name: ours[name].log_prob for name in ours if "autograd" not in name}
    for name, kind in _PEERS.items():
        flow = kind(features).requires_grad_(False)
        chosen[name] = lambda z, flow=flow: flow().log_prob(z)
    values = median_seconds({name: partial(f, x) for name, f in chosen.items()}, repeats)
    slopes = median_seconds(
        {name: partial(value_and_gradient, f, x) for name, f in chosen.items()}, repeats
    )
    return [
        {
            "density": name,
            "microseconds": 1e6 * values[name] / points,
            "microseconds_with_gradient": 1e6 * slopes[name] / points,
        }
        for name in chosen
    ]


def chunks(features: int, points: int, repeats: int) -> dict[str, dict[int, float]]:
    """Return microseconds a point, gradient included, by way and by size of the chunks."""
    x, found = torch.randn(points, features), {}
    names = "distilled density", "Stein path, constant, 8 nodes", "flow, Stein, RK4(4)"
    ways: dict[str, Any] = {name: priors(features)[name].likelihood for name in names}
    ways["flow, exact trace"] = ways[names[-1]].replace(divergence=Exact())
    for name, way in ways.items():
        runs = {}
        for size in _CHUNKS:
            runs[size] = partial(at_size, way, size, x)
        seconds = median_seconds(runs, repeats)  # type: ignore[arg-type]
        found[name] = {size: 1e6 * seconds[size] / points for size in _CHUNKS}
    return found


def at_size(way: Any, size: int, x: Tensor) -> Tensor:
    return value_and_gradient(way.replace(chunk_size=size).log_prob, x)


def accuracies(features: int, seed: int) -> list[dict[str, Any]]:
    """Return how far each density is from the truth of one law."""
    problem, started = mixture(features, seed), time.perf_counter()
    prior = pyro_stad.fit(problem.train, members=0, seed=seed, progress=False)
    seconds = time.perf_counter() - started
    flow = prior.likelihood
    parts = flow.field, flow.divergence, flow.solver
    ways = {
        f"the fit's own choice: {flow!r}": prior,
        "Stein path, constant, 8 nodes": prior.with_likelihood(
            SteinPath(*parts, Constant(), nodes=8)
        ),
        "flow, Stein": prior.with_likelihood(FlowODE(*parts)),
        "flow, exact trace": prior.exact(),
    }
    affine = Standardise(
        *(part.to(problem.train) for part in whitening(problem.train, None, prior.names))
    )
    log_det = affine.scale_tril.diagonal().log().sum()
    with torch.no_grad():
        densities = {name: way.log_prob(problem.test) for name, way in ways.items()}
    for name, kind in _PEERS.items():
        peer, _ = zuko_flow(affine.inv(problem.train), seconds, seed, kind)
        with torch.no_grad():
            densities[name] = peer(affine.inv(problem.test)) - log_det
    rows = []
    for name, density in densities.items():
        error = density.double() - problem.truth
        found = {"bias": error.mean().item(), "sd": error.std().item()}
        rows.append({"density": name, "seconds": seconds, **found})
    return rows


def main() -> None:
    parser = arguments(__doc__, "batched")
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    made = {**provenance(options.seed), "peers": {"zuko": version("zuko")}}
    size, points = options.features, options.points
    # First, while the process is fresh: memory that training left behind would be part of it.
    sizes = chunks(size, 2 * points // 10, options.repeats)
    price = prices(size, points, options.repeats)
    for row in price:
        print(row, flush=True)
    rows = accuracies(size, options.seed)
    for row in rows:
        print(row)
    result = {"features": size, "points": points, "prices": price, "chunks": sizes, "rows": rows}
    write(options.name, {"provenance": made, **result})


@section(70)
def page() -> str:
    result = read("batched")
    micro = "microseconds"
    prices = [
        [row["density"], f"{row[micro]:.1f}", f"{row[f'{micro}_with_gradient']:.1f}"]
        for row in result["prices"]
    ]
    rows = [[row["density"], f"{row['bias']:+.2f}", f"{row['sd']:.2f}"] for row in result["rows"]]
    sizes = list(next(iter(result["chunks"].values())))
    chunks = [
        [name, *(f"{found[size]:.1f}" for size in sizes)]
        for name, found in result["chunks"].items()
    ]
    size, points = result["features"], result["points"]
    return (
        "## What a batch costs\n\n"
        f"Microseconds a point, for {points} points in {size} dimensions, one thread; networks "
        "of default size.\n\n"
        f"{table(['log-density', 'value', 'with its gradient'], prices)}\n\n"
        "The same law learned from 10,000 samples, each peer in the time of our fit: error "
        "against the truth. The mass is divided out of the fit's own choice alone.\n\n"
        f"{table(['log-density', 'bias, nat', 'sd, nat'], rows)}\n\n"
        "Microseconds a point, with its gradient, by the rows that are worked on at a time "
        "(`chunk_size`).\n\n"
        f"{table(['log-density', *sizes], chunks)}\n\n{source('batched', result)}\n"
    )


if __name__ == "__main__":
    main()
