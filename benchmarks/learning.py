"""Claim: 90 percent bounds by ``learning_error`` cover 85 to 95 percent of points in the bulk.

Eight laws whose log-densities are known: normal, banana, two modes, Student t, half-normal and
exponential behind walls, a ring, a funnel, and a mixture of five normals in eight dimensions. Each
is fitted with several seeds; fresh points of the law tell the error of ``log_prob``. The bulk is
what has a density level above one percent.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import arguments, provenance, write
from coverage import LAWS as PLANE
from coverage import normal
from page import by, read, section, source, table
from priors import fitted
from torch import Tensor

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --laws normal --seeds 1",),
}

_ROWS, _POINTS, _LEVEL, _BULK = 10_000, 4000, 0.9, 0.01
_PARTS = torch.Generator().manual_seed(3)
_CENTRES = 1.5 * torch.randn(5, 8, generator=_PARTS)
_WIDTHS = 0.4 + 0.4 * torch.rand(5, 8, generator=_PARTS)


def draw_ring(rows: int) -> Tensor:
    turn, radius = 2 * math.pi * torch.rand(rows), 2 + 0.2 * torch.randn(rows)
    return torch.stack([radius * turn.cos(), radius * turn.sin()], 1)


def ring(x: Tensor) -> Tensor:
    radius = x.square().sum(1).sqrt()
    return normal(radius, 2.0, 0.2) - math.log(2 * math.pi) - radius.log()


def draw_funnel(rows: int) -> Tensor:
    neck = torch.randn(rows)
    return torch.stack([neck, *((0.5 * neck).exp() * torch.randn(rows) for _ in range(2))], 1)


def funnel(x: Tensor) -> Tensor:
    width = (0.5 * x[:, 0]).exp()
    return normal(x[:, 0]) + normal(x[:, 1] / width) + normal(x[:, 2] / width) - x[:, 0]


def draw_mixture(rows: int) -> Tensor:
    part = torch.randint(5, (rows,))
    return _CENTRES[part] + _WIDTHS[part] * torch.randn(rows, 8)


def mixture(x: Tensor) -> Tensor:
    parts = [
        (normal((x - centre) / width) - width.log()).sum(1)
        for centre, width in zip(_CENTRES, _WIDTHS)
    ]
    return torch.logsumexp(torch.stack(parts), 0) - math.log(5)


Law = tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor], Any]
LAWS: dict[str, Law] = {
    **PLANE,
    "ring": (draw_ring, ring, None),
    "funnel, D = 3": (draw_funnel, funnel, None),
    "mixture, D = 8": (draw_mixture, mixture, None),
}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def measure(name: str, budget: str, seed: int) -> dict[str, Any]:
    draw, truth, bounds = LAWS[name]
    torch.manual_seed(seed)
    x, fresh = draw(_ROWS), draw(_POINTS)
    prior = fitted(x, bounds, budget, seed)
    assert prior.spread is not None
    with torch.no_grad():
        bulk = prior.density_level(fresh) > _BULK
        error = (prior.log_prob(fresh) - truth(fresh))[bulk]
        bound = prior.learning_error(fresh, level=_LEVEL)[bulk]
        standard = prior.learning_error(fresh)[bulk]
    row = {
        "law": name,
        "seed": seed,
        "covered": (error.abs() < bound).double().mean().item(),
        "error": rms(error),
        "learning_error": rms(standard),
        "factor": prior.spread.factor.item(),
        "loss": -error.mean().item(),
    }
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__, "learning")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made, seeds = provenance(options.seed), range(options.seed, options.seed + options.seeds)
    rows = [measure(name, options.budget, seed) for name in options.laws for seed in seeds]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(190)
def page() -> str:
    result = read("learning")
    rows = [
        [
            law,
            f"{statistics.mean(row['covered'] for row in found):.1%}",
            f"{min(row['covered'] for row in found):.0%} to "
            f"{max(row['covered'] for row in found):.0%}",
            f"{statistics.mean(row['error'] for row in found):.3f}",
            f"{statistics.mean(row['learning_error'] for row in found):.3f}",
            f"{max(row['factor'] for row in found):.2g}",
        ]
        for (law,), found in by(result["rows"], "law").items()
    ]
    header = ["law", "covered", "by seeds", "error, nat", "`learning_error`", "largest factor"]
    return (
        "## Error of learning\n\n"
        "Share of fresh points of the bulk at which the bound `learning_error(x, level=0.9)` holds "
        "against the law itself; the error of `log_prob` and its standard error, root mean "
        f"squares. Budget `{result['budget']}`, 10,000 samples.\n\n"
        f"{table(header, rows)}\n\n{source('learning', result)}\n"
    )


if __name__ == "__main__":
    main()
