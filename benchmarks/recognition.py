"""Claim: a recognition guide has the bound of variational inference datum by datum, in a call.

Photographs of digits with noise, their prior a flow of 64 pixels, in its noise: a mean field by one
network against a mean field with parameters of its own for each held-out photograph. And a
hierarchy of a table: the sound of airfoils by frequency, a curve for each airfoil and flow of air,
normal among these. Evidence lower bounds of the held-out, and the time of each datum's posterior;
with both, the importance weights of the guide: how many data they can be believed of, and what
the evidence is.
"""

from __future__ import annotations

import gzip
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, median_seconds, provenance, write
from page import read, section, source, table
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad

RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --steps 20 --each 20 --held 10 --name smoke_recognition",),
}

_DATA = Path(__file__).parents[2] / "shared" / "data" / "tabular" / "airfoil.csv.gz"
_NOISE = 3.2  # of a photograph whose grey is between 0 and 16
_BATCH = 128
_ROWS = 10  # of each airfoil
_MEAN_FREQUENCY = 2886.38  # in Hz; the table has the mean of each column taken away


def trained(
    model: Any, guide: Any, batch: Callable[[], tuple[Tensor, ...]], steps: int, rate: float
) -> float:
    """Train a guide on batches, and return the seconds that it took."""
    decay = 0.02 ** (1 / steps)
    optim = pyro.optim.ClippedAdam({"lr": rate, "lrd": decay})
    svi = SVI(model, guide, optim, TraceMeanField_ELBO())
    started = time.perf_counter()
    for _ in range(steps):
        svi.step(*batch())
    return time.perf_counter() - started


def bound(model: Any, guide: Any, data: tuple[Tensor, ...]) -> float:
    """Return the evidence lower bound, in nats per datum."""
    elbo = TraceMeanField_ELBO(num_particles=200)
    with torch.no_grad():
        return -elbo.loss(model, guide, *data) / len(data[0])


def compared(
    name: str,
    model: Any,
    batch: Callable[[], tuple[Tensor, ...]],
    held: tuple[Tensor, ...],
    options: Any,
    rate: float,
) -> dict[str, Any]:
    """Hold a recognition guide against variational inference of each held-out datum."""
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    guide = pyro_stad.AmortizedGuide(model, width=options.width)
    training = trained(model, guide, batch, options.steps, rate)
    found: dict[str, Any] = {"name": name, "data": len(held[0]), "training": training}
    found["guide"] = bound(model, guide, held)
    calls = median_seconds({"guide": lambda: guide(*held)})
    found["guide_seconds"] = calls["guide"] / len(held[0])
    weighed = guide.importance(*held, draws=500, progress=False)
    found["believed"] = weighed.is_reliable.double().mean().item()
    found["log_z"] = weighed.log_z.mean().item()
    found["log_z_err"] = weighed.log_z_err.mean().item()
    site = guide.local[0].name
    start = init_to_value(values={site: torch.zeros_like(guide(*held)[site])})
    each = AutoNormal(model, init_loc_fn=start, init_scale=0.5)
    seconds = trained(model, each, lambda: held, options.each, 3e-2)
    found["each"], found["each_seconds"] = bound(model, each, held), seconds / len(held[0])
    print(found, file=sys.stderr, flush=True)
    return found


def digits(options: Any) -> dict[str, Any]:
    source = np.random.default_rng(options.seed)
    pixels = torch.as_tensor(load_digits().data).float()
    pixels = pixels[torch.as_tensor(source.permutation(len(pixels)))]
    pixels = pixels + torch.rand(pixels.shape) - 0.5  # whole numbers stand for their cells
    held, kept = pixels[: options.held], pixels[options.held :]
    prior = pyro_stad.fit(
        kept, bounds=[(-0.8, 16.8)] * 64, budget=options.budget, seed=options.seed, members=0,
        progress=False,
    )  # fmt: skip

    @pyro_stad.FlowReparam()
    def model(y: Tensor) -> None:
        with pyro.plate("photographs", len(y)):
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, _NOISE).to_event(1), obs=y)

    def batch() -> tuple[Tensor, ...]:
        """Half of real digits, half of the prior's, each with noise that is new."""
        real = kept[torch.randint(len(kept), (_BATCH // 2,))]
        with torch.no_grad():
            made = prior.sample((_BATCH // 2,))
        clean = torch.cat([real, made])
        return (clean + _NOISE * torch.randn_like(clean),)

    seen = held + _NOISE * torch.randn_like(held)
    return compared("digits", model, batch, (seen,), options, 2e-3)


def airfoils(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return frequency and sound of each airfoil in each flow of air, as columns of a table."""
    with gzip.open(_DATA, "rt") as file:
        lines = file.read().split("\n")
    rows = [line.replace(",", " ").split() for line in lines if line.strip()]
    values = torch.tensor([[float(x) for x in row] for row in rows if _is_number(row[0])])
    _, group = torch.unique(values[:, 1:5], dim=0, return_inverse=True)
    tables = [values[group == index][:, [0, 5]] for index in range(int(group.max()) + 1)]
    tables = [each for each in tables if len(each) >= _ROWS]
    order = np.random.default_rng(seed).permutation(len(tables))
    tables = [tables[index] for index in order]
    for each in tables:
        each[:, 0] = ((each[:, 0] + _MEAN_FREQUENCY) / 2000).log()
    count = len(tables) // 5
    return tables[count:], tables[:count]


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).replace("e", "", 1).isdigit()


def some_rows(tables: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ten rows of every table: frequencies and sounds ``(N, 10)``."""
    rows = [each[torch.randperm(len(each))[:_ROWS]] for each in tables]
    frequency, sound = torch.stack(rows).unbind(-1)
    return frequency, sound


def sounds(frequency: Tensor, sound: Tensor) -> None:
    """A parabola of the logarithm of frequency for each airfoil; decibels about their mean."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 10.0).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(10 * torch.ones(3)).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(5.0))
    with pyro.plate("airfoils", len(sound)):
        curve = pyro.sample("curve", dist.Normal(mean, spread).to_event(1))
        powers = torch.stack([torch.ones_like(frequency), frequency, frequency**2], -1)
        heights = (powers * curve[..., None, :]).sum(-1)
        pyro.sample("sound", dist.Normal(heights, noise).to_event(1), obs=sound)


def hierarchy(options: Any) -> dict[str, Any]:
    """Learn the population from most airfoils, then curves of the others given it."""
    kept, others = airfoils(options.seed)
    pyro.clear_param_store()
    torch.manual_seed(options.seed)
    first = AutoNormal(sounds)
    trained(sounds, first, lambda: some_rows(kept), max(options.steps // 2, 1), 2e-2)
    known = first.median(*some_rows(kept))
    population = {name: known[name].detach() for name in ("mean", "spread", "noise")}
    model = pyro.poutine.condition(sounds, data=population)

    def batch() -> tuple[Tensor, ...]:
        """Airfoils' frequencies; of most, sounds as the population has them."""
        frequency, sound = some_rows(kept)
        if torch.rand(()) < 0.25:
            return frequency, sound
        frequency = frequency.repeat(3, 1)
        curve = dist.Normal(population["mean"], population["spread"]).sample((len(frequency),))
        powers = torch.stack([torch.ones_like(frequency), frequency, frequency**2], -1)
        made = (powers * curve[:, None]).sum(-1)
        return frequency, made + population["noise"] * torch.randn_like(made)

    return compared("airfoils", model, batch, some_rows(others), options, 3e-3)


def main() -> None:
    parser = arguments(__doc__, "recognition")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--each", type=int, default=1000, help="steps of each datum's own")
    parser.add_argument("--held", type=int, default=200, help="photographs")
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [hierarchy(options), digits(options)]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(197)
def page() -> str:
    result = read("recognition")
    header = [
        "data", "held out", "bound: guide", "each its own", "evidence", "believed",
        "each / guide: time of a datum",
    ]  # fmt: skip
    rows = [
        [
            row["name"],
            str(row["data"]),
            f"{row['guide']:.2f}",
            f"{row['each']:.2f}",
            f"{row['log_z']:.2f} +- {row['log_z_err']:.2f}",
            f"{row['believed']:.0%}",
            f"{row['each_seconds'] / row['guide_seconds']:,.0f}",
        ]
        for row in result["rows"]
    ]
    return (
        "## Recognition\n\n"
        "One network that reads a datum (`AmortizedGuide`), against variational inference with "
        "parameters of each datum's own, both mean fields. Nats per held-out datum; the evidence "
        "by the guide's importance weights, and the share of data whose Pareto shape lets them "
        "be believed.\n\n"
        f"{table(header, rows)}\n\n{source('recognition', result)}\n"
    )


if __name__ == "__main__":
    main()
