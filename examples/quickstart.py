"""Samples to posterior: learn a bent prior, measure one coordinate, read the other in ArviZ.

The samples know that height grows as the square of bend. Here bend alone is measured, and the
posterior of height comes from what was learned. It has a closed form, printed beside.
"""

from __future__ import annotations

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from torch import Tensor

import pyro_stad

NOISE = 0.3  # of the measurement


def closed_form(measured: float) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the posterior of the law that the samples come from."""
    mean, variance = measured / (1 + NOISE**2), NOISE**2 / (1 + NOISE**2)
    square = 2 * variance**2 + 4 * mean**2 * variance  # the variance of bend squared
    return {
        "bend": (mean, math.sqrt(variance)),
        "height": (0.25 * (mean**2 + variance), math.sqrt(square / 16 + 0.25)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    pyro.set_rng_seed(0)

    # Samples of an earlier experiment: any tensor, array, table, dict or ArviZ posterior.
    bend = torch.randn(5000)
    samples = {"bend": bend, "height": 0.25 * bend**2 + 0.5 * torch.randn(5000)}
    prior = pyro_stad.fit(samples, budget=options.budget)
    print(prior.summary())

    def model(measured: Tensor) -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[..., 0], NOISE), obs=measured)

    # Two chains, so that R-hat can compare them, one after the other: it works on any machine.
    measured = torch.tensor(2.0)
    chains = []
    for _ in range(2):
        # A learned prior knows where it lives: start there, not at Pyro's default of (-2, 2).
        kernel = NUTS(
            model, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample
        )
        mcmc = MCMC(kernel, options.draws, warmup_steps=options.draws // 3)
        mcmc.run(measured)
        chains.append(mcmc.get_samples()["theta"])

    import arviz

    draws = {"theta": torch.cat(chains)}
    data = pyro_stad.to_arviz(draws, num_chains=2, model=model, args=(measured,))
    table = arviz.summary(data)
    print(f"\n{'':14} {'mean':>8} {'sd':>8} {'exact':>8} {'sd':>8} {'ESS':>8} {'R-hat':>8}")
    for name, (mean, sd) in closed_form(measured.item()).items():
        row = table.loc[f"theta[{name}]"].astype(float)
        print(
            f"theta[{name}]".ljust(14),
            *(f"{value:8.2f}" for value in (row["mean"], row["sd"], mean, sd)),
            f"{row['ess_bulk']:8.0f} {row['r_hat']:8.2f}",
        )


if __name__ == "__main__":
    main()
