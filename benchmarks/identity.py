"""Claim: for p = N(0, I) and v = x, every Stein objective learns that the divergence is D.

The tempting regression on -v . S, whose minimiser is the squared norm, is run beside them.
"""

from __future__ import annotations

import math

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor

from pyro_stad.data import Batches
from pyro_stad.divergence import SeparateNetwork, Stein
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.divergence.stein import AbstractDivergenceNetwork
from pyro_stad.fields import AbstractField
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.learn import TrainingSettings
from pyro_stad.learn.clouds import (
    AbstractCloud,
    ConditionalCloud,
    PerturbedCloud,
    Points,
    TeacherCloud,
)
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import (
    AbstractObjective,
    ExactLabels,
    HutchinsonLabels,
    SteinObjective,
)
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
    "quick": ("--steps 300 --name quick_identity",),
    "smoke": ("--features 2 --steps 20",),
}


class Expansion(AbstractAngularField):
    """v = x, on the path of a standard normal: the law is N(0, I) at every angle."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self._set_path(OptimalTransport(), (features,))

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return x


class TrueScoreCloud(TeacherCloud):
    """The law with its true score, as a perfect teacher would give it."""

    def at(self, fraction: Tensor, generator: torch.Generator, *, frame: int = 1) -> Points:
        points = super().at(fraction, generator, frame=frame)
        return points._replace(score=-points.x)


class Tempting(AbstractObjective):
    """Regression on -v . S: right on average, wrong everywhere else."""

    def __call__(
        self,
        network: AbstractDivergenceNetwork,
        field: AbstractField,
        points: Points,
        generator: torch.Generator,
    ) -> Tensor:
        label = -(field.velocity(points.t, points.x) * points.score).sum(-1)
        residual = network.velocity_and_residual(field, points.t, points.x)[1]
        return 0.5 * (residual - label / math.sqrt(field.features)) ** 2


def row(name: str, features: int, steps: int, seed: int) -> dict[str, float | int | str]:
    generator = torch.Generator().manual_seed(seed)
    field = Expansion(features)
    batches = Batches(torch.randn(20_000, features, generator=generator))
    cloud: AbstractCloud
    if name == "stein, perturbation":
        cloud = PerturbedCloud(field, batches, RK4(8), scale=0.3, generator=generator)
    elif name == "stein, conditional score":
        cloud = ConditionalCloud(field, batches)
    else:
        cloud = TrueScoreCloud(field, batches)
    objective = {
        "hutchinson labels": HutchinsonLabels(),
        "exact labels": ExactLabels(),
        "tempting regression": Tempting(),
    }.get(name, SteinObjective())
    torch.manual_seed(seed)
    network = SeparateNetwork(features, 32, 2)
    settings = TrainingSettings(steps, learning_rate=1e-2, patience=0, clip_norm=100.0)
    distil(network, field, objective, cloud, cloud, settings, generator=generator, progress=False)
    learned: AbstractDivergence = Stein(network)
    t, x, *_ = cloud.draw(4000, generator)
    with torch.no_grad():
        values = learned(field, t, x)
    return {
        "objective": name,
        "features": features,
        "relative_error_of_mean": values.mean().item() / features - 1,
        "relative_sd": values.std().item() / features,
    }


NAMES = (
    "stein, true score",
    "stein, conditional score",
    "stein, perturbation",
    "hutchinson labels",
    "exact labels",
    "tempting regression",
)


def main() -> None:
    parser = arguments(__doc__, "identity")
    parser.add_argument("--features", nargs="+", type=int, default=[2, 8, 32])
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    rows = [
        row(name, features, options.steps, options.seed)
        for features in options.features
        for name in NAMES
    ]
    for r in rows:
        print(r)
    write(options.name, {"provenance": made, "steps": options.steps, "rows": rows})


@section(120)
def page() -> str:
    result = read("identity")
    rows = [
        [
            row["objective"],
            str(row["features"]),
            f"{row['relative_error_of_mean']:+.2%}",
            f"{row['relative_sd']:.2%}",
        ]
        for row in result["rows"]
    ]
    header = ["objective", "D", "error of the mean", "sd over points"]
    return (
        "## The divergence of v = x under N(0, I) is D\n\n"
        "The test that tells the right loss from the tempting wrong one. Relative to D.\n\n"
        f"{table(header, rows)}\n\n{source('identity', result)}\n"
    )


if __name__ == "__main__":
    main()
