"""Claim: on small images a distilled divergence leaves a part of one probe's error, for its time.

The 8 x 8 digits of scikit-learn (1,797; a tenth held out; 17 grey levels), or with ``--mnist``
digits of 28 x 28 (7,000 to learn from, 1,000 held out), made continuous: a U-Net, its divergence
distilled, and the same flow with probes and with the exact trace, on the same grid, at images that
training has not seen.

*Error*: log p less that with the exact trace; standard deviation and mean over held-out images.
*Time*: seconds of a batch over those of the distilled divergence. Probes take the products that the
field makes by hand; "by autograd" is the same probe by torch's derivatives, as it comes without
that. *Curves*: the error of heads that were trained anew, for so many steps, by the Stein objective
alone, by probes alone, and by both. *Bits*: of held-out images, for each number, by the exact
trace, beside a normal law with full covariance.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, median_seconds, provenance, write
from page import CURVES, DOCS, read, section, source, table
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, ImageHead, Stein, XTrace
from pyro_stad.fields import ImageField
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.learn.distil import distil
from pyro_stad.learn.objectives import AbstractObjective, HutchinsonLabels, SteinObjective
from pyro_stad.likelihood import Coarse, FlowODE, SteinPath
from pyro_stad.ode import RK4

RUNS = {
    "long": (
        "",
        "--mnist --name images_mnist --curve 250 --stein 100 --polish 2000 --width 16 --levels 4 "
        "--audit 8 --held 32",
    ),
    "smoke": ("--budget tiny --held 8 --curve 10 20 --name smoke_images",),
}  # fmt: skip
_MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist_8000.npz"
_LONG = 20.0  # seconds, from which on one run says it
_STEPS = 8  # of the grid that all are compared on
PROBES: dict[str, Any] = {
    "Hutchinson, 1": Hutchinson(1), "Hutchinson, 4": Hutchinson(4),
    "Hutchinson, 16": Hutchinson(16),
    "Hutch++, 12": HutchPlusPlus(12), "Hutch++, 48": HutchPlusPlus(48),
    "XTrace, 12": XTrace(12), "XTrace, 48": XTrace(48),
}  # fmt: skip


class ByAutograd(ImageField):
    """The same field, whose products torch makes."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return super().velocity(t, x)


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
    rows = kept.flatten(1).double().cpu()
    covariance = torch.cov(rows.mT)
    covariance = 0.99 * covariance + 0.01 * covariance.diagonal().diag()
    law = torch.distributions.MultivariateNormal(rows.mean(0), covariance)
    return law.log_prob(held.flatten(1).double().cpu())


def at_once(way: Any, x: Tensor) -> Tensor:
    """Return log-densities, and not before they are there."""
    found = way.log_prob(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return found


def errors(flow: FlowODE, x: Tensor, truth: Tensor) -> list[dict[str, Any]]:
    """Return errors and times of every divergence on a flow."""
    plain = copy.copy(flow.field)
    plain.__class__ = ByAutograd
    ways = {
        "Stein": flow,
        "by the coarse curve": SteinPath(
            flow.field, flow.divergence, flow.solver, Coarse(4), 16, chunk_size=flow.chunk_size
        ),
        **{name: FlowODE.of(flow, divergence=one) for name, one in PROBES.items()},
        "Hutchinson, 1, by autograd": FlowODE.of(flow, field=plain, divergence=Hutchinson(1)),
    }
    rows = []
    for name, way in ways.items():
        started = time.perf_counter()
        error = at_once(way, x) - truth
        seconds = time.perf_counter() - started
        if seconds < _LONG:
            seconds = median_seconds({name: partial(at_once, way, x)}, 3)[name]
        rows.append({
            "divergence": name, "sd": error.std().item(), "bias": error.mean().item(),
            "seconds": seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def curves(
    flow: FlowODE, x: Tensor, truth: Tensor, kept: Tensor, options: Any
) -> list[dict[str, Any]]:
    """Return the errors of heads that were trained for so many steps by this and by that."""
    cloud = ConditionalCloud(flow.field, Batches(kept))
    settings = pyro_stad.BUDGETS[options.budget]
    stein, probes = SteinObjective(), HutchinsonLabels(settings.image_products)
    base = settings.image_polish
    first = replace(settings.image_stein, steps=min(settings.image_stein.steps, options.curve[0]))
    rows = []

    def trained(name: str, stages: list[tuple[AbstractObjective, Any]]) -> None:
        source, seconds = torch.Generator(kept.device).manual_seed(options.seed), 0.0
        head = ImageHead.for_field(flow.field, source).to(kept)
        for objective, training in stages:
            history = distil(
                head, flow.field, objective, cloud, cloud, training, weight=torch.sin,
                generator=source, progress=False,
            )  # fmt: skip
            seconds += history.seconds
        with torch.no_grad():
            error = FlowODE.of(flow, divergence=Stein(head)).log_prob(x) - truth
        rows.append({
            "curve": name, "steps": sum(training.steps for _, training in stages),
            "seconds": seconds, "sd": error.std().item(),
        })  # fmt: skip
        print(rows[-1], flush=True)

    for steps in options.curve:
        training = replace(base, steps=steps, validate_every=steps)
        trained("stein", [(stein, training)])
        trained("hutchinson regression", [(probes, training)])
        trained("stein and polish", [(stein, first), (probes, training)])
    return rows


def budget_of(options: Any) -> pyro_stad.FitSettings:
    """Return a budget with what the options change."""
    budget = pyro_stad.BUDGETS[options.budget]
    if options.stein:
        budget = replace(budget, image_stein=replace(budget.image_stein, steps=options.stein))
    if options.polish:
        budget = replace(budget, image_polish=replace(budget.image_polish, steps=options.polish))
    changed = {
        "image_width": options.width, "image_levels": options.levels,
        "image_audit_products": options.audit,
    }  # fmt: skip
    return replace(budget, **{name: value for name, value in changed.items() if value})


def main() -> None:
    parser = arguments(__doc__, "images")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--held", type=int, default=64)
    parser.add_argument("--mnist", action="store_true")
    parser.add_argument("--device", default="cpu", help="cuda, where there is one")
    parser.add_argument("--curve", type=int, nargs="+", default=[125, 500, 2000])
    parser.add_argument("--stein", type=int, help="steps of Stein, if not the budget's")
    parser.add_argument("--polish", type=int, help="steps of the polish, if not the budget's")
    parser.add_argument("--width", type=int, help="of the U-Net, if not the budget's")
    parser.add_argument("--levels", type=int, help="of the U-Net, if not the budget's")
    parser.add_argument("--audit", type=int, help="products of a sampled trace")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = {**provenance(options.seed), "device": options.device}
    kept, held, levels = images(options)
    budget = budget_of(options)
    prior = pyro_stad.fit(
        kept, network="unet", budget=budget, seed=options.seed, device=options.device,
        progress=False,
    )  # fmt: skip
    kept, held = kept.to(options.device), held.to(options.device)
    print(prior.summary(), flush=True)
    whiten, size = prior.coordinates.whiten, held[0].numel()
    flow = FlowODE.of(prior.likelihood, solver=RK4(_STEPS))
    few = held[: options.held]
    with torch.no_grad():
        started = time.perf_counter()
        truth = at_once(FlowODE.of(flow, divergence=Exact()), whiten(few))
        seconds = time.perf_counter() - started
        rows = errors(flow, whiten(few), truth)
        rows.append({"divergence": "exact", "sd": 0.0, "bias": 0.0, "seconds": seconds})
        # The whitening's part of the density is the same for all.
        jacobian = prior.with_likelihood(flow).log_prob(few) - flow.log_prob(whiten(few))
        every = prior.log_prob(held)
    write(options.name, {
        "provenance": made, "rows": rows, "size": size, "held": len(few),
        "bits": bits(truth + jacobian, levels, size), "bits_all": bits(every, levels, size),
        "normal": bits(of_normal(kept, few), levels, size),
        "normal_all": bits(of_normal(kept, held), levels, size),
        "curves": curves(flow, whiten(few), truth, whiten(kept), options),
        "stages": [[stage.name, stage.steps, stage.seconds] for stage in prior.report.stages],
        "solver": repr(prior.transport.solver), "steps": _STEPS,
        "calibration": prior.calibration.text(),
        "weights": sum(p.numel() for p in flow.field.parameters()),
    })  # fmt: skip


def drawn(name: str, result: dict[str, Any]) -> str:
    """Draw the curves over training time; return the name of the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for curve in dict.fromkeys(row["curve"] for row in result["curves"]):
        rows = [row for row in result["curves"] if row["curve"] == curve]
        panel.loglog(
            [row["seconds"] for row in rows], [row["sd"] for row in rows], "o-",
            color=CURVES[curve], label=curve,
        )  # fmt: skip
    one = next(row for row in result["rows"] if row["divergence"] == "Hutchinson, 1")
    panel.axhline(one["sd"], color="#999999", linestyle="--", label="one probe, no training")
    panel.set_xlabel("seconds of distillation")
    panel.set_ylabel("sd of log p, nat")
    panel.legend(fontsize=8, frameon=False)
    picture = f"{name}.png"
    figure.savefig(DOCS / picture, dpi=130)
    plt.close(figure)
    return picture


def as_good(rows: list[dict[str, Any]]) -> str:
    """Return how many probes are as good as the distilled divergence, and their price."""
    by_name = {row["divergence"]: row for row in rows}
    stein, one, many = (by_name[n] for n in ("Stein", "Hutchinson, 1", "Hutchinson, 16"))
    probes = (one["sd"] / stein["sd"]) ** 2
    each = (many["seconds"] - one["seconds"]) / 15
    price = (one["seconds"] + each * (probes - 1)) / stein["seconds"]
    equal = stein["seconds"] * stein["sd"] ** 2
    gain = one["seconds"] * one["sd"] ** 2 / equal
    return (
        f"As good are {probes:.0f} probes, at {price:.1f} times its time. At equal cost its "
        f"variance is {gain:.0f} times less than a probe's."
    )


def part(name: str, title: str) -> str:
    result = read(name)
    (stein,) = (row for row in result["rows"] if row["divergence"] == "Stein")
    cells = [
        [
            row["divergence"], f"{row['sd']:.2f}", f"{row['bias']:+.2f}",
            f"{row['seconds'] / stein['seconds']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = ["divergence", "sd, nat", "bias, nat", "time, over the distilled one"]
    stages = ", ".join(f"{stage} {steps} steps" for stage, steps, _ in result["stages"])
    return (
        f"### {title}\n\n"
        f"{result['size']} pixels, a U-Net of {result['weights']:,} weights ({stages}), "
        f"{result['held']} held-out images, {result['steps']} steps of RK4: log p less that with "
        f"the exact trace.\n\n{table(header, cells)}\n\n{as_good(result['rows'])}\n\n"
        f"![Error over training time]({drawn(name, result)})\n\n"
        f"Bits for each number, made continuous the same way: {result['bits']:.3f} by the flow "
        f"with its exact trace, {result['normal']:.3f} by a normal law with full covariance; of "
        f"all held-out images {result['bits_all']:.3f} by the distilled divergence and "
        f"{result['normal_all']:.3f}.\n\n{source(name, result)}\n"
    )


@section(94)
def page() -> str:
    return "## Images: a distilled divergence and probes\n\n" + part("images", "Digits of 8 x 8")


if __name__ == "__main__":
    main()
