"""Claim: along the diffusion of a prior its evidence and posterior are those of the closed form.

Mixtures of five normals in 4, 16 and 32 dimensions whose field is known, the first half of the
coordinates observed with noise: evidence in closed form, and the mean of the posterior. By the
twisted diffusion in 8, 32 and 128 steps, by the same without its weights (what tilting the
teacher's score alone gives), and by tempered SMC in the noise of the flow. Errors are root mean
squares over problems: of log Z, with the error that was quoted, and of the means, a coordinate, in
standard deviations of the prior.
"""

from __future__ import annotations

import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor

import pyro_stad
from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.evidence import SMC, Twisted
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.samplers import twisted as package
from pyro_stad.samplers.twist import TwistedProblem

RUNS = {
    "long": ("--sizes 4 16 --problems 3",),
    "smoke": ("--sizes 4 --problems 1 --particles 100 --steps 8 --name smoke_twisted",),
}  # fmt: skip
_SCALE = 0.3


def problem_of(size: int, seed: int) -> tuple[Any, FlowPrior, Tensor, float, Tensor]:
    """Return a mixture, its prior, what was seen, the log-evidence and the posterior mean."""
    parts = random_mixture(size, components=5, seed=seed)
    field = GaussianMixtureField(OptimalTransport(), *parts)
    layout = Layout.of([f"x[{index}]" for index in range(size)])
    flow = FlowODE(field, Exact(), RK4(16))
    prior = FlowPrior(flow, torch.zeros(size), torch.eye(size), layout)
    weights, means, covariances = parts
    count = size // 2
    source = torch.Generator().manual_seed(seed + 1)
    # From the prior, so that the problem is one that occurs.
    which = int(torch.multinomial(weights, 1, generator=source))
    factor = torch.linalg.cholesky(covariances[which])
    x = means[which] + factor @ torch.randn(size, generator=source)
    seen = x[:count] + _SCALE * torch.randn(count, generator=source)
    wide = covariances[:, :count, :count] + _SCALE**2 * torch.eye(count)
    log_z = weights.log() + dist.MultivariateNormal(means[:, :count], wide).log_prob(seen)
    gain = torch.linalg.solve(wide, covariances[:, :count]).mT
    each = means + (gain @ (seen - means[:, :count])[..., None])[..., 0]
    mean = torch.softmax(log_z, 0) @ each
    return field, prior, seen, torch.logsumexp(log_z, 0).item(), mean


def model_of(prior: FlowPrior) -> Any:
    def model(seen: Tensor) -> None:
        x = pyro.sample("x", prior)
        law = dist.Normal(x[..., : len(seen)], _SCALE).to_event(1)
        pyro.sample("y", law, obs=seen)

    return model


def tilted(field: Any, seen: Tensor, particles: int, steps: int) -> Tensor:
    """Return what the tilted score alone draws: runs of one particle, whom no weight can tell."""

    def fit(x: Tensor) -> Tensor:
        return dist.Normal(seen, _SCALE).to_event(1).log_prob(x[:, : len(seen)])

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(particles, 1, *field.event_shape, generator=generator)
    known = TwistedProblem(field, Exact(), fit, 2048)
    return package.twisted(known, z, steps, generator).x[:, 0]


def main() -> None:
    parser = arguments(__doc__, "twisted")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--particles", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    made, rows = provenance(options.seed), []
    for size in options.sizes:
        known = [problem_of(size, options.seed + index) for index in range(options.problems)]
        ways: dict[str, Any] = {
            f"twisted, {steps} steps": Twisted(options.particles, repeats=4, steps=steps)
            for steps in options.steps
        }
        ways["tempered SMC"] = SMC(options.particles, repeats=4)
        for name, method in ways.items():
            off, quoted, means, started = [], [], [], time.perf_counter()
            for _, prior, seen, log_z, mean in known:
                found = pyro_stad.log_evidence(
                    model_of(prior), seen, method=method, progress=False, allow_extrapolation=True
                )
                off.append(found.log_z - log_z)
                quoted.append(found.log_z_err)
                means.append((found.draws["x"].mean(0) - mean).square().mean().item())
            rows.append({
                "size": size, "way": name, "log_z": rms(off), "quoted": rms(quoted),
                "mean": (sum(means) / len(means)) ** 0.5,
                "seconds": (time.perf_counter() - started) / len(known),
            })  # fmt: skip
            print(rows[-1], flush=True)
        off = [
            (tilted(field, seen, options.particles, max(options.steps)).mean(0) - mean)
            .square().mean().item()
            for field, _, seen, _, mean in known
        ]  # fmt: skip
        rows.append({
            "size": size, "way": f"without weights, {max(options.steps)} steps",
            "mean": (sum(off) / len(off)) ** 0.5,
        })  # fmt: skip
        print(rows[-1], flush=True)
    write(options.name, {"provenance": made, "rows": rows, "particles": options.particles})


def rms(values: list[float]) -> float:
    return (sum(value**2 for value in values) / len(values)) ** 0.5


@section(95)
def page() -> str:
    result = read("twisted")
    cells = [
        [
            str(row["size"]), row["way"],
            *(f"{row[key]:.2f}" if key in row else "" for key in ("log_z", "quoted", "mean")),
            f"{row['seconds']:.0f}" if "seconds" in row else "",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["D", "by", "log Z off", "quoted error", "means off", "seconds"]
    return (
        "## Along the diffusion\n\n"
        "Mixtures whose field is known, half of the coordinates seen with noise: against closed "
        f"forms, {result['particles']} particles in four runs, root mean squares.\n\n"
        f"{table(header, cells)}\n\n{source('twisted', result)}\n"
    )


if __name__ == "__main__":
    main()
