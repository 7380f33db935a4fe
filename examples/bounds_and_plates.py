"""One learned prior for many objects: a population with bounds, a plate, and the auxiliary form.

Each object has a rate (positive) and a fraction (between 0 and 1), correlated over the population.
Each is observed once, with noise. In the auxiliary form NUTS works on the noise behind the prior
and never evaluates a divergence.
"""

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
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    pyro.set_rng_seed(0)

    latent = torch.randn(5000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    population = {"rate": (0.5 * latent[:, 0]).exp(), "fraction": torch.sigmoid(latent[:, 1])}
    prior = pyro_stad.fit(
        population, bounds={"rate": (0, None), "fraction": (0, 1)}, budget=options.budget
    )
    truth = prior.sample((options.objects,))
    observed = truth + torch.tensor([0.3, 0.1]) * torch.randn(options.objects, 2)

    def model() -> None:
        with pyro.plate("objects", options.objects):
            theta = pyro.sample("theta", prior)
            noise = torch.tensor([0.3, 0.1])
            pyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=observed)

    auxiliary = pyro_stad.FlowReparam("noise")(model)
    kernel = NUTS(
        auxiliary, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample
    )
    mcmc = MCMC(kernel, options.draws, options.draws // 2)
    mcmc.run()
    data = pyro_stad.to_arviz(mcmc, model=auxiliary, prior={"theta": prior})
    posterior = torch.tensor(data["posterior"]["theta"].values)
    error = (posterior.mean((0, 1)) - truth).square().mean(0).sqrt()
    raw = (observed - truth).square().mean(0).sqrt()
    for name, before, after in zip(prior.names, raw, error):
        print(f"{name}: error {before:.3f} observed, {after:.3f} with the population as prior")


if __name__ == "__main__":
    main()
