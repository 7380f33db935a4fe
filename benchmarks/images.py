"""Claim: on images a distilled divergence costs a part of one probe's time, for as much error.

The 8 x 8 digits of scikit-learn (1,797; a tenth held out), made continuous: a U-Net, its divergence
distilled by Stein, and the same flow with probes, against the exact trace, on the same grid, at
images that training has not seen. *Error*: standard deviation of log p less that of the exact
trace. *Time*: seconds of a batch over those of the distilled divergence. *Bits*: of held-out
images, for each number, by the exact trace, beside a normal law with full covariance. ``--mnist``
takes the digits of 28 x 28 instead, few of them, for an exact trace takes a product for each pixel.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad
from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, XTrace
from pyro_stad.likelihood import FlowODE

RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --held 8",),
}  # fmt: skip
_MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist_8000.npz"
PROBES: dict[str, Any] = {
    "Hutchinson, 1": Hutchinson(1), "Hutchinson, 4": Hutchinson(4),
    "Hutchinson, 16": Hutchinson(16),
    "Hutch++, 12": HutchPlusPlus(12), "Hutch++, 48": HutchPlusPlus(48),
    "XTrace, 12": XTrace(12), "XTrace, 48": XTrace(48),
}  # fmt: skip


def images(options: Any) -> tuple[Tensor, Tensor, int]:
    """Return images to learn from and held-out ones, continuous in the unit interval; levels."""
    source = torch.Generator().manual_seed(options.seed)
    if options.mnist:
        whole, levels = torch.from_numpy(np.load(_MNIST)["images"])[:, None], 256
    else:
        whole, levels = torch.as_tensor(load_digits().images)[:, None], 17
    noise = torch.rand(whole.shape, generator=source, dtype=torch.float64)
    x = ((whole.double() + noise) / levels).float()
    count = len(x) // 10 if not options.mnist else 1000
    order = torch.arange(len(x)) if options.mnist else torch.randperm(len(x), generator=source)
    return x[order[:-count]], x[order[-count:]], levels


def bits(log_p: Tensor, levels: int, size: int) -> float:
    return math.log2(levels) - log_p.double().mean().item() / (math.log(2) * size)


def of_normal(kept: Tensor, held: Tensor) -> Tensor:
    """Return the log-densities of a normal law with the images' covariance, shrunk a little."""
    rows = kept.flatten(1).double()
    covariance = torch.cov(rows.mT)
    covariance = 0.99 * covariance + 0.01 * covariance.diagonal().diag()
    law = torch.distributions.MultivariateNormal(rows.mean(0), covariance)
    return law.log_prob(held.flatten(1).double())


def measured(prior: Any, held: Tensor) -> list[dict[str, Any]]:
    """Return errors and times of every divergence on the flow of a prior."""
    flow, x = prior.likelihood, prior.coordinates.whiten(held)
    rows = []
    with torch.no_grad():
        exact = FlowODE.of(flow, divergence=Exact())
        started = time.perf_counter()
        truth = exact.log_prob(x)
        seconds = time.perf_counter() - started
        rows.append({"divergence": "exact", "sd": 0.0, "bias": 0.0, "seconds": seconds})
        for name, divergence in {"Stein": flow.divergence, **PROBES}.items():
            way = FlowODE.of(flow, divergence=divergence)
            started = time.perf_counter()
            error = way.log_prob(x) - truth
            seconds = time.perf_counter() - started
            rows.append({
                "divergence": name, "sd": error.std().item(), "bias": error.mean().item(),
                "seconds": seconds,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__, "images")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--held", type=int, default=64)
    parser.add_argument("--mnist", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    kept, held, levels = images(options)
    prior = pyro_stad.fit(
        kept, network="unet", budget=options.budget, seed=options.seed, progress=False
    )
    print(prior.summary(), flush=True)
    few, size = held[: options.held], held[0].numel()
    rows = measured(prior, few)
    with torch.no_grad():
        own = bits(prior.exact().log_prob(few), levels, size)
    write(options.name, {
        "provenance": made, "rows": rows, "size": size, "held": len(few), "bits": own,
        "normal": bits(of_normal(kept, few), levels, size),
        "stages": [[stage.name, stage.steps, stage.seconds] for stage in prior.report.stages],
        "solver": repr(prior.likelihood.solver),
        "weights": sum(p.numel() for p in prior.likelihood.field.parameters()),
    })  # fmt: skip


@section(94)
def page() -> str:
    result = read("images")
    (stein,) = (row for row in result["rows"] if row["divergence"] == "Stein")
    cells = [
        [
            row["divergence"], f"{row['sd']:.2f}", f"{row['bias']:+.2f}",
            f"{row['seconds'] / stein['seconds']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["divergence", "sd, nat", "bias, nat", "time, over the distilled one"]
    stages = ", ".join(f"{name} {steps} steps" for name, steps, _ in result["stages"])
    return (
        "## Images: a distilled divergence and probes\n\n"
        f"Digits of {result['size']} pixels, a U-Net of {result['weights']:,} weights ({stages}), "
        f"{result['held']} held-out images, {result['solver']}: log p less that with the exact "
        f"trace.\n\n{table(header, cells)}\n\nBits for each number, made continuous the same way: "
        f"{result['bits']:.3f} by the flow, {result['normal']:.3f} by a normal law with full "
        f"covariance.\n\n{source('images', result)}\n"
    )


if __name__ == "__main__":
    main()
