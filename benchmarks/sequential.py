"""Claim: evidence adds up: log Z(all) = log Z(A) + log Z(B | the prior learned from A), to 0.1 nat.

The demo's data, patients in two halves, where all three are known in closed form. The posterior of
A, learned from 10,000 draws, is the prior of B. Every method that needs no chain is held against
the closed form; and the bridge, from NUTS under the distilled density, with its correction.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

import pyro_stad
from pyro_stad.demo.closed_form import NormalInverseGamma
from pyro_stad.demo.regression import load_halves

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
}  # fmt: skip


def regression(theta: Tensor, x: Tensor, y: Tensor) -> None:
    mean = (x @ theta[..., :-1, None])[..., 0]
    sigma = theta[..., -1:].exp()
    pyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)


def weak_model(x: Tensor, y: Tensor) -> None:
    """Regression under the weak prior of the demo."""
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    sigma = precision.rsqrt()[..., None]
    scale = sigma.expand(*sigma.shape[:-1], x.shape[1])
    beta = pyro.sample("beta", dist.Normal(torch.zeros_like(scale), scale).to_event(1))
    regression(torch.cat([beta, sigma.log()], dim=-1), x, y)


def learned_model(prior: pyro_stad.FlowPrior, x: Tensor, y: Tensor) -> None:
    regression(pyro.sample("theta", prior), x, y)


def row(what: str, truth: float, found: pyro_stad.EvidenceResult) -> dict[str, object]:
    print(what, f"truth {truth:.3f}")
    print(found.summary(), flush=True)
    return {
        "what": what,
        "method": found.method,
        "truth": truth,
        "log_z": found.log_z,
        "log_z_err": found.log_z_err,
        "checks": found.checks,
        "correction": found.correction,
        "likelihood_calls": found.likelihood_calls,
        "extrapolated": found.extrapolated,
    }


def main() -> None:
    parser = arguments(__doc__, "sequential")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--chain", type=int, default=800, help="draws of NUTS")
    options = parser.parse_args()
    made = provenance(options.seed)
    halves = load_halves()
    (x_a, x_b), (y_a, y_b) = halves.design, halves.response
    weak = NormalInverseGamma.weak(x_a.shape[1])
    of_a = weak.update(x_a, y_a)
    z_a, z_b = weak.log_marginal(x_a, y_a), of_a.log_marginal(x_b, y_b)
    draws = of_a.sample(options.draws, torch.Generator().manual_seed(options.seed))
    prior = pyro_stad.fit(draws, budget=options.budget, seed=options.seed, progress=False)

    quiet = {"seed": options.seed, "progress": False}
    x_all, y_all = torch.cat([x_a, x_b]), torch.cat([y_a, y_b])
    a = pyro_stad.log_evidence(weak_model, x_a, y_a, **quiet)
    both = pyro_stad.log_evidence(weak_model, x_all, y_all, **quiet)
    b_data = x_b.float(), y_b.float()
    b = pyro_stad.log_evidence(learned_model, prior, *b_data, **quiet)
    rows = [
        row("A, weak prior", z_a, a),
        row("all, weak prior", z_a + z_b, both),
        row("B, learned prior", z_b, b),
    ]
    pyro.set_rng_seed(options.seed)
    kernel = NUTS(learned_model, jit_compile=True, ignore_jit_warnings=True,
                  init_strategy=init_to_sample)  # fmt: skip
    mcmc = MCMC(kernel, options.chain, 200, disable_progbar=True)
    mcmc.run(prior, *b_data)
    bridged = pyro_stad.log_evidence(
        learned_model, prior, *b_data, method="bridge", draws=mcmc, **quiet
    )
    rows.append(row("B, learned prior", z_b, bridged))
    identity = both.log_z - a.log_z - b.log_z
    error = (both.log_z_err**2 + a.log_z_err**2 + b.log_z_err**2) ** 0.5
    print(f"identity: {identity:+.3f} +- {error:.3f}")
    write(options.name, {"provenance": made, "rows": rows, "identity": [identity, error]})


@section(250)
def page() -> str:
    result = read("sequential")
    rows = [
        [
            row["what"],
            row["method"],
            f"{row['truth']:.3f}",
            f"{row['log_z']:.3f} +- {row['log_z_err']:.3f}",
            f"{row['log_z'] - row['truth']:+.3f}",
            "-" if row["correction"] is None else "{:+.3f} +- {:.3f}".format(*row["correction"]),
        ]
        for row in result["rows"]
    ]
    header = ["evidence", "method", "closed form", "log Z", "error", "correction in it"]
    identity, error = result["identity"]
    return (
        "## Evidence adds up\n\n"
        "The demo's patients. log Z(all) - log Z(A) - log Z(B | the prior learned from A) = "
        f"{identity:+.3f} +- {error:.3f}, zero in closed form.\n\n"
        f"{table(header, rows)}\n\n{source('sequential', result)}\n"
    )


if __name__ == "__main__":
    main()
