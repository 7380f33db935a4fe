"""Claim: the density of phase-space diffusion is as good as those of other paths, from one network.

Mixtures of five normals in 2 and 8 dimensions, 10,000 samples, the standard budget. By each path:
seconds of the teacher's training, and the sd of log_prob against the truth at 1,000 unseen points,
with the exact trace: along the path's own flow, and in phase space by importance over 1, 4 and 16
momenta, with the gap between the bound of one momentum and the estimate. Beside them the network of
the literature, which reads positions and momenta, of the same size and steps, by hybrid score
matching.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor

import pyro_stad
from pyro_stad.divergence import Exact
from pyro_stad.fields import AbstractField, PathField, PhaseField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.fields.networks.perceptron import Trunk
from pyro_stad.learn.loop import train
from pyro_stad.likelihood import FlowODE, PhaseDensity
from pyro_stad.ode import RK4
from pyro_stad.paths import PSLD

RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --features 2 --rows 1000 --points 50 --name smoke_phase",),
}
_GRID, _MOMENTA = RK4(32), (1, 4, 16)


class PairField(AbstractField):
    """The field in phase space of a network that reads positions and momenta, as published."""

    data_scale = 1.0

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([2, features])
        self.trunk = Trunk(2 * features, width, depth, features)
        # What it is put together with needs no network.
        self.parts = PhaseField(PathField(PSLD(), features, 8, 1))
        self.t_min, self.t_max = self.parts.t_min, self.parts.t_max

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        at = self.parts.projection(t)
        return self.parts.moved(at, x, self.trunk(at.angle, x.flatten(1)))


def trained_pairs(samples: Tensor, settings: Any, width: int, depth: int, seed: int) -> PairField:
    """Return a network of positions and momenta, by hybrid score matching."""
    field, source = PairField(samples.shape[1], width, depth), torch.Generator().manual_seed(seed)
    low, high = PSLD().angles()
    kept, held = samples.split([len(samples) - len(samples) // 10, len(samples) // 10])

    def loss_on(rows: Tensor, source: torch.Generator) -> Tensor:
        count = settings.batch_size
        angle = low + (high - low) * torch.rand(count, generator=source)
        data = rows[torch.randint(len(rows), (count,), generator=source)]
        first, second = torch.randn(2, *data.shape, generator=source)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        at = field.parts.projection(PSLD().time_at_angle(angle))
        u, (x, p) = cos * data + sin * first, at.onto.unbind(-1)
        pair = torch.stack(
            [x[:, None] * u - p[:, None] * second, p[:, None] * u + x[:, None] * second], 1
        )
        found = field.trunk(angle, pair.flatten(1))
        return (found - (cos * first - sin * data)).square().mean()

    train(
        field, lambda _, source: loss_on(kept, source),
        lambda _: loss_on(held, torch.Generator().manual_seed(0)).item(),
        settings, generator=source, progress=False, label="pairs",
    )  # fmt: skip
    return field.requires_grad_(False)


def importance(pairs: FlowODE, x: Tensor, momenta: int) -> tuple[Tensor, Tensor]:
    """Return log-densities by importance over momenta, and the gap to the bound of one."""
    normal = torch.randn(momenta, x.shape[1], generator=torch.Generator().manual_seed(0))
    rows = torch.stack([x.repeat_interleave(momenta, 0), normal.repeat(len(x), 1)], 1)
    weights = pairs.log_prob(rows).reshape(len(x), momenta)
    weights = weights + 0.5 * normal.square().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)
    estimate = weights.logsumexp(1) - math.log(momenta)
    return estimate, estimate - weights.mean(1)


@torch.no_grad()
def against(features: int, path: str, options: Any) -> dict[str, Any]:
    mixture = random_mixture(features)
    samples = sample_mixture(mixture, options.rows, 1).float()
    points = sample_mixture(mixture, options.points, 2)
    laws = torch.distributions.MultivariateNormal(mixture[1], mixture[2])
    truth = (laws.log_prob(points[:, None]) + mixture[0].log()).logsumexp(-1)
    points = points.float()
    row: dict[str, Any] = {"features": features, "path": path}
    with torch.enable_grad():
        if path == "pairs":
            settings = pyro_stad.BUDGETS[options.budget]
            started = time.perf_counter()
            field = trained_pairs(
                samples, settings.teacher, settings.width, settings.depth, options.seed
            )
            row["seconds"] = time.perf_counter() - started
        else:
            prior = pyro_stad.fit(
                samples, path=path, budget=options.budget, members=0, seed=options.seed,
                progress=False,
            )  # fmt: skip
            row["seconds"] = next(s.seconds for s in prior.report.stages if s.name == "teacher")
    if path != "pairs":
        field, white = prior.likelihood.field, prior.whiten(points)
        moved = prior.log_prob(points) - prior.likelihood.log_prob(white)
        found = FlowODE(field, Exact(), _GRID).log_prob(white)
        row["flow"] = (found + moved - truth).std().item()
    for momenta in _MOMENTA:
        if path == "pairs":
            found, gap = importance(FlowODE(field, Exact(), _GRID), points, momenta)
        else:
            way = PhaseDensity(field, Exact(), _GRID, momenta=momenta)
            found, gap = way.log_prob(white) + moved, way.gap(white).gap
        row[f"sd {momenta}"] = (found - truth).std().item()
        row[f"gap {momenta}"] = gap.mean().item()
    print(row, flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__, "phase")
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--paths", nargs="+", default=["ot", "vp", "cosine", "psld", "pairs"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--budget", default="standard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [against(size, path, options) for size in options.features for path in options.paths]
    write(options.name, {"provenance": made, "rows": rows})


@section(86)
def page() -> str:
    result = read("phase")
    rows = [
        [
            str(row["features"]),
            "positions and momenta" if row["path"] == "pairs" else row["path"],
            f"{row['seconds']:.0f}",
            f"{row['flow']:.3f}" if "flow" in row else "-",
            *(f"{row[f'sd {k}']:.3f} ({row[f'gap {k}']:.4f})" for k in _MOMENTA),
        ]
        for row in result["rows"]
    ]
    header = ["D", "path", "seconds", "own flow", *(f"{k} momenta" for k in _MOMENTA)]
    return (
        "## Densities in phase space\n\n"
        "Standard deviation of log_prob against the truth, nat, by the exact trace: along the "
        "path's own flow, and in phase space by importance over momenta (in brackets, what the "
        "bound of one momentum is lower by, in the mean). *Positions and momenta* is a network "
        "that reads both; all others read positions alone.\n\n"
        f"{table(header, rows)}\n\n{source('phase', result)}\n"
    )


if __name__ == "__main__":
    main()
