"""A catalogue of objects on a cluster: one model, one learned population, a posterior for each.

A Dask cluster of two processes on this machine stands for yours: give `Client` the address of a
scheduler, and the rest stays as it is. Kill a worker, or this script, and start it again: what is
in the store is not done twice.

    pip install 'pyro-stad[cluster]'
    python examples/cluster.py --objects 500
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_stad


def population(count: int) -> Tensor:
    """Draw objects: magnitude, colour and size, which hang together."""
    magnitude = torch.randn(count)
    colour = 0.5 * magnitude.square() + 0.3 * torch.randn(count)
    size = 0.3 * magnitude - 0.2 * colour + 0.3 * torch.randn(count)
    return torch.stack([magnitude, colour, size], 1)


def model(prior: pyro_stad.FlowPrior, seen: Tensor) -> None:
    """One object, seen with noise; the population is its prior."""
    theta = pyro.sample("theta", prior)
    pyro.sample("seen", dist.Normal(theta, 0.5).to_event(1), obs=seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--part", type=int, default=100)
    parser.add_argument("--store", default="posteriors")
    options = parser.parse_args()
    pyro.set_rng_seed(0)
    prior = pyro_stad.fit(population(4000), budget=options.budget, members=0, progress=False)
    truth = population(options.objects)
    seen = truth + 0.5 * torch.randn(options.objects, 3)
    found = sampled(partial(model, prior), seen, part=options.part, store=options.store)
    print(found.summary())
    off = (found.mean()["theta"] - truth) / found.sd()["theta"]
    print(f"posterior means are off by {off.square().mean().sqrt():.2f} posterior sds")


def sampled(of_one: Any, seen: Tensor, **options: Any) -> pyro_stad.SampledPosteriors:
    """Return the posteriors, worked on by a cluster of this machine."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        return pyro_stad.sample_posteriors(
            of_one, seen, executor=client.get_executor(), progress=False, **options
        )


if __name__ == "__main__":
    main()
