"""Claim: NUTS on a learned prior alone gives back the law of its samples, by both routes.

The laws of mass.py in two dimensions, ten thousand samples each; NUTS on the density and on the
noise. Medians and means (where the law has a variance) in standard deviations of the law, or in
half its central 68 percent where it has none; and the quantiles 0.5 and 99.5 percent, of which the
error is that of the reach from the median. The law's own are those of a million draws. Beside them,
what as many draws of the flow itself give.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import arviz
import pyro
import torch
from common import arguments, provenance, write
from mass import LAWS
from page import read, section, source, table
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.reparam import TransformReparam
from torch import Tensor

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --laws uniform --draws 20 --warmup 10",),
}

_ROWS, _TRUTH, _SIZE = 10_000, 1_000_000, 2
_NO_VARIANCE = ("Student t, 2 dof", "Cauchy")
_OUTER = (0.005, 0.995)


def nuts(prior: Any, route: str, warmup: int, draws: int, seed: int) -> tuple[Tensor, float, int]:
    """Return draws of the prior by NUTS, the least effective size, and divergences."""

    def model() -> None:
        pyro.sample("theta", prior)

    pyro.set_rng_seed(seed)
    free = pyro.poutine.reparam(model, {"theta": TransformReparam()})
    kernel = NUTS(
        model if route == "density" else free,
        jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample,
    )  # fmt: skip
    mcmc = MCMC(kernel, draws, warmup, disable_progbar=True)
    mcmc.run()
    values = next(iter(mcmc.get_samples().values()))
    effective = float(arviz.ess({"x": values.double().numpy()[None]})["x"].min())
    if route == "noise":
        with torch.no_grad():
            for transform in prior.transforms:
                values = transform(values)
    return values, effective, len(mcmc.diagnostics()["divergences"]["chain 0"])


def compared(found: Tensor, law: Tensor, *, has_variance: bool) -> dict[str, float]:
    """Return the largest errors over coordinates."""
    found, law = found.double(), law.double()
    low, median, high = (law.quantile(q, 0) for q in (0.16, 0.5, 0.84))
    scale = law.std(0) if has_variance else 0.5 * (high - low)
    reach = [(found.quantile(q, 0) - median) / (law.quantile(q, 0) - median) - 1 for q in _OUTER]
    errors = {
        "median": ((found.median(0).values - median) / scale).abs().max().item(),
        "outer": torch.stack(reach).abs().max().item(),
    }
    if has_variance:
        errors["mean"] = ((found.mean(0) - law.mean(0)) / scale).abs().max().item()
    return errors


def measure(name: str, options: Any) -> list[dict[str, Any]]:
    draw, pair, _ = LAWS[name]
    torch.manual_seed(options.seed)
    x = draw(_ROWS, _SIZE)
    # In two parts: quantiles of a million numbers are more than torch takes.
    law = draw(_TRUTH, _SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prior = pyro_stad.fit(
            x, bounds=pair and [pair] * _SIZE, budget=options.budget, members=0,
            seed=options.seed, progress=False,
        )  # fmt: skip
        rows = []
        for route in ("density", "noise", "draws"):
            started, row = time.perf_counter(), {"law": name, "route": route}
            if route == "draws":
                found = prior.sample((options.draws,))
            else:
                found, row["effective"], row["divergences"] = nuts(
                    prior, route, options.warmup, options.draws, options.seed
                )
            row["seconds"] = round(time.perf_counter() - started, 1)
            row |= compared(found, law, has_variance=name not in _NO_VARIANCE)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__, "alone")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = provenance(options.seed)
    known = {"provenance": made, "budget": options.budget, "draws": options.draws}
    rows: list[dict[str, Any]] = []
    for name in options.laws:
        rows += measure(name, options)
        # Written as it goes: each law takes minutes.
        write(options.name, {**known, "rows": rows})


@section(210)
def page() -> str:
    result = read("alone")
    names = {"density": "NUTS on the density", "noise": "NUTS on the noise", "draws": "draws"}
    rows = [
        [
            row["law"], names[row["route"]], f"{row.get('effective', result['draws']):.0f}",
            str(row.get("divergences", "")), f"{row['median']:.3f}",
            f"{row['mean']:.3f}" if "mean" in row else "", f"{row['outer']:.0%}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["law, D = 2", "by", "effective draws", "divergences", "median", "mean"]
    return (
        "## NUTS on the prior alone\n\n"
        "Largest errors of two coordinates: median and mean in standard deviations of the law (or "
        "half its central 68 percent), and the quantiles 0.5 and 99.5 percent, as a share of their "
        f"distance from the median. {result['draws']:,} draws, budget `{result['budget']}`; of so "
        "many, forty lie beyond such a quantile, and fewer of effective ones.\n\n"
        f"{table([*header, 'outer quantiles'], rows)}\n\n{source('alone', result)}\n"
    )


if __name__ == "__main__":
    main()
