"""Claim: of two posteriors in tension, the evidence is within three errors, or refused.

One posterior is learned from 10,000 draws and taken as the prior; the other, of the same shape and
zero to six of its standard deviations away, is the likelihood. A normal law, a banana shifted
across its ridge, and the same banana in a random frame of six dimensions. The truth is in closed
form, or by quadrature of the plane that is curved.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pyro
import torch
from common import arguments, provenance, write
from coverage import banana, draw_banana, evidence, normal
from page import by, read, section, source, table
from priors import fitted
from torch import Tensor

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --laws normal --seeds 1 --apart 1",),
}

_ROWS, _GRID, _FAR = 10_000, 2001, 14.0
_SIZE = 6
_FRAME = torch.linalg.qr(torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(2)))[0]
# The second coordinate of the banana: the standard deviation of 0.9 a^2 + 0.3 e.
_ACROSS = math.hypot(0.9 * math.sqrt(2), 0.3)


def overlap(shift: float) -> float:
    """Return the logarithm of the integral of a banana times a shifted one."""
    axis = torch.linspace(-_FAR, _FAR, _GRID, dtype=torch.float64)
    total = torch.full((), -math.inf, dtype=torch.float64)
    for x in axis.split(50):
        points = torch.cartesian_prod(x, axis)
        other = points - torch.tensor([0.0, shift], dtype=torch.float64)
        total = torch.logaddexp(total, torch.logsumexp(banana(points) + banana(other), 0))
    return total.item() + 2 * math.log(float(axis[1] - axis[0]))


def ridge(x: Tensor) -> Tensor:
    y = x @ _FRAME.to(x)
    return banana(y[..., :2].reshape(-1, 2)).reshape(y.shape[:-1]) + normal(y[..., 2:]).sum(-1)


def draw_ridge(rows: int) -> Tensor:
    return torch.cat([draw_banana(rows), torch.randn(rows, _SIZE - 2)], 1) @ _FRAME.mT


def flat(log_prob: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: log_prob(x.reshape(-1, x.shape[-1])).reshape(x.shape[:-1])


# Draws, log-density, the shift by one standard deviation, and the truth by shifts.
NORMAL_6 = (_SIZE - 2) * normal(torch.zeros(()), 0.0, math.sqrt(2)).item()
Law = tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor], Tensor, Callable[[float], float]]
LAWS: dict[str, Law] = {
    "normal": (
        lambda n: torch.randn(n, 2),
        lambda x: normal(x).sum(-1),
        torch.tensor([1.0, 0.0]),
        lambda k: sum(normal(torch.tensor(v), 0.0, math.sqrt(2)).item() for v in (k, 0.0)),
    ),
    "banana": (
        draw_banana,
        flat(banana),
        torch.tensor([0.0, _ACROSS]),
        lambda k: overlap(k * _ACROSS),
    ),
    "ridge, D = 6": (
        draw_ridge,
        ridge,
        _FRAME @ torch.tensor([0.0, _ACROSS, *[0.0] * (_SIZE - 2)]),
        lambda k: overlap(k * _ACROSS) + NORMAL_6,
    ),
}


def measure(name: str, budget: str, seed: int, apart: list[float]) -> list[dict[str, Any]]:
    draw, log_prob, unit, truth = LAWS[name]
    torch.manual_seed(seed)
    x = draw(_ROWS)
    prior, rows = fitted(x, None, budget, seed), []

    def model(shift: Tensor) -> None:
        theta = pyro.sample("theta", prior)
        pyro.factor("other", log_prob(theta - shift))

    for k in apart:
        row = {"law": name, "seed": seed, "apart": k, "truth": truth(k)}
        row |= evidence(model, k * unit, seed)
        rows.append({**row, "z": (row["log_z"] - row["truth"]) / row["log_z_err"]})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__, "tension")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--apart", nargs="*", type=float, default=[0, 1, 2, 3, 4, 5, 6])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made, seeds = provenance(options.seed), range(options.seed, options.seed + options.seeds)
    rows: list[dict[str, Any]] = []
    for name in options.laws:
        for seed in seeds:
            rows += measure(name, options.budget, seed, options.apart)
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(200)
def page() -> str:
    result = read("tension")
    apart = sorted({row["apart"] for row in result["rows"]})
    rows = []
    for (law,), found in by(result["rows"], "law").items():
        cells = []
        for k in apart:
            here = [row for row in found if row["apart"] == k]
            given = [row for row in here if not row["refused"]]
            refused = f", {len(here) - len(given)} refused" if len(given) < len(here) else ""
            worst = max((abs(row["z"]) for row in given), default=None)
            cells.append("refused" if worst is None else f"{worst:.1f}{refused}")
        rows.append([law, *cells])
    return (
        "## Posteriors in tension\n\n"
        "A learned posterior times another of its shape, some standard deviations away: the "
        "largest error of log Z in units of the quoted one, or that it is refused. Budget "
        f"`{result['budget']}`.\n\n"
        f"{table(['law', *(f'{k:g} sd' for k in apart)], rows)}\n\n{source('tension', result)}\n"
    )


if __name__ == "__main__":
    main()
