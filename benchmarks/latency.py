"""Claim: inside NUTS a learned prior costs little more than a multivariate normal.

Value and gradient of the log-density of one point, as a leapfrog step asks for it: pyro_stad's ways
to the density, the normal, zuko's flows, sbi's flow matching (with a context that does not
matter), and a continuous flow with an autograd trace, as in FFJORD-style code. What torch.compile
can make of the fused path is tried on the likelihood alone, beside the pass by hand. And the time
of a leapfrog step itself: trajectories of Pyro's HMC, compiled, of fixed length, on a model with a
normal observation. Sizes are the defaults of each package (ours: three layers of 128); networks are
untrained, but no weight is zero. Contenders take turns; one thread; validation is off for all.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
import zuko
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table
from pyro.infer import HMC
from sbi.inference.potentials.vector_field_potential import VectorFieldBasedPotential
from sbi.neural_nets import posterior_flow_nn
from torch import Tensor

from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.fields import Gate, PathField
from pyro_stad.likelihood import (
    AbstractLikelihood,
    Coarse,
    Correction,
    DistilledDensity,
    FlowODE,
    SteinPath,
)
from pyro_stad.likelihood.fused import Fused
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "quick": ("--features 4 --repeats 11 --name quick_latency",),
}  # fmt: skip

Density = Callable[[Tensor], Tensor]
_BLOCK, _LEAPS, _SECONDS = 100, 10, 0.05


def value_and_gradient(log_prob: Density, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = log_prob(leaf)
    return value, torch.autograd.grad(value, leaf)[0]


def priors(features: int) -> dict[str, FlowPrior]:
    """Return a prior by each of our ways to the density."""
    field = PathField(OptimalTransport(), features, width=128, depth=3)
    head = Stein(TrunkHead.for_field(field))
    with torch.no_grad():
        for parameter in (*field.parameters(), *head.parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))
    tril = torch.eye(features) + 0.1 * torch.randn(features, features).tril(-1)
    names = tuple(f"x{i}" for i in range(features))
    layout = Layout(names, tuple((name, ()) for name in names))
    solver = RK4(4)
    correction = Correction(features, width=128, depth=4)
    torch.nn.init.normal_(correction.out.weight, std=0.1)
    gate = Gate(features**0.5 + 2.3, features**0.5 + 3.8)
    ways: dict[str, AbstractLikelihood] = {
        "distilled density": DistilledDensity(field, head, solver, correction, gate),
        "Stein path, constant, 8 nodes": SteinPath(field, head, solver, nodes=8),
        "Stein path, constant, 16 nodes": SteinPath(field, head, solver, nodes=16),
        "Stein path, coarse (2)": SteinPath(field, head, solver, Coarse(2)),
        "flow, Stein, RK4(4)": FlowODE(field, head, solver),
        "flow, autograd trace, RK4(4)": FlowODE(field, Exact(), solver),
    }
    return {name: FlowPrior(way, torch.zeros(features), tril, layout) for name, way in ways.items()}


def flow_matching(features: int) -> Density:
    """Return the density of sbi's flow matching, which can't do without a context."""
    estimator = posterior_flow_nn()(torch.randn(200, features), torch.randn(200, 1))
    wide = torch.distributions.MultivariateNormal(torch.zeros(features), 100 * torch.eye(features))
    potential = VectorFieldBasedPotential(estimator.requires_grad_(False), wide)
    potential.set_x(torch.zeros(1, 1))
    return lambda x: potential(x[None], track_gradients=True)[0]


def likelihood_alone(prior: FlowPrior) -> dict[str, Density]:
    """Return the density in whitened coordinates: by hand, and its operations compiled."""
    path = cast(SteinPath, prior.likelihood)
    path.log_prob(torch.zeros(1, len(prior.names)))  # makes the tables
    compiled = torch.compile(cast(Fused, path.fused).by_autograd)
    return {
        "likelihood alone, 16 nodes, by hand": lambda x: path.log_prob(x[None])[0],
        "likelihood alone, 16 nodes, compiled": lambda x: compiled(x[None])[0],
    }


def contenders(features: int) -> tuple[dict[str, Density], Tensor]:
    """Return log-densities by name, and a point where they are high."""
    ours = priors(features)
    tril = next(iter(ours.values())).transforms[1].scale_tril
    normal = dist.MultivariateNormal(torch.zeros(features), scale_tril=tril)
    flows = {
        "zuko MAF": zuko.flows.MAF(features),
        "zuko NSF": zuko.flows.NSF(features),
        "zuko CNF": zuko.flows.CNF(features),
    }
    named: dict[str, Density] = {"multivariate normal": normal.log_prob}
    named |= {name: prior.log_prob for name, prior in ours.items()}
    named |= {name: flow.requires_grad_(False)().log_prob for name, flow in flows.items()}
    named |= likelihood_alone(ours["Stein path, constant, 16 nodes"])
    named["sbi flow matching"] = flow_matching(features)
    return named, tril @ torch.randn(features)


def row(features: int, repeats: int, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    found, x = contenders(features)
    runs = {name: partial(value_and_gradient, log_prob, x) for name, log_prob in found.items()}
    for name in ("multivariate normal", "distilled density", "Stein path, constant, 16 nodes"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = torch.jit.trace(lambda z, f=found[name]: f(z), (x,), check_trace=False)
        runs[f"{name}, traced"] = partial(value_and_gradient, traced, x)
    made = {name: blocks(run) for name, run in runs.items()}
    timed = median_seconds({name: block for name, (block, _) in made.items()}, repeats)
    seconds = {name: timed[name] / count for name, (_, count) in made.items()}
    leaps = median_seconds(leapfrogs(features), max(3, repeats // 5))
    leaps = {name: value / _BLOCK for name, value in leaps.items()}
    seconds |= {f"{name}, leapfrog of compiled HMC": value for name, value in leaps.items()}
    normal, leap = seconds["multivariate normal"], leaps["multivariate normal"]
    return {
        "features": features,
        "seconds": seconds,
        "over_normal": {
            name: value / (leap if "leapfrog" in name else normal)
            for name, value in seconds.items()
        },
    }


def blocks(run: Callable[[], Any]) -> tuple[Callable[[], None], int]:
    """Return a block of calls, and how many: a single one is too short for the clock, and cold."""
    run()
    started = time.perf_counter()
    run()
    count = max(1, min(_BLOCK, round(_SECONDS / (time.perf_counter() - started))))

    def block() -> None:
        for _ in range(count):
            run()

    return block, count


def leapfrogs(features: int) -> dict[str, Callable[[], None]]:
    """Return runs of as many leapfrog steps, compiled and warm, for a normal and for our ways."""
    ours = priors(features)
    tril = next(iter(ours.values())).transforms[1].scale_tril
    chosen: dict[str, Any] = {
        "multivariate normal": dist.MultivariateNormal(torch.zeros(features), scale_tril=tril)
    }
    chosen |= {key: ours[key] for key in ("distilled density", "Stein path, constant, 8 nodes")}
    return {name: trajectories(prior, features) for name, prior in chosen.items()}


def trajectories(prior: Any, features: int) -> Callable[[], None]:
    def model() -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=torch.zeros(features))

    kernel = HMC(
        model, step_size=1e-3, num_steps=_LEAPS, adapt_step_size=False, adapt_mass_matrix=False,
        jit_compile=True, ignore_jit_warnings=True,
    )  # fmt: skip
    kernel.setup(0)
    state = {"params": kernel.initial_params}

    def run() -> None:
        for _ in range(_BLOCK // _LEAPS):
            state["params"] = kernel.sample(state["params"])

    return run


def main() -> None:
    parser = arguments(__doc__, "latency")
    parser.add_argument("--features", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    made = provenance(options.seed)
    rows = [row(features, options.repeats, options.seed) for features in options.features]
    for r in rows:
        print(r["features"], r["over_normal"])
    peers = {name: version(name) for name in ("zuko", "sbi")}
    write(options.name, {"provenance": made, "peers": peers, "rows": rows})


@section(60)
def page() -> str:
    result = read("latency")
    sizes = [row["features"] for row in result["rows"]]
    names = list(result["rows"][0]["over_normal"])
    rows = [
        [name, *(f"{row['over_normal'][name]:.1f}" for row in result["rows"])] for name in names
    ]
    header = ["log-density", *(f"D = {features}" for features in sizes)]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        "## What a leapfrog step pays\n\n"
        "Time of value and gradient at one point, over that of a multivariate normal. Networks of "
        f"default size, untrained; {versions}.\n\n"
        f"{table(header, rows)}\n\n{source('latency', result)}\n"
    )


if __name__ == "__main__":
    main()
