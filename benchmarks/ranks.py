"""Claim: posteriors under learned laws are calibrated: the truth has any rank among their draws.

Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating
Bayesian Inference Algorithms with Simulation-Based Calibration), 500 simulations of two models. The
truth comes from the law that was learned, and not from what was learned of it, so that errors of
learning count. A learned prior: a mixture of five in two dimensions, seen with noise. A learned
likelihood: the two moons of a benchmark of simulators, from 10,000 simulations. Posteriors of all
simulations at once by `log_evidences`. The ranks of both parameters, and of the posterior density
at the truth, against the simultaneous band of a uniform law (Saeilynoja, Buerkner and Vehtari
(2022), Graphical Test for Discrete Uniformity).
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from arviz.stats.ecdf_utils import ecdf_confidence_band
from common import arguments, provenance, write
from page import DOCS, read, section, source, table
from priors import fitted
from simulators import two_moons, uniform
from torch import Tensor

import pyro_stad
from pyro_stad.fields.mixture import random_mixture, sample_mixture

RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --simulations 20 --trained 500 --name smoke_ranks",),
}

_NOISE, _THIN, _PROBABILITY = 0.5, 99, 0.99
_POINTS = np.linspace(0.01, 0.99, 99)


class Problem:
    """A model of one datum, and its truth.

    Attributes:
        model: of one row of data.
        theta: of each simulation, ``(N, 2)``.
        x: what was simulated, ``(N, 2)``.
        log_joint: of parameters ``(..., 2)`` and data.
    """

    def __init__(
        self, model: Callable[..., None], theta: Tensor, x: Tensor, log_joint: Callable[..., Tensor]
    ) -> None:
        self.model, self.theta, self.x, self.log_joint = model, theta, x, log_joint


def learned_prior(options: Any) -> Problem:
    parts = random_mixture(2, 5, options.seed)
    prior = fitted(
        sample_mixture(parts, options.trained, options.seed + 1).float(), None, options.budget,
        options.seed,
    )  # fmt: skip
    theta = sample_mixture(parts, options.simulations, options.seed + 2).float()

    def seen(theta: Tensor) -> Any:
        return dist.Normal(theta, _NOISE).to_event(1)

    def model(x: Tensor) -> None:
        pyro.sample("x", seen(pyro.sample("theta", prior)), obs=x)

    def log_joint(theta: Tensor, x: Tensor) -> Tensor:
        return prior.log_prob(theta) + seen(theta).log_prob(x)

    return Problem(model, theta, seen(theta).sample(), log_joint)


def learned_likelihood(options: Any) -> Problem:
    prior = uniform(2, 1.0)
    pairs = pyro_stad.simulate(
        two_moons, prior, options.trained, batched=True, seed=options.seed, progress=False
    )
    flow = pairs.fit(budget=options.budget, seed=options.seed, progress=False)
    theta = prior.sample((options.simulations,))

    def model(x: Tensor) -> None:
        pyro.sample("x", flow(pyro.sample("theta", prior)), obs=x)

    def log_joint(theta: Tensor, x: Tensor) -> Tensor:
        return flow(theta).log_prob(x)

    return Problem(model, theta, two_moons(theta), log_joint)


PROBLEMS = {"learned prior": learned_prior, "learned likelihood": learned_likelihood}


def ranks(problem: Problem, draws: list[Tensor], seed: int) -> dict[str, Tensor]:
    """Return the place of the truth among thinned draws, between zero and one, ``(N,)``."""
    source = torch.Generator().manual_seed(seed)
    kept = torch.stack([d[torch.randperm(len(d), generator=source)[:_THIN]] for d in draws])
    kept = kept.to(problem.theta)
    with torch.no_grad():
        of_draws = problem.log_joint(kept, problem.x[:, None])
        of_truth = problem.log_joint(problem.theta, problem.x)
    below = {
        "first": (kept[..., 0] < problem.theta[:, None, 0]).sum(1),
        "second": (kept[..., 1] < problem.theta[:, None, 1]).sum(1),
        "density": (of_draws < of_truth[:, None]).sum(1),
    }
    return {
        name: (count + torch.rand(len(count), generator=source)) / (_THIN + 1)
        for name, count in below.items()
    }


def one(name: str, options: Any) -> list[dict[str, Any]]:
    torch.manual_seed(options.seed)
    problem = PROBLEMS[name](options)
    started = time.perf_counter()
    found = pyro_stad.log_evidences(
        problem.model, problem.x, particles=options.particles, repeats=2, seed=options.seed,
        progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    count = len(problem.theta)
    low, high = ecdf_confidence_band(count, _POINTS, _POINTS, prob=_PROBABILITY)
    rows = []
    places = ranks(problem, [each.draws["theta"] for each in found], options.seed)
    for what, place in places.items():
        below = (place.double()[:, None] <= torch.as_tensor(_POINTS)).double().mean(0).numpy()
        # How much of the band's width the worst point takes: beyond one it is outside.
        middle, half = (low + high) / 2, (high - low) / 2
        row = {
            "model": name,
            "rank": what,
            "simulations": count,
            "worst": float((np.abs(below - middle) / half).max()),
            "curve": (below - _POINTS).tolist(),
            "band": [(low - _POINTS).tolist(), (high - _POINTS).tolist()],
            "seconds": seconds,
        }
        print(name, what, row["worst"], f"{seconds:.0f} s", file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments(__doc__, "ranks")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--trained", type=int, default=10_000)
    parser.add_argument("--particles", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [row for name in PROBLEMS for row in one(name, options)]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw how far the ranks' distribution is from a uniform one, in its band."""
    mpl.use("agg")
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), sharex=True, sharey=True)
    for axis, row in zip(axes.flat, rows):
        axis.fill_between(_POINTS, *row["band"], color="#d9e2ec", linewidth=0)
        axis.plot(_POINTS, row["curve"], color="#0b6e4f")
        axis.axhline(0, color="#888888", linewidth=0.6)
        axis.set_title(f"{row['model']}: {row['rank']}", fontsize=9)
    figure.supxlabel("rank of the truth, from 0 to 1", fontsize=9)
    figure.supylabel("share below, less the rank", fontsize=9)
    figure.tight_layout()
    figure.savefig(DOCS / "ranks.png", dpi=150)
    plt.close(figure)


@section(199)
def page() -> str:
    result = read("ranks")
    draw(result["rows"])
    rows = [
        [
            row["model"], row["rank"], str(row["simulations"]), f"{row['worst']:.2f}",
            f"{row['seconds']:.0f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["model", "rank of", "simulations", "worst point / band", "seconds of all posteriors"]
    return (
        "## Ranks of the truth\n\n"
        "Simulation-based calibration: the ranks of each parameter, and of the posterior density "
        "at the truth, against the simultaneous 99 % band of a uniform law. Up to 1 is inside.\n\n"
        f"{table(header, rows)}\n\n![Ranks](ranks.png)\n\n{source('ranks', result)}\n"
    )


if __name__ == "__main__":
    main()
