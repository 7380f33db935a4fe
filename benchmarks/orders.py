"""Claim: samplers have the orders of the theory, and keep the law of an exact score.

*Orders*: the variance of draws of normal data, without chance (``pyro_stad.testing.sampling``),
less that of the data, at numbers of steps that double; and the slope of the last two.
*Stationarity*: 10,000 draws of a mixture in 2 dimensions by 1,000 steps with the exact field: the
largest z-score of means, covariances and weights of modes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from samplers import SAMPLERS

from pyro_stad.drawing import AbstractPhaseSampler, AbstractSampler, Grid
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.paths import VPCosine
from pyro_stad.testing.sampling import drawn_variance, true_variance

RUNS = {
    "long": ("",),
    "smoke": ("--finest 64 --steps 20 --draws 200 --name smoke_orders",),
}
_ORDERS = {"ODE, Heun": 2, "ODE, RK4": 4, "DPM-Solver++(2M)": 2, "EDM, churn": 2}
_VARIANCE = 0.25


def order(sampler: AbstractSampler, expected: int, finest: int) -> dict[str, Any]:
    """Return the errors of the variance on grids of doubling steps, and the last slope."""
    clock = sampler.path if isinstance(sampler, AbstractPhaseSampler) else VPCosine()
    low = VPCosine().angles()[0]
    last = finest // 32 if expected == 4 else finest // 4 if expected == 2 else finest
    steps = [last // 8, last // 4, last // 2, last]
    errors = [
        drawn_variance(on, _VARIANCE) - true_variance(on, _VARIANCE, low)
        for on in (replace(sampler, grid=Grid(max(1, n), clock=clock)) for n in steps)
    ]
    slope = math.log2(abs(errors[-2] / errors[-1]))
    return {"expected": expected, "steps": steps, "errors": errors, "slope": slope}


@torch.no_grad()
def strong(sampler: AbstractSampler, finest: int) -> float | None:
    """Return the slope of the distance to a finer solve from the same noise, draw by draw."""
    if sampler.is_stochastic:
        return None
    clock = sampler.path if isinstance(sampler, AbstractPhaseSampler) else VPCosine()
    field = GaussianMixtureField(VPCosine(), *random_mixture(2))
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def drawn(steps: int) -> torch.Tensor:
        on = replace(sampler, grid=Grid(steps, clock=clock))
        return on.draw(field, z, torch.Generator().manual_seed(1))

    truth = drawn(8 * finest)
    errors = [(drawn(n) - truth).square().mean().sqrt().item() for n in (finest // 2, finest)]
    return math.log2(errors[0] / errors[1])


@torch.no_grad()
def stationary(sampler: AbstractSampler, steps: int, draws: int) -> dict[str, float]:
    """Return the largest z-scores of moments and of weights of modes."""
    weights, means, covariances = parts = random_mixture(2)
    field = GaussianMixtureField(VPCosine(), *parts)
    source = torch.Generator().manual_seed(0)
    z = torch.randn(draws, 2, generator=source, dtype=torch.float64)
    x = replace(sampler, grid=steps).draw(field, z, source)
    laws = torch.distributions.MultivariateNormal(means, covariances)
    share = (laws.log_prob(x[:, None]) + weights.log()).softmax(-1)

    def score(values: torch.Tensor, truth: torch.Tensor) -> float:
        error = values.std(0) / math.sqrt(draws)
        return ((values.mean(0) - truth) / error).abs().max().item()

    products = torch.stack([x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], -1)
    # The law at the data end is blurred by a hundredth.
    blur = math.tan(VPCosine().angles()[0]) ** 2
    covariance = torch.tensor([1 + blur, 1 + blur, 0.0], dtype=x.dtype)
    return {
        "mean": score(x, torch.zeros(2, dtype=x.dtype)),
        "covariance": score(products, covariance),
        "weights": score(share, weights),
    }


def main() -> None:
    parser = arguments(__doc__, "orders")
    parser.add_argument("--finest", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = []
    for label, sampler in SAMPLERS.items():
        if sampler.denoise:  # what it draws is no law of the data
            continue
        row = {"sampler": label, **order(sampler, _ORDERS.get(label, 1), options.finest)}
        row["strong"] = strong(sampler, max(4, row["steps"][-1] // 4))
        rows.append({**row, **stationary(sampler, options.steps, options.draws)})
        print(rows[-1], flush=True)
    write(options.name, {"provenance": made, "rows": rows})


@section(84)
def page() -> str:
    result = read("orders")
    rows = [
        [
            row["sampler"],
            str(row["expected"]),
            f"{row['slope']:.2f}",
            "-" if row["strong"] is None else f"{row['strong']:.2f}",
            f"{row['errors'][-1]:+.1e} ({row['steps'][-1]})",
            *(f"{row[key]:.1f}" for key in ("mean", "covariance", "weights")),
        ]
        for row in result["rows"]
    ]
    header = [
        "sampler",
        "order",
        "slope",
        "strong slope",
        "error (steps)",
        "z, mean",
        "z, covariance",
        "z, weights",
    ]
    return (
        "## Orders of samplers\n\n"
        "The variance of draws of N(0, 0.25), computed without chance, less the true one, with the "
        "slope of its last two; the slope of the distance to a finer solve, draw by draw, without "
        "noise on the way; and the largest z-scores of 10,000 draws of a mixture by 1,000 "
        "steps with the exact field, all from one noise, whose own mean is 3.4 standard errors "
        "off. A corrector with steps of a fixed size converges more slowly, and noise that is "
        "made more than it should be not at all. A splitting has order 1 whatever its string: B "
        "changes the momenta that its own force depends on.\n\n"
        f"{table(header, rows)}\n\n{source('orders', result)}\n"
    )


if __name__ == "__main__":
    main()
