"""Claim: exp(log_prob) integrates to one over the whole space, for heavy tails, walls and ridges.

Laws whose densities went wrong away from the samples, each fitted with several seeds. Mass is
invariant under the maps of a prior, so it is taken in the whitened coordinates of the likelihood:
in one and two dimensions by a grid as far as 40 standard deviations, with finer cells in the
middle; above, by importance from a wide Student t law, half of the points, and the flow's own
draws under their exact density, the other half. Of the way that calibration took, and, with
``--ways``, of all that it may take.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, provenance, write
from page import by, read, section, source, table
from torch import Tensor
from torch.distributions import Chi2

import pyro_stad
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.likelihood import (
    AbstractLikelihood,
    Coarse,
    Constant,
    FlowODE,
    SteinPath,
    exact_twin,
)

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": (
        "",
        "--ways --seeds 1 --dimensions 1 2 3 --name mass_ways",
    ),
    "smoke": ("--budget tiny --laws uniform --dimensions 1 --seeds 1",),
}

_ROWS, _CHUNK = 10_000, 20_000
_T_DOF, _POINTS = 3.0, 60_000
_FAR, _MIDDLE = 40.0, 8.0


def student(dof: float) -> Callable[[int, int], Tensor]:
    def draw(rows: int, size: int) -> Tensor:
        return torch.randn(rows, size) / (Chi2(dof).sample((rows, size)) / dof).sqrt()

    return draw


def beta(rows: int, size: int) -> Tensor:
    inside = torch.distributions.Beta(0.1, 0.1).sample((rows, size))
    return inside.clamp(1e-30, 1 - 2.0**-24)


def mixture(rows: int, size: int) -> Tensor:
    side = 2.0 * (torch.rand(rows, 1) < 0.4) - 1
    return 2.0 * side + 0.5 * torch.randn(rows, size)


def banana(rows: int, size: int) -> Tensor:
    x = 1.5 * torch.randn(rows, size)
    x[:, 1] = 0.4 * x[:, 0].square() - 1 + 0.3 * torch.randn(rows)
    return x


def ring(rows: int, size: int) -> Tensor:
    turn, x = 2 * math.pi * torch.rand(rows), torch.randn(rows, size)
    radius = 2 + 0.2 * torch.randn(rows)
    x[:, :2] = torch.stack([radius * turn.cos(), radius * turn.sin()], 1)
    return x


# How to draw, the bounds of each coordinate, and the least dimension.
LAWS: dict[str, tuple[Callable[[int, int], Tensor], Any, int]] = {
    "Student t, 3 dof": (student(3.0), None, 1),
    "Student t, 2 dof": (student(2.0), None, 1),
    "Cauchy": (student(1.0), None, 1),
    "log-uniform": (lambda n, d: (10 * torch.rand(n, d) - 5).exp(), (0.0, None), 1),
    "Beta(.1, .1)": (beta, (0.0, 1.0), 1),
    "uniform": (torch.rand, (0.0, 1.0), 1),
    "mixture": (mixture, None, 1),
    "banana": (banana, None, 2),
    "ring": (ring, None, 2),
}


def ways(prior: Any, *, all_of_them: bool) -> dict[str, AbstractLikelihood]:
    """Return the way that was taken, and those that a calibration may take."""
    chosen = prior.likelihood
    found = {"chosen": chosen}
    if all_of_them:
        parts = chosen.field, chosen.divergence, chosen.solver
        found["flow"] = FlowODE(*parts)
        if isinstance(chosen.field, AbstractAngularField):
            found["constant"] = SteinPath(*parts, Constant(), 16)
            found |= {f"coarse {n}": SteinPath(*parts, Coarse(n), 16) for n in (2, 4, 8)}
    return found


def mass(way: AbstractLikelihood, size: int, seed: int) -> tuple[float, float]:
    """Return the mass of a way, and its standard error where there is one."""
    like = next(way.parameters())
    if size <= 2:
        outer = torch.arange(-_FAR, _FAR + 1e-3, 0.4)
        inner = torch.arange(-_MIDDLE, _MIDDLE + 1e-3, 0.08 if size == 2 else 0.01)
        # The square in the middle from fine cells, what is around it from coarse ones.
        coarse = torch.cartesian_prod(*[outer] * size).reshape(-1, size)
        around = coarse[(coarse.abs() > _MIDDLE + 0.1).any(1)]
        fine = torch.cartesian_prod(*[inner] * size).reshape(-1, size)
        cells = [(around, 0.4**size), (fine, float(inner[1] - inner[0]) ** size)]
        return sum(cell * log_prob(way, x.to(like)).exp().sum().item() for x, cell in cells), 0.0
    generator = torch.Generator().manual_seed(seed)
    half = _POINTS // 2
    z = torch.randn(_POINTS, size, generator=generator).to(like)
    chi = torch.randn(half, int(_T_DOF), generator=generator).square().sum(1, keepdim=True)
    wide = 1.5 * z[:half] / (chi / _T_DOF).sqrt().to(like)
    own = torch.cat([way.transport().push(part) for part in z[half:].split(_CHUNK)])
    x = torch.cat([wide, own])
    exact = exact_twin(way)
    proposal = torch.logaddexp(student_log_prob(x / 1.5) - size * math.log(1.5), log_prob(exact, x))
    weights = (log_prob(way, x) - proposal + math.log(2.0)).exp()
    # Two strata of equal size.
    errors = [part.std().item() / math.sqrt(half) / 2 for part in weights.split(half)]
    return weights.mean().item(), math.hypot(*errors)


def student_log_prob(x: Tensor) -> Tensor:
    d, n = x.shape[1], _T_DOF
    norm = math.lgamma((n + d) / 2) - math.lgamma(n / 2) - d / 2 * math.log(n * math.pi)
    return norm - (n + d) / 2 * (1 + x.double().square().sum(1) / n).log()


def log_prob(way: AbstractLikelihood, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([way.log_prob(part).double() for part in x.split(_CHUNK)])


def measure(name: str, size: int, budget: str, seed: int, *, all_of_them: bool) -> dict[str, Any]:
    draw, pair, _ = LAWS[name]
    torch.manual_seed(seed)
    x = draw(_ROWS, size)
    started = time.perf_counter()
    prior = pyro_stad.fit(
        x, bounds=pair and [pair] * size, budget=budget, members=0, seed=seed, progress=False
    )
    row: dict[str, Any] = {"law": name, "dimensions": size, "seed": seed}
    row["seconds"] = round(time.perf_counter() - started, 1)
    row["way"], row["gate"] = repr(prior.likelihood), prior.likelihood.field.gate is not None
    row["mass"] = {
        key: mass(way, size, seed) for key, way in ways(prior, all_of_them=all_of_them).items()
    }
    print(row, file=sys.stderr)
    return row


def main() -> None:
    parser = arguments(__doc__, "mass")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--dimensions", nargs="*", type=int, default=[1, 2, 3, 8])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = provenance(options.seed)
    rows = [
        measure(name, size, options.budget, options.seed + seed, all_of_them=options.ways)
        for size in options.dimensions
        for name in options.laws
        for seed in range(options.seeds)
        if size >= LAWS[name][2]
    ]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(140)
def page() -> str:
    result = read("mass")
    sizes = sorted({row["dimensions"] for row in result["rows"]})
    rows = []
    for (law,), of_law in by(result["rows"], "law").items():
        cells = []
        for size in sizes:
            found = [r["mass"]["chosen"][0] for r in of_law if r["dimensions"] == size]
            cells.append(f"{min(found):.3f} to {max(found):.3f}" if found else "")
        rows.append([law, *cells])
    seeds = len({row["seed"] for row in result["rows"]})
    return (
        "## Mass of a density\n\n"
        f"Mass of exp(log_prob) over the whole space, least and largest of {seeds} seeds, of the "
        f"way that calibration took; budget `{result['budget']}`, 10,000 samples.\n\n"
        f"{table(['law', *(f'D = {size}' for size in sizes)], rows)}\n\n{source('mass', result)}\n"
    )


@section(150)
def page_by_way() -> str:
    result = read("mass_ways")
    ways = list(dict.fromkeys(way for row in result["rows"] for way in row["mass"]))
    rows = []
    for (law,), of_law in by(result["rows"], "law").items():
        each = ([r["mass"][way][0] for r in of_law if way in r["mass"]] for way in ways)
        rows.append([law, *(f"{max(found, key=lambda m: abs(m - 1)):.3f}" for found in each)])
    sizes = sorted({row["dimensions"] for row in result["rows"]})
    return (
        "### Of every way that a calibration may take\n\n"
        f"The mass that is farthest from one, of D = {', '.join(map(str, sizes))}, one seed. But "
        "for the one that was chosen, ways are not normalised by a calibration.\n\n"
        f"{table(['law', *ways], rows)}\n\n{source('mass', result)}\n"
    )


if __name__ == "__main__":
    main()
