"""Claim: the default fit of 10,000 samples in 10 dimensions takes at most 120 s on two cores.

Wall time of ``fit`` with its defaults, distillation and audit included, two threads, and the audit
that it leaves behind.
"""

from __future__ import annotations

import time

import torch
from common import arguments, provenance, write
from page import read, section, source

import pyro_stad
from pyro_stad.fields.mixture import random_mixture, sample_mixture

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "short": ("",),
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, "fit_budget")
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(2)
    made = provenance(options.seed)
    values = sample_mixture(random_mixture(options.features, 5, options.seed), options.samples, 1)
    started = time.perf_counter()
    prior = pyro_stad.fit(values, seed=options.seed, progress=False)
    seconds = time.perf_counter() - started
    print(prior.summary(), f"{seconds:.1f} s")
    result = {
        "features": options.features,
        "samples": options.samples,
        "seconds": seconds,
        "report": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }
    write(options.name, {"provenance": made, "rows": [result]})


@section(100)
def page() -> str:
    result = read("fit_budget")
    row = result["rows"][0]
    audit = row["calibration"]["audit"]
    return (
        "## What a fit costs\n\n"
        f"The default fit of {row['samples']:,} samples in {row['features']} dimensions, audit "
        f"included: {row['seconds']:.0f} s. Against the exact trace on held-out samples: bias "
        f"{audit['bias']:+.3f}, sd {audit['sd']:.3f} nat; normaliser {audit['normaliser']:.3f} "
        f"+- {audit['normaliser_error']:.3f}.\n\n{source('fit_budget', result)}\n"
    )


if __name__ == "__main__":
    main()
