"""Claim: a foreign conditional network's divergence is distilled over contexts, and serves in NUTS.

The photometric noise model of pop-cosmos (Alsing, Thorp, Deger, Peiris, Leistedt, Mortlock and
Leja (2024), pop-cosmos: A Comprehensive Picture of the Galaxy Population from COSMOS Data): 26
errors given 26 bands, from plain arrays. Contexts are bands of a brightness, as spread as in the
published examples, and a colour; or, with ``--own``, bands that each have a brightness of their
own. Points are draws of the network's own flow. A head that reads the network's hidden layers
learns the divergence by the Stein loss, then from exact labels. Against the exact trace, on the
same grid, at pairs that it has not seen; and the posterior of brightness and colour by NUTS, with
gradients through the context, against a grid of exact traces.

Near pure noise the velocity in own time is the network's error over the cosine of the angle: half
of the network's time lies in the last fifth of the angles. So the head is told that time besides
the angle, has a part that grows as the cosine falls, and is trained on as many points that are
spread evenly over the network's time.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from pyro.infer import MCMC, NUTS
from torch import Tensor, nn

import pyro_stad
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Stein
from pyro_stad.divergence.stein import AbstractDivergenceNetwork
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import ConditionalCloud, Points
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import AbstractObjective, ExactLabels, SteinObjective
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import VPLinear
from pyro_stad.transport import Flow

RUNS = {
    "long": ("",),
    "smoke": ("--pairs 1500 --steps 5 --labelled 5 --draws 10 --cells 4 --name smoke_photometry",),
}

_DATA = Path(__file__).parents[2] / "shared" / "data" / "popcosmos" / "noiseModel_weights.npz"
_BANDS, _HARMONICS, _GRID, _NETWORK = 26, 4, RK4(16), "model__score_model__model__"
_BRIGHTNESS, _OWN = 0.6, 0.3  # standard deviations over galaxies, and over bands of one


def layers_of_network() -> tuple[Tensor, list[list[Tensor]]]:
    """Return the frequencies, and weight and bias of every layer, from plain arrays."""
    stored = np.load(_DATA)
    tensors = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
    layers = [
        [tensors[f"{_NETWORK}NN__{index}__{kind}"] for kind in ("weight", "bias")]
        for index in range(6)
    ]
    return tensors[f"{_NETWORK}W"], layers


def hidden_layers(t: Tensor, x: Tensor, context: Tensor, network: Any) -> list[Tensor]:
    """Return the activations of the five hidden layers, each ``(B, 256)``."""
    frequencies, layers = network
    phase = 2 * math.pi * t[:, None] * frequencies
    last = torch.cat([phase.sin(), phase.cos(), x, context], dim=-1)
    hidden = []
    for weight, bias in layers[:-1]:
        last = torch.tanh(last @ weight.mT + bias)
        hidden.append(last)
    return hidden


def score_of(network: Any) -> Any:
    """Return the score as a function of t, x and context."""
    weight, bias = network[1][-1]

    def score(t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        return hidden_layers(t, x, context, network)[-1] @ weight.mT + bias

    return score


class LayersHead(AbstractDivergenceNetwork):
    """A divergence from the hidden layers of the foreign network, and their derivatives."""

    def __init__(self, network: Any, width: int) -> None:
        super().__init__()
        self.network = network
        frequencies, layers = network
        self.sizes = [len(bias) for _, bias in layers[:-1]]
        clock = 2 * (len(frequencies) + 2 * _HARMONICS)
        inputs = 2 * sum(self.sizes) + clock
        self.chain = nn.ModuleList(
            nn.Linear(size, after, bias=False) for size, after in pairwise(self.sizes)
        )
        self.turning = nn.Linear(clock, sum(self.sizes) + self.sizes[-1])
        self.perceptron = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip
        nn.init.zeros_(self.turning.weight)
        nn.init.zeros_(self.turning.bias)

    def clock(self, angle: Tensor, time: Tensor) -> Tensor:
        """Return features of the angle, and of the time that the network was trained in."""
        count = torch.arange(1, _HARMONICS + 1)
        turns = [count * angle[:, None], count * math.pi * time[:, None]]
        turns.append(2 * math.pi * time[:, None] * self.network[0])
        phases = torch.cat(turns, -1)
        return torch.cat([phases.sin(), phases.cos()], -1)

    def residual(self, field: Any, t: Tensor, x: Tensor) -> Tensor:
        t = t.expand(len(x))
        time = field.path.time_at_angle(t)
        point = field.path.polar(time).scale[:, None] * x
        hidden = hidden_layers(time, point, field.context.expand(len(x), -1), self.network)
        slopes, clock = [1 - layer.square() for layer in hidden], self.clock(t, time)
        *biases, out, late = self.turning(clock).split([*self.sizes[1:], *2 * self.sizes[-1:]], -1)
        chain, *others = slopes
        for link, bias, slope in zip(self.chain, biases, others):
            chain = slope * (link(chain) + bias)
        both = self.perceptron(torch.cat([*slopes, *hidden, clock], -1))
        both = both + torch.stack([(chain * out).sum(-1), (chain * late).sum(-1)], -1)
        return both[:, 0] + _rising(t) * both[:, 1]

    def velocity_and_residual(self, field: Any, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return field.velocity(t, x), self.residual(field, t, x)

    def residual_and_slope(
        self, field: Any, t: Tensor, x: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda x: self.residual(field, t, x), (x,), (tangent,))


def _rising(angle: Tensor) -> Tensor:
    """Return what grows towards pure noise as the error of a score does in own time."""
    return 0.05 / angle.cos()


class EvenCloud(ConditionalCloud):
    """Points half of which are spread evenly over the angles, and half over the path's time."""

    def at(self, fraction: Tensor, generator: torch.Generator, *, frame: int = 1) -> Points:
        path = self.field.path
        angle = path.polar(path.t_min + (path.t_max - path.t_min) * fraction).angle
        even = (angle - self.field.t_min) / (self.field.t_max - self.field.t_min)
        first = torch.arange(len(fraction)) % 2 == 0
        return super().at(torch.where(first, fraction, even), generator, frame=frame)


class Weighted(AbstractObjective):
    """Another objective, in which angles near pure noise weigh as their points do."""

    def __init__(self, objective: AbstractObjective) -> None:
        self.objective = objective

    def frame(self, features: int, batch_size: int) -> int:
        return self.objective.frame(features, batch_size)

    def __call__(
        self, network: Any, field: Any, points: Points, generator: torch.Generator
    ) -> Tensor:
        found = self.objective(network, field, points, generator)
        return found / (1 + _rising(points.t)).square()


def bands(theta: Tensor) -> Tensor:
    """Return the bands ``(..., 26)`` of a brightness and a colour ``(..., 2)``."""
    slope = torch.linspace(-1, 1, _BANDS)
    return theta[..., :1] + theta[..., 1:] * slope


def pairs_of(field: Any, count: int, *, own: bool) -> Tensor:
    """Return rows of a point and its context, ``(N, 52)``, in the network's own coordinates."""
    theta = torch.randn(count, 2) * torch.tensor([_BRIGHTNESS, _OWN])
    context = theta[:, :1] + _OWN * torch.randn(count, _BANDS) if own else bands(theta)
    with torch.no_grad():
        x = Flow(field, RK4(32)).given(context).push(torch.randn(count, _BANDS))
    return torch.cat([x, context], 1)


def distilled(
    field: Any, network: LayersHead, rows: Tensor, options: Any
) -> tuple[Stein, list[dict[str, Any]]]:
    """Return the divergence, and how far it is from the exact one after each stage."""
    held, seen, kept = rows[:256], rows[256:1280], rows[1280:]
    source = torch.Generator().manual_seed(options.seed)
    clouds = [EvenCloud(field, Batches(part)) for part in (kept, seen)]
    settings = TrainingSettings(steps=options.steps, batch_size=512, learning_rate=1e-3)
    stages = (
        ("Stein", Weighted(SteinObjective()), settings),
        ("exact labels", Weighted(ExactLabels()), replace(settings, steps=options.labelled)),
    )
    x, context = held.split(_BANDS, 1)
    exact = FlowODE(field, Exact(), _GRID).given(context)
    with torch.no_grad():
        truth = exact.log_prob(x)
    found = []
    for name, objective, settings in stages:
        started = time.perf_counter()
        distil(
            network, field, objective, *clouds, settings, generator=source, progress=False,
            label=name,
        )  # fmt: skip
        way = FlowODE(field, Stein(network), _GRID).given(context)
        with torch.no_grad():
            error = way.log_prob(x) - truth
        found.append(
            {
                "stage": name,
                "sd": error.std().item(),
                "bias": error.mean().item(),
                "spread": truth.std().item(),
                "seconds": time.perf_counter() - started,
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    return Stein(network.requires_grad_(False)), found


def posterior(field: Any, divergence: Stein, options: Any) -> dict[str, Any]:
    """Hold NUTS over brightness and colour against a grid of exact traces."""
    prior = dist.Normal(torch.zeros(2), torch.tensor([_BRIGHTNESS, _OWN])).to_event(1)
    truth = torch.tensor([0.3, -0.2])
    with torch.no_grad():
        x = Flow(field, RK4(32)).given(bands(truth)[None]).push(torch.randn(1, _BANDS))
    way, exact = (FlowODE(field, each, _GRID) for each in (divergence, Exact()))

    def model() -> None:
        theta = pyro.sample("theta", prior)
        pyro.factor("x", way.given(bands(theta)[None]).log_prob(x).sum())

    started = time.perf_counter()
    # Shallow trees: every leapfrog solves an ODE, twice with its gradient.
    mcmc = MCMC(
        NUTS(model, max_tree_depth=4), options.draws, options.draws // 2, disable_progbar=True
    )
    mcmc.run()
    seconds = time.perf_counter() - started
    draws = mcmc.get_samples()["theta"]
    sides = [torch.linspace(-3, 3, options.cells) * scale for scale in (_BRIGHTNESS, _OWN)]
    cells = torch.cartesian_prod(*sides)
    with torch.no_grad():
        log_p = exact.given(bands(cells)).log_prob(x.expand(len(cells), -1)) + prior.log_prob(cells)
    weights = torch.softmax(log_p.double(), 0).to(cells)
    mean = weights @ cells
    sd = (weights @ (cells - mean).square()).sqrt()
    found = {
        "mean": ((draws.mean(0) - mean) / sd).abs().max().item(),
        "sd": (draws.std(0) / sd - 1).abs().max().item(),
        "effective": mcmc.diagnostics()["theta"]["n_eff"].min().item(),
        "divergences": sum(map(len, mcmc.diagnostics()["divergences"].values())),
        "seconds": seconds,
    }
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = arguments(__doc__, "photometry")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--labelled", type=int, default=10_000)
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--cells", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    network = layers_of_network()
    field = pyro_stad.from_score(
        score_of(network), path=VPLinear(t_min=1e-3), features=_BANDS, context_shape=_BANDS
    )
    rows = pairs_of(field, options.pairs, own=options.own)
    divergence, stages = distilled(field, LayersHead(network, options.width), rows, options)
    found = posterior(field, divergence, options)
    write(options.name, {"provenance": made, "stages": stages, "nuts": found})


@section(191)
def page() -> str:
    result = read("photometry")
    rows = [
        [row["stage"], f"{row['sd']:.2f}", f"{row['bias']:+.2f}", f"{row['seconds']:.0f}"]
        for row in result["stages"]
    ]
    nuts, spread = result["nuts"], result["stages"][0]["spread"]
    return (
        "## A foreign conditional network\n\n"
        "The photometric noise of pop-cosmos, 26 errors given 26 bands, from plain arrays: "
        "log_prob by a divergence that is distilled over the contexts of a model, less the exact "
        f"trace, at 256 unseen pairs (nat; the density itself spreads by {spread:.1f} there), and "
        "seconds of training.\n\n"
        f"{table(['after', 'sd', 'bias', 'seconds'], rows)}\n\n"
        f"Brightness and colour by NUTS with it, {nuts['effective']:.0f} effective draws in "
        f"{nuts['seconds']:.0f} s, {nuts['divergences']} divergences: means within "
        f"{nuts['mean']:.2f} standard deviations of a grid of exact traces, standard deviations "
        f"within {nuts['sd']:.0%}.\n\n{source('photometry', result)}\n"
    )


if __name__ == "__main__":
    main()
