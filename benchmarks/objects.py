"""Claim: posteriors of thousands of objects at hundreds of times the rate of one by one.

Objects of three parameters with a learned population (of 8,000 samples), each seen with noise.
*Rate*: posteriors in a second with at least 400 effective draws of every object (its worst number),
of 1 to 10,000 objects, beside Pyro's compiled NUTS one by one, a few of them, to as many effective
draws at its own rate; everything included. *Memory*: the most that the process held, with a store.
*Calibration*: 1,000 objects drawn from the prior itself: ranks of the truth among the draws, and
how far they are from uniform, with the 99 % band.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from many_chains import theirs
from page import read, section, source, table
from torch import Tensor

import pyro_stad
from pyro_stad.infer.ranks import Ranks

RUNS = {
    "long": ("",),
    "smoke": ("--counts 1 20 --simulations 60 --alone 1 --nuts 40 --budget tiny",),
}  # fmt: skip
_NOISE = 0.5


def population(count: int) -> Tensor:
    """Draw objects: magnitude, colour and size, which hang together."""
    magnitude = torch.randn(count)
    colour = 0.5 * magnitude.square() + 0.3 * torch.randn(count)
    size = 0.3 * magnitude - 0.2 * colour + 0.3 * torch.randn(count)
    return torch.stack([magnitude, colour, size], 1)


def model(prior: Any, seen: Tensor) -> None:
    theta = pyro.sample("theta", prior)
    pyro.sample("seen", dist.Normal(theta, _NOISE).to_event(1), obs=seen)


def noisy(theta: Tensor) -> Tensor:
    return theta + _NOISE * torch.randn(theta.shape)


def sampled(prior: Any, seen: Tensor, options: Any, **more: Any) -> dict[str, Any]:
    started = time.perf_counter()
    found = pyro_stad.sample_posteriors(
        partial(model, prior), seen, num_chains=16, num_samples=40, min_ess=options.ess, part=1024,
        form="parameters", seed=options.seed, progress=False, **more,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return {
        "objects": len(seen), "seconds": seconds, "median": found.ess.median().item(),
        "fewest": found.ess.min().item(), "disagreeing": int(found.disagreeing.sum()),
        "short": int((found.ess < options.ess).sum()),
    }  # fmt: skip


def in_its_own_process(prior: Any, seen: Tensor, options: Any) -> dict[str, Any]:
    """Return what sampling takes, with the megabytes beyond what the process began with."""
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe()

    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with tempfile.TemporaryDirectory() as folder:
            found = sampled(prior, seen, options, store=folder)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        its.send({**found, "megabytes": held / 2**10})

    process = context.Process(target=work)
    process.start()
    found = ours.recv()
    process.join()
    return found


def calibration(prior: Any, options: Any) -> dict[str, Any]:
    """Return how far ranks of the truth are from uniform, of objects drawn from the prior."""
    truth = prior.sample((options.simulations,))
    started = time.perf_counter()
    found = pyro_stad.sample_posteriors(
        partial(model, prior), noisy(truth), num_chains=16, num_samples=40, min_ess=options.ess,
        part=1024, seed=options.seed, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    draws = found.draws["theta"].flatten(1, 2)
    # A hundred of each, chains and moves apart: neighbours in a chain are worth less.
    few = draws[:, :: draws.shape[1] // 100]
    ranks = Ranks((few < truth[:, None]).sum(1), few.shape[1], ("magnitude", "colour", "size"))
    return {
        "simulations": options.simulations, "seconds": seconds, "band": ranks.band(),
        "deviations": ranks.deviations().tolist(), "uniform": ranks.is_uniform,
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "objects")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 100, 1000, 10_000])
    parser.add_argument("--ess", type=float, default=400.0)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=5, help="objects of NUTS")
    parser.add_argument("--nuts", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    pyro.set_rng_seed(options.seed)
    prior = pyro_stad.fit(
        population(8000), budget=options.budget, members=0, seed=options.seed, progress=False
    )
    seen = noisy(population(max(options.counts)))
    alone = [theirs(partial(model, prior, y), options) for y in seen[: options.alone]]
    rows = []
    for count in options.counts:
        rows.append(in_its_own_process(prior, seen[:count], options))
        print(rows[-1], flush=True)
    calibrated = calibration(prior, options)
    print(calibrated)
    write(options.name, {
        "provenance": made, "ess": options.ess, "nuts": alone, "rows": rows,
        "calibration": calibrated,
    })  # fmt: skip


@section(92)
def page() -> str:
    result = read("objects")
    each = float(np.mean([nuts["seconds"] for nuts in result["nuts"]]))
    cells = [
        [
            f"{row['objects']:,}", f"{row['objects'] / row['seconds']:.1f}",
            f"{each * row['objects'] / row['seconds']:.0f}", f"{row['median']:.0f}",
            f"{row['fewest']:.0f}", f"{row['megabytes']:.0f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["objects", "posteriors a second", "times NUTS", "effective draws, median", "fewest"]
    known = result["calibration"]
    found = ", ".join(f"{value:.3f}" for value in known["deviations"])
    where = "within" if known["uniform"] else "OUTSIDE"
    return (
        "## Many objects at once\n\n"
        f"Three parameters each, a learned population, one thread, {result['ess']:.0f} effective "
        "draws of every object at least, 16 chains; compiled NUTS, one by one, to as many, "
        f"{len(result['nuts'])} of them. Megabytes are the most that the process held beyond what "
        f"it began with, draws being in a store.\n\n{table([*header, 'megabytes'], cells)}\n\n"
        f"Simulation-based calibration, {known['simulations']:,} objects drawn from the prior: "
        f"ranks are {where} the 99 % band of {known['band']:.3f}, farthest from uniform by {found} "
        f"(magnitude, colour, size); {known['seconds']:.0f} s.\n\n{source('objects', result)}\n"
    )


if __name__ == "__main__":
    main()
