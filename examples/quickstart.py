"""Samples to posterior: learn a banana-shaped prior, condition on one number, read it in ArviZ."""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample

import pyro_stad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    pyro.set_rng_seed(0)

    # Samples of an earlier experiment: any tensor, array, table, dict or ArviZ posterior.
    bend = torch.randn(5000)
    samples = {"bend": bend, "height": 0.5 * bend**2 + 0.3 * torch.randn(5000)}
    prior = pyro_stad.fit(samples, budget=options.budget)
    print(prior.summary())

    def model(observed: torch.Tensor) -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[1], 0.2), obs=observed)

    # A learned prior knows where it lives: start there, not at Pyro's default of (-2, 2).
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample)
    mcmc = MCMC(kernel, options.draws, options.draws // 3)
    mcmc.run(torch.tensor(1.0))

    import arviz

    data = pyro_stad.to_arviz(mcmc, model=model, args=(torch.tensor(1.0),))
    print(arviz.summary(data))


if __name__ == "__main__":
    main()
