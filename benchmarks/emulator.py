"""Claim: a posterior for one call, of any datum, that is the posterior.

*Mixture*: a prior of five normals in 2 dimensions, of which the first coordinate is seen with noise
0.3, so that posteriors have several modes. *Digits*: a prior of 8 x 8 pixels, of which the means of
2 x 2 blocks are seen, with noise 1 of 16 grey levels. Emulators of 20,000 simulations by the
standard budget. For unseen data: how often a classifier tells the emulator's draws (4,000) from
particles of tempered SMC of the model itself (C2ST); means and sds against those, in posterior sds,
of a thousand draws in one call and of a thousand that the flow weighs; evidences; and the times.
Ranks of 500 truths among 99 draws each, against the 99 percent band.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from one_step import learned
from page import by, read, section, source, table
from samplers import told_apart
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad
from pyro_stad.evidence import SMC

RUNS = {
    "long": ("",),
    "smoke": (
        "--problems mixture --budget tiny --steps 20 --simulations 300 --data 1 "
        "--particles 200 --name smoke_emulator",
    ),
}  # fmt: skip


def mixture(options: Any) -> tuple[Any, Any]:
    _, prior = learned("mixture-2", options)

    def model(seen: Tensor) -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("seen", dist.Normal(theta[..., 0], 0.3), obs=seen)

    return model, torch.tensor(0.0)


def digits(options: Any) -> tuple[Any, Any]:
    pixels = torch.as_tensor(load_digits().data).float()
    pixels = pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    prior = pyro_stad.fit(
        pixels, bounds=[(0.0, 17.0)] * 64, budget=options.budget, members=0, progress=False
    )

    def model(seen: Tensor) -> None:
        theta = pyro.sample("theta", prior)
        blocks = theta.reshape(*theta.shape[:-1], 4, 2, 4, 2).mean((-1, -3))
        pyro.sample("seen", dist.Normal(blocks.flatten(-2), 1.0).to_event(1), obs=seen)

    return model, torch.zeros(16)


PROBLEMS = {"mixture": mixture, "digits": digits}


def data_of(model: Any, shape: Tensor, seed: int) -> Tensor:
    pyro.set_rng_seed(1000 + seed)
    free = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace(shape)
    return free.nodes["seen"]["value"].detach()


def compared(emulator: Any, model: Any, seen: Tensor, options: Any) -> dict[str, Any]:
    """Return how an emulated posterior compares with that of tempered SMC."""
    times = {}

    def timed(label: str, run: Any) -> Any:
        run() if label != "smc" else None  # warm
        started = time.perf_counter()
        found = run()
        times[label] = time.perf_counter() - started
        return found

    draws = timed("one call", lambda: emulator.sample(seen, num_samples=1000))["theta"]
    weighed = timed("weighed", lambda: emulator.importance(seen, draws=1000))
    known = timed("smc", lambda: pyro_stad.log_evidence(
        model, seen, method=SMC(options.particles), progress=False, allow_extrapolation=True
    ))  # fmt: skip
    truth = known.draws["theta"]
    many = emulator.sample(seen, num_samples=len(truth))["theta"]
    scale = truth.std(0)

    def off(mean: Tensor, sd: Tensor) -> tuple[float, float]:
        apart = ((mean - truth.mean(0)) / scale).square().mean().sqrt().item()
        return apart, (sd / scale).log().square().mean().sqrt().item()

    return {
        "c2st": float(told_apart(many / scale, truth / scale)),
        "draws": off(draws.mean(0), draws.std(0)),
        "weighed": off(weighed.mean()["theta"], weighed.sd()["theta"]),
        "khat": weighed.khat, "share": weighed.ess / 1000,
        "log_z": [weighed.log_z, weighed.log_z_err, known.log_z, known.log_z_err],
        "seconds": times,
    }  # fmt: skip


def emulated(name: str, options: Any) -> list[dict[str, Any]]:
    model, shape = PROBLEMS[name](options)
    started = time.perf_counter()
    emulator = pyro_stad.distil_posterior(
        model, shape, simulations=options.simulations, budget=options.budget, steps=options.steps,
        seed=options.seed, progress=False,
    )  # fmt: skip
    trained = time.perf_counter() - started
    ranks = emulator.ranks(progress=False)
    known = {
        "problem": name, "trained": trained, "within": ranks.is_uniform, "band": ranks.band(),
        "deviation": ranks.deviations().max().item(),
        "distance": emulator.generator.distilled.distance,
    }  # fmt: skip
    rows = []
    for index in range(options.data):
        seen = data_of(model, shape, index)
        rows.append({**known, "datum": index, **compared(emulator, model, seen, options)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__, "emulator")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--simulations", type=int, default=20_000)
    parser.add_argument("--data", type=int, default=4)
    parser.add_argument("--particles", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [row for name in options.problems for row in emulated(name, options)]
    write(options.name, {"provenance": made, "rows": rows})


@section(89)
def page() -> str:
    result = read("emulator")
    cells, ranks = [], []
    for (name,), rows in by(result["rows"], "problem").items():
        first = rows[0]
        ranks.append([
            name, f"{first['trained']:.0f}", f"{first['deviation']:.3f}", f"{first['band']:.3f}",
            "yes" if first["within"] else "NO",
        ])  # fmt: skip
        for row in rows:
            weighed, error, smc, smc_error = row["log_z"]
            times = row["seconds"]
            cells.append([
                name, f"{row['c2st']:.2f}", _pair(row["draws"]), _pair(row["weighed"]),
                f"{row['khat']:.2f}", f"{row['share']:.0%}", f"{weighed:.2f} +- {error:.2f}",
                f"{smc:.2f} +- {smc_error:.2f}", f"{1e3 * times['one call']:.1f}",
                f"{times['weighed'] / times['one call']:.0f}",
                f"{times['smc'] / times['one call']:.0f}",
            ])  # fmt: skip
    heads = ["problem", "seconds of training", "farthest rank", "99 % band", "within"]
    header = [
        "problem", "C2ST", "off", "off, weighed", "Pareto shape", "draws left", "log Z, weighed",
        "log Z, SMC", "ms, one call", "weighed, times", "SMC, times",
    ]  # fmt: skip
    return (
        "## Posteriors of one call\n\n"
        "Emulated posteriors of unseen data against particles of tempered SMC: C2ST of 4,000 "
        "draws; root mean square of how far means are off, in sds (in brackets, logs of sds), "
        "of a thousand draws of one call and of a thousand weighed ones; evidences; the time of "
        "one call, and how many times longer weights and SMC, of all its particles, take.\n\n"
        f"{table(header, cells)}\n\n"
        "Ranks of 500 truths among 99 draws of one call: the farthest from uniform of any "
        f"coordinate.\n\n{table(heads, ranks)}\n\n{source('emulator', result)}\n"
    )


def _pair(found: list[float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f})"


if __name__ == "__main__":
    main()
