"""Claim: an angle that is declared periodic is learned as well at its seam as elsewhere.

Von Mises laws of concentration 0 to 50, two lobes, and a lobe over the seam, with a real number
that goes with the angle; 4,000 samples. The Kullback-Leibler divergence from the law on fresh
draws, the mass of one period by a grid, and the jump of the density at the seam; beside it, the
same fit to the same samples with the angle taken for a real number.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor
from torch.distributions import Normal, VonMises

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --laws uniform",),
}

# Lobes: share, mean, concentration.
LAWS = {
    "uniform": [(1.0, 0.0, 1e-6)],
    "concentration 0.5": [(1.0, 2.5, 0.5)],
    "concentration 2": [(1.0, 2.5, 2.0)],
    "concentration 10": [(1.0, 2.5, 10.0)],
    "concentration 50": [(1.0, 2.5, 50.0)],
    "two lobes": [(0.6, 0.3, 10.0), (0.4, 2.3, 10.0)],
    "a lobe over the seam": [(0.7, 3.1, 20.0), (0.3, 0.5, 5.0)],
}


def draw(parts: list[tuple[float, float, float]], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return samples ``(count, 2)`` of angle and number, mixed, and their log-density."""
    torch.manual_seed(seed)
    laws = [VonMises(torch.tensor(m), torch.tensor(k)) for _, m, k in parts]
    sizes = [round(share * count) for share, _, _ in parts]
    phi = torch.cat([law.sample((size,)) for law, size in zip(laws, sizes)])
    phi = phi[torch.randperm(len(phi))]
    x = 0.5 * phi.sin() + 0.3 * torch.randn(len(phi))
    terms = [math.log(part[0]) + law.log_prob(phi) for part, law in zip(parts, laws)]
    truth = torch.stack(terms).logsumexp(0) + Normal(0.5 * phi.sin(), 0.3).log_prob(x)
    return torch.stack([phi, x], dim=1), truth


def measure(name: str, budget: str, seed: int) -> dict[str, Any]:
    values, _ = draw(LAWS[name], 4_000, seed)
    fresh, truth = draw(LAWS[name], 4_000, seed + 1)
    row: dict[str, Any] = {"law": name}
    for kind, bounds in (("periodic", {"phi": "periodic"}), ("real", None)):
        prior = pyro_stad.fit(
            values, names=["phi", "x"], bounds=bounds, budget=budget, seed=seed, progress=False
        )
        gap = truth - prior.log_prob(fresh)
        row[kind] = {"divergence": gap.mean().item(), "err": (gap.std() / len(gap) ** 0.5).item()}
        if kind == "periodic":
            turn = torch.linspace(-math.pi, math.pi, 181)[:-1]
            grid = torch.cartesian_prod(turn, torch.linspace(-2.5, 2.5, 101))
            cell = 2 * math.pi / 180 * 0.05
            row["mass"] = (prior.log_prob(grid).exp().sum() * cell).item()
            sides = torch.tensor([[-math.pi, 0.1], [math.pi, 0.1]])
            row["jump"] = prior.log_prob(sides).diff().abs().item()
    return row


def main() -> None:
    parser = arguments(__doc__, "angles")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    options = parser.parse_args()
    torch.set_num_threads(2)
    made = provenance(options.seed)
    rows = [measure(name, options.budget, options.seed) for name in options.laws]
    for row in rows:
        print(row)
    write(options.name, {"provenance": made, "rows": rows, "budget": options.budget})


@section(280)
def page() -> str:
    result = read("angles")
    rows = [
        [
            row["law"],
            *(f"{row[kind]['divergence']:.4f}" for kind in ("periodic", "real")),
            f"{row['mass']:.4f}",
            f"{row['jump']:.1e}",
        ]
        for row in result["rows"]
    ]
    header = ["law of the angle", "divergence, periodic", "divergence, as a real number"]
    header += ["mass of one period", "jump at the seam, nat"]
    return (
        "## Angles\n\n"
        "Kullback-Leibler divergence, in nats, of a fit to 4,000 samples of an angle and of a "
        "number that goes with it; fresh samples.\n\n"
        f"{table(header, rows)}\n\n{source('angles', result)}\n"
    )


if __name__ == "__main__":
    main()
