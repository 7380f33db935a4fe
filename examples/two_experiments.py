"""Two experiments, one simulator: its likelihood learned, and both posteriors combined.

An instrument counts how long something lives, with a dead time that nobody has written down as a
density. Its simulator is learned as a likelihood. Two laboratories measure; each publishes a chain;
the chains alone give the joint posterior, and say whether the laboratories agree.
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_stad

PRIOR = {"life": dist.Uniform(0.5, 5.0), "dead_time": dist.Uniform(0.0, 1.0)}


def instrument(theta: Tensor) -> Tensor:
    """Return the logarithms of four sorted times, seen late."""
    times = theta[..., :1] * torch.empty(*theta.shape[:-1], 4).exponential_()
    late = theta[..., 1:] * torch.rand(*theta.shape[:-1], 4)
    return (times + late).sort(-1).values.log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    pyro.set_rng_seed(0)

    pairs = pyro_stad.simulate(instrument, PRIOR, options.simulations, batched=True)
    likelihood = pairs.fit(budget=options.budget)
    print(likelihood.summary())

    def model(y: Tensor) -> None:
        life = pyro.sample("life", PRIOR["life"])
        dead_time = pyro.sample("dead_time", PRIOR["dead_time"])
        with pyro.plate("runs", len(y)):
            pyro.sample("y", likelihood(torch.stack([life, dead_time], -1)), obs=y)

    posteriors = []
    for life in (2.0, 2.2):
        y = instrument(torch.tensor([life, 0.4]).expand(15, 2))
        kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
        mcmc = MCMC(kernel, options.draws, options.draws // 2)
        mcmc.run(y)
        print(pyro_stad.correct(mcmc, model, y, draws=min(options.draws, 500)).summary())
        posteriors.append(
            pyro_stad.fit(
                mcmc.get_samples(), bounds={"life": (0.5, 5), "dead_time": (0, 1)},
                budget=options.budget,
            )
        )  # fmt: skip
    print(pyro_stad.tension(*posteriors, shared_prior=PRIOR, progress=False).summary())
    both = pyro_stad.combine(*posteriors, shared_prior=PRIOR, progress=False)
    life = both.unpack(both.pool)["life"]
    print(f"together: life {life.mean():.2f} +- {life.std():.2f}")


if __name__ == "__main__":
    main()
