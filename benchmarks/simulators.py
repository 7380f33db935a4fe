"""Claim: a flow learned as a simulator's likelihood gives its posterior, as a spline flow's does.

The eight tasks of the benchmark of Lueckmann, Boelts, Greenberg, Goncalves and Macke (2021),
Benchmarking Simulation-Based Inference, at their first observation, whose reference draws are in
the shared data: 10,000 simulations, a conditional flow as likelihood, tempered SMC for draws (two
of the posteriors have modes apart), and the accuracy of a classifier that tells these from the
reference (C2ST; 0.5 is perfect). Beside it zuko's NSF with as much training time, with the same
sampler. What is independent and identically distributed in an observation is learned once, as a
plate of four, by both. Counts are spread evenly over their cells, and the square root of those of
an epidemic is learned, the logarithm of populations; rates by their logarithm.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from peers import zuko_flow
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from torchdiffeq import odeint

import pyro_stad
from pyro_stad.data import Standardise, whitening

RUNS = {
    "long": (
        "--tasks two_moons gaussian_mixture gaussian_linear gaussian_linear_uniform slcp",
        "--tasks bernoulli_glm sir lotka_volterra --name processes",
    ),
    "smoke": ("--tasks two_moons --budget tiny --simulations 500 --name smoke_simulators",),
}

_DATA = Path(__file__).parents[2] / "shared" / "data" / "sbibm"
_PARTICLES, _COMPARED = 1250, 4000


class Task(NamedTuple):
    """A task of the benchmark.

    Attributes:
        prior: of the parameters that are sampled.
        simulator: of many parameters at once.
        alike: how many data in one observation are independent and alike.
        seen: from the observation to the data that the simulator returns.
        parameters: from the parameters that are sampled to the task's.
    """

    prior: Any
    simulator: Callable[[Tensor], Tensor]
    alike: int = 1
    seen: Callable[[Tensor], Tensor] = lambda x: x
    parameters: Callable[[Tensor], Tensor] = lambda theta: theta


def uniform(size: int, width: float) -> Any:
    return dist.Uniform(-width * torch.ones(size), width * torch.ones(size)).to_event(1)


def two_moons(theta: Tensor) -> Tensor:
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    moon = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    first, second = theta.T
    shift = torch.stack([-(first + second).abs(), second - first], 1) / math.sqrt(2)
    return moon + shift


def two_scales(theta: Tensor) -> Tensor:
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


def noisy(theta: Tensor) -> Tensor:
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def simple_likelihood(theta: Tensor) -> Tensor:
    """One of the four points of which an observation consists."""
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    noise = torch.randn(len(theta), 2)
    across = correlation * noise[:, 0] + (1 - correlation**2).sqrt() * noise[:, 1]
    return theta[:, :2] + torch.stack([first * noise[:, 0], second * across], 1)


def stimulus() -> Tensor:
    """Return the design of the Bernoulli regression: an offset, and white noise at nine lags."""
    noise = torch.as_tensor(np.random.RandomState(42).randn(100)).float()
    lags = [torch.cat([torch.zeros(lag), noise[: 100 - lag]]) for lag in range(9)]
    return torch.stack([torch.ones(100), *lags], 1)


def smooth_filters() -> Any:
    """Return the prior of the offset and of a filter whose second differences are small."""
    step = torch.eye(9) - torch.diag(torch.ones(8), -1)
    factor = step @ step + torch.diag((torch.arange(9) / 9).sqrt())
    precision = torch.block_diag(torch.tensor([[0.5]]), factor.T @ factor)
    return dist.MultivariateNormal(torch.zeros(10), precision_matrix=precision)


def spikes(theta: Tensor) -> Tensor:
    """Return the number of spikes, spread over its cell, and their products with the stimulus."""
    design = stimulus()
    fired = (torch.rand(len(theta), 100) < torch.sigmoid(theta @ design.T)).float()
    found = fired @ design
    return found + torch.nn.functional.pad(torch.rand(len(theta), 1) - 0.5, (0, 9))


def solved(rates: Callable[[Tensor], Tensor], start: list[float], times: Tensor) -> Tensor:
    """Return the states ``(times, B, states)`` of an ODE by Runge-Kutta's rule."""
    first = torch.tensor(start, dtype=torch.float64)
    return odeint(
        lambda _, y: rates(y), first, times.double(), method="rk4", options={"step_size": 0.05}
    )


def epidemic(log_rates: Tensor) -> Tensor:
    """Return ten counts of infected, of a thousand people each, spread over their cells."""
    contact, recovery = log_rates.double().exp().T
    people = 1e6

    def rates(state: Tensor) -> Tensor:
        susceptible, infected = state.unbind(-1)
        new = contact * susceptible * infected / people
        return torch.stack([-new, new - recovery * infected], -1)

    start = torch.tensor([people - 1, 1.0]).expand(len(log_rates), 2).tolist()
    infected = solved(rates, start, 17.0 * torch.arange(10))[..., 1].T
    share = (infected / people).clamp(0, 1)
    counts = torch.distributions.Binomial(1000, share).sample()
    return rooted(counts.float() + torch.rand(counts.shape) - 0.5)


def rooted(counts: Tensor) -> Tensor:
    return (counts + 0.5).sqrt()


def predators(log_rates: Tensor) -> Tensor:
    """Return logarithms of ten noisy counts of prey, and of ten of predators."""
    birth, hunt, death, growth = log_rates.double().exp().T

    def rates(state: Tensor) -> Tensor:
        prey, hunters = state.unbind(-1)
        return torch.stack(
            [birth * prey - hunt * prey * hunters, growth * prey * hunters - death * hunters], -1
        )

    start = torch.tensor([30.0, 1.0]).expand(len(log_rates), 2).tolist()
    states = solved(rates, start, 2.1 * torch.arange(10))
    means = states.clamp(1e-10, 1e4).log().movedim(0, -1).flatten(1).float()
    return means + 0.1 * torch.randn_like(means)


def log_normal(means: list[float], scales: list[float]) -> Any:
    """Return the law of the logarithms of log-normal rates."""
    return dist.Normal(torch.tensor(means), torch.tensor(scales)).to_event(1)


TASKS = {
    "two_moons": Task(uniform(2, 1.0), two_moons),
    "gaussian_mixture": Task(uniform(2, 10.0), two_scales),
    "gaussian_linear": Task(dist.Normal(torch.zeros(10), math.sqrt(0.1)).to_event(1), noisy),
    "gaussian_linear_uniform": Task(uniform(10, 1.0), noisy),
    "slcp": Task(uniform(5, 3.0), simple_likelihood, 4),
    "bernoulli_glm": Task(smooth_filters(), spikes),
    "sir": Task(
        log_normal([math.log(0.4), math.log(0.125)], [0.5, 0.2]),
        epidemic,
        seen=rooted,
        parameters=torch.exp,
    ),
    "lotka_volterra": Task(
        log_normal([-0.125, -3.0, -0.125, -3.0], [0.5] * 4),
        predators,
        seen=torch.log,
        parameters=torch.exp,
    ),
}


def stored(task: str, name: str) -> Tensor:
    file = next((_DATA / task).glob(f"{name}.csv*"))
    return torch.as_tensor(np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)).float()


def zuko_likelihood(
    theta: Tensor, x: Tensor, seconds: float, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Train zuko's conditional flow for a time; return its log-density of x given theta."""
    names = tuple(map(str, range(x.shape[1])))
    whiten = Standardise(*(part.to(x) for part in whitening(x, None, names)))
    loc, scale = theta.mean(0), theta.std(0)
    peer, _ = zuko_flow(whiten.inv(x), seconds, seed, context=(theta - loc) / scale)

    def log_prob(x: Tensor, theta: Tensor) -> Tensor:
        return peer(whiten.inv(x), (theta - loc) / scale) - whiten.log_det

    return log_prob


def c2st(draws: Tensor, reference: Tensor, seed: int) -> float:
    """Return the accuracy of a classifier that tells draws from the reference, cross-validated."""
    loc, scale = reference.mean(0), reference.std(0)
    rows = ((torch.cat([draws, reference]) - loc) / scale).numpy()
    labels = np.repeat([0, 1], [len(draws), len(reference)])
    width = 10 * reference.shape[1]
    network = MLPClassifier((width, width), max_iter=300, random_state=seed, early_stopping=True)
    order = np.random.default_rng(seed).permutation(len(rows))
    return float(cross_val_score(network, rows[order], labels[order], cv=5).mean())


def posterior(task: Task, log_likelihood: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """Return draws by tempered SMC; the log-likelihood takes parameters ``(..., C)``."""

    def model() -> None:
        pyro.factor("x", log_likelihood(pyro.sample("theta", task.prior)))

    found = pyro_stad.log_evidence(
        model, method="smc", particles=_PARTICLES, seed=seed, progress=False
    )
    return found.draws["theta"]


def one(name: str, options: Any) -> dict[str, Any]:
    task, seed = TASKS[name], options.seed
    x0 = task.seen(stored(name, "observation")).reshape(task.alike, -1)
    reference = stored(name, "reference_posterior_samples")[:_COMPARED]
    # A simulation of the task is of all points that are alike: the budget is of those.
    pairs = pyro_stad.simulate(
        task.simulator, task.prior, options.simulations * task.alike, batched=True, seed=seed,
        progress=False,
    )  # fmt: skip
    started = time.perf_counter()
    flow = pairs.fit(budget=options.budget, seed=seed, progress=False)
    seconds = time.perf_counter() - started
    peer = zuko_likelihood(pairs.theta, pairs.x, seconds, seed)
    found: dict[str, Any] = {"task": name, "seconds": seconds, "way": repr(flow)}
    likelihoods: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda theta: flow(theta[..., None, :]).log_prob(x0).sum(-1),
        "zuko NSF": lambda theta: peer(x0, theta[..., None, :]).sum(-1),
    }
    for side, likelihood in likelihoods.items():
        draws = task.parameters(posterior(task, likelihood, seed)[:_COMPARED])
        found[side] = c2st(draws.float(), reference, seed)
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = arguments(__doc__, "simulators")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--budget", default="standard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    made["versions"]["zuko"] = version("zuko")
    rows = [one(name, options) for name in options.tasks]
    write(
        options.name,
        {"provenance": made, "simulations": options.simulations, "rows": rows},
    )


@section(108)
def page() -> str:
    result, processes = read("simulators"), read("processes")
    header = ["task", "pyro_stad", "zuko NSF"]
    rows = [
        [row["task"].replace("_", " "), *(f"{row[side]:.3f}" for side in ("ours", "zuko NSF"))]
        for row in [*result["rows"], *processes["rows"]]
    ]
    return (
        "## Simulators' likelihoods\n\n"
        f"A conditional flow as the likelihood, from {result['simulations']:,} simulations: how "
        "well a classifier tells the posterior from the reference (C2ST, 0.5 is perfect). zuko's "
        "NSF has trained as long, and has the same sampler.\n\n"
        f"{table(header, rows)}\n\n{source('simulators', result)}\n\n"
        f"{source('simulators', processes)}\n"
    )


if __name__ == "__main__":
    main()
