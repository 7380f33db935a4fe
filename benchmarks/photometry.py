"""Claim: a foreign conditional network's divergence is distilled over contexts, and serves in NUTS.

The photometric noise model of pop-cosmos (Alsing, Thorp, Deger, Peiris, Leistedt, Mortlock and
Leja (2024), pop-cosmos: A Comprehensive Picture of the Galaxy Population from COSMOS Data): 26
errors given 26 bands, a network that shows no layers, from plain arrays. Contexts are bands as
bright as the published examples': a common brightness, and each band's own. Points are draws of
the network's own flow. A network of 3 layers learns the divergence by the Stein loss, then by a few
Hutchinson products. Against the exact trace, on the same grid, at pairs that it has not seen; and
the posterior of a brightness and a colour by NUTS, with gradients through the context, against a
grid of exact traces.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_stad
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, SeparateNetwork, Stein
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import cloud_for
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import HutchinsonLabels, SteinObjective
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import VPLinear
from pyro_stad.transport import Flow

RUNS = {
    "long": ("",),
    "smoke": ("--pairs 300 --steps 20 --draws 10 --cells 4 --name smoke_photometry",),
}

_DATA = Path(__file__).parents[2] / "shared" / "data" / "popcosmos" / "noiseModel_weights.npz"
_BANDS, _GRID, _NETWORK = 26, RK4(16), "model__score_model__model__"
_BRIGHTNESS, _OWN = 0.6, 0.3  # standard deviations over galaxies, and over bands of one


def score_network() -> Any:
    """Return the score as a function of t, x and context, from plain arrays."""
    stored = np.load(_DATA)
    tensors = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
    layers = [
        [tensors[f"{_NETWORK}NN__{index}__{kind}"] for kind in ("weight", "bias")]
        for index in range(6)
    ]

    def score(t: Tensor, x: Tensor, context: Tensor) -> Tensor:
        phase = 2 * math.pi * t[:, None] * tensors[f"{_NETWORK}W"]
        hidden = torch.cat([phase.sin(), phase.cos(), x, context], dim=-1)
        for weight, bias in layers[:-1]:
            hidden = torch.tanh(hidden @ weight.mT + bias)
        weight, bias = layers[-1]
        return hidden @ weight.mT + bias

    return score


def bands(theta: Tensor) -> Tensor:
    """Return the bands ``(..., 26)`` of a brightness and a colour ``(..., 2)``."""
    slope = torch.linspace(-1, 1, _BANDS)
    return theta[..., :1] + theta[..., 1:] * slope


def pairs_of(field: Any, count: int) -> Tensor:
    """Return rows of a point and its context, ``(N, 52)``, in the network's own coordinates."""
    common = _BRIGHTNESS * torch.randn(count, 1)
    context = common + _OWN * torch.randn(count, _BANDS)
    with torch.no_grad():
        x = Flow(field, RK4(32)).given(context).push(torch.randn(count, _BANDS))
    return torch.cat([x, context], 1)


def distilled(field: Any, rows: Tensor, options: Any) -> tuple[Stein, list[dict[str, Any]]]:
    """Return the divergence, and how far it is from the exact one after each stage."""
    held, seen, kept = rows[:256], rows[256:1280], rows[1280:]
    source = torch.Generator().manual_seed(options.seed)
    network = SeparateNetwork(_BANDS, options.width, 3, source, context=_BANDS)
    clouds = [cloud_for(field, Batches(part), source) for part in (kept, seen)]
    stages = (
        ("Stein", SteinObjective(), TrainingSettings(steps=options.steps, batch_size=1024)),
        ("and polish", HutchinsonLabels(8),
         TrainingSettings(steps=2 * options.steps, batch_size=256)),
    )  # fmt: skip
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
    mcmc = MCMC(NUTS(model), options.draws, options.draws // 2, disable_progbar=True)
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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=80)
    parser.add_argument("--cells", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    field = pyro_stad.from_score(
        score_network(), path=VPLinear(t_min=1e-3), features=_BANDS, context_shape=_BANDS
    )
    rows = pairs_of(field, options.pairs)
    divergence, stages = distilled(field, rows, options)
    found = posterior(field, divergence, options)
    write(options.name, {"provenance": made, "stages": stages, "nuts": found})


if __name__ == "__main__":
    main()
