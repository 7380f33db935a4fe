"""Claim: inside NUTS a learned prior costs little more than a multivariate normal.

Value and gradient of the log-density of one point, as a leapfrog step asks for it: pyro_stad's ways
to the density, the normal, zuko's flows, sbi's flow matching (with a context that does not
matter), and a continuous flow with an autograd trace, as in FFJORD-style code. What torch.compile
can make of the fused path is tried on the likelihood alone, beside the pass by hand. Sizes are the
defaults of each package (ours: three layers of 128); networks are untrained, but no weight is
zero. Contenders take turns; one thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import cast

import pyro.distributions as dist
import torch
import zuko
from common import arguments, median_seconds, provenance, write
from sbi.inference.potentials.vector_field_potential import VectorFieldBasedPotential
from sbi.neural_nets import posterior_flow_nn
from torch import Tensor

from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.likelihood import AbstractLikelihood, Coarse, FlowODE, SteinPath
from pyro_stad.likelihood.fused import Fused
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.teacher import PathField

Density = Callable[[Tensor], Tensor]


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
    ways: dict[str, AbstractLikelihood] = {
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


def contenders(features: int) -> dict[str, Density]:
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
    return named


def row(features: int, repeats: int, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    x, found = torch.randn(features), contenders(features)
    runs = {name: partial(value_and_gradient, log_prob, x) for name, log_prob in found.items()}
    for name in ("multivariate normal", "Stein path, constant, 16 nodes"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            traced = torch.jit.trace(lambda z, f=found[name]: f(z), (x,), check_trace=False)
        runs[f"{name}, traced"] = partial(value_and_gradient, traced, x)
    seconds = median_seconds(runs, repeats)
    normal = seconds["multivariate normal"]
    return {
        "features": features,
        "seconds": seconds,
        "over_normal": {name: value / normal for name, value in seconds.items()},
    }


def main() -> None:
    parser = arguments(__doc__, "latency")
    parser.add_argument("--features", nargs="+", type=int, default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = [row(features, options.repeats, options.seed) for features in options.features]
    for r in rows:
        print(r["features"], r["over_normal"])
    peers = {name: version(name) for name in ("zuko", "sbi")}
    write(options.name, {"provenance": made, "peers": peers, "rows": rows})


if __name__ == "__main__":
    main()
