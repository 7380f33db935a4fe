"""Claim: rows that come again and again in a chain do not make a fit worse.

Two hundred distinct rows of a standard normal law in five dimensions, as they are, and ten thousand
rows drawn from among them; and a chain with an autocorrelation time of about twenty, in its order
and shuffled, which hides it. The Kullback-Leibler divergence from the law, on fresh draws.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from torch import Tensor

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --samples '200 rows'",),
}

FEATURES, DISTINCT = 5, 200


def samples(seed: int) -> dict[str, Tensor]:
    """Return the samples ``(N, D)`` by name."""
    source = torch.Generator().manual_seed(seed)
    distinct = torch.randn(DISTINCT, FEATURES, generator=source)
    again = distinct[torch.randint(DISTINCT, (50 * DISTINCT,), generator=source)]
    rho = 0.9
    chain = torch.randn(10_000, FEATURES, generator=source)
    for row in range(1, len(chain)):
        chain[row] = rho * chain[row - 1] + (1 - rho**2) ** 0.5 * chain[row]
    shuffled = chain[torch.randperm(len(chain), generator=source)]
    return {
        "200 rows": distinct,
        "200 rows, 10,000 times drawn": again,
        "a chain": chain,
        "the chain, shuffled": shuffled,
    }


def measure(name: str, values: Tensor, budget: str, seed: int) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        prior = pyro_stad.fit(values, budget=budget, seed=seed, progress=False)
    fresh = torch.randn(4000, FEATURES, generator=torch.Generator().manual_seed(seed + 1))
    law = torch.distributions.Normal(0.0, 1.0)
    gap = law.log_prob(fresh).sum(-1) - prior.log_prob(fresh)
    assert prior.report is not None
    return {
        "samples": name,
        "rows": len(values),
        "divergence": gap.mean().item(),
        "divergence_err": (gap.std() / len(gap) ** 0.5).item(),
        "effective": prior.report.effective,
        "warned": any(issubclass(w.category, pyro_stad.SampleWarning) for w in seen),
    }


def main() -> None:
    parser = arguments(__doc__, "chain_split")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--samples", nargs="*", help="some of them, by name; all by default")
    options = parser.parse_args()
    torch.set_num_threads(2)
    made = provenance(options.seed)
    rows = [
        measure(name, values, options.budget, options.seed)
        for name, values in samples(options.seed).items()
        if not options.samples or name in options.samples
    ]
    for row in rows:
        print(row)
    write(options.name, {"provenance": made, "rows": rows})


@section(270)
def page() -> str:
    result = read("chain_split")
    rows = [
        [
            row["samples"],
            f"{row['rows']:,}",
            f"{row['effective']:,.0f}",
            f"{row['divergence']:.3f} +- {row['divergence_err']:.3f}",
            "yes" if row["warned"] else "no",
        ]
        for row in result["rows"]
    ]
    header = ["samples", "rows", "worth independent rows", "divergence, nat", "warned"]
    return (
        "## Rows that come again\n\n"
        "Kullback-Leibler divergence of a fit from the law of its samples, normal in five "
        "dimensions. Repeats become weights, and of a chain whole stretches are held out.\n\n"
        f"{table(header, rows)}\n\n{source('chain_split', result)}\n"
    )


if __name__ == "__main__":
    main()
