"""Claim: priors of images fill in what is hidden, say how surely, and tell classes apart.

MNIST's digits, halved to 14 x 14 and cut to 32 grey levels; the noise between levels is another one
at every draw. One prior of all digits, and one of each class.

*Posteriors*: held-out digits with their lower half hidden, blurred, and noisy, by the twisted
diffusion: root mean square error of the posterior mean, and how often intervals of 90 percent hold
the true pixel, where it was not seen. *One step*: the same by ``sample_posterior`` in the noise of
a generator of one network call.

*Classes*: held-out digits, by the log-densities of ten priors, beside ten normal laws with full
covariance, shrunk as serves held-out digits best: accuracy, log score, Brier score, and how often a
class is right against how probable it was said to be. And with their lower half hidden, by
evidences along the diffusion, beside the normal laws' own.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import DOCS, read, section, source, table
from torch import Tensor
from torch.nn import functional

import pyro_stad
from pyro_stad.evidence import Twisted

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import digits  # noqa: E402

RUNS = {
    "long": ("",),
    "smoke": (
        "--teacher 20 --polish 20 --held 20 --hidden 2 --each 1 --particles 100 --one-step 20 "
        "--name smoke_pictures",
    ),
}  # fmt: skip
_MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist" / "mnist_8000.npz"
LEVELS, SIDE, SEEN = 32, 14, 7
NOISES = {"hidden": 0.05, "blurred": 0.05, "noisy": 0.3}


def levels() -> tuple[Tensor, Tensor]:
    """Return all digits as whole numbers of grey, ``(8000, 1, 14, 14)``, and their classes."""
    stored = np.load(_MNIST)
    grey = functional.avg_pool2d(torch.from_numpy(stored["images"])[:, None].float(), 2)
    return (grey * LEVELS / 256).floor(), torch.from_numpy(stored["labels"]).long()


def between(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return grey levels in the unit interval, with noise between them."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return (x + noise) / LEVELS


def settings(options: Any, steps: int) -> pyro_stad.FitSettings:
    base = pyro_stad.BUDGETS["standard"]
    return replace(
        base, image_width=options.width, image_audit=16, image_audit_products=16,
        image_teacher=replace(base.image_teacher, steps=steps),
        image_stein=replace(base.image_stein, steps=min(100, options.polish)),
        image_polish=replace(base.image_polish, steps=options.polish),
    )  # fmt: skip


def learned(x: Tensor, options: Any, steps: int) -> pyro_stad.FlowPrior:
    return pyro_stad.fit(
        x, network="unet", augment=between, budget=settings(options, steps), seed=options.seed,
        progress=False,
    )  # fmt: skip


def blur(x: Tensor) -> Tensor:
    """Return images ``(..., 14, 14)``, each pixel the mean of nine."""
    flat = x.reshape(-1, 1, SIDE, SIDE)
    return functional.avg_pool2d(flat, 3, 1, 1).reshape(x.shape)


TASKS: dict[str, Any] = {
    "hidden": lambda x: x[..., :SEEN, :],
    "blurred": blur,
    "noisy": lambda x: x,
}


def model_of(prior: Any, task: str) -> Any:
    def model(seen: Tensor) -> None:
        x = pyro.sample("x", prior)
        law = dist.Normal(TASKS[task](x[..., 0, :, :]), NOISES[task])
        pyro.sample("y", law.to_event(2), obs=seen)

    return model


def observed(x: Tensor, task: str, seed: int) -> Tensor:
    clean = TASKS[task](x[0])
    source = torch.Generator().manual_seed(seed)
    return clean + NOISES[task] * torch.randn(clean.shape, generator=source, dtype=clean.dtype)


def restored(prior: Any, x: Tensor, options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what the posterior says of held-out digits, and pictures of it."""
    rows, pictures = [], {}
    for task in TASKS:
        kept: list[tuple[Tensor, ...]] = []
        started = time.perf_counter()
        for index, truth in enumerate(x):
            seen = observed(truth, task, index)
            found = pyro_stad.log_evidence(
                model_of(prior, task), seen, progress=False, allow_extrapolation=True,
                method=Twisted(options.particles, repeats=2),
            )  # fmt: skip
            draws = found.draws["x"]
            kept.append((truth, seen, draws, torch.tensor(found.ess)))
        rows.append({
            "task": task, "images": len(x), "seconds": time.perf_counter() - started,
            **judged(task, kept),
        })  # fmt: skip
        print(rows[-1], flush=True)
        pictures[task] = kept
    return rows, pictures


def judged(task: str, kept: list[tuple[Tensor, ...]]) -> dict[str, float]:
    """Return error and coverage where the digit was not seen."""
    errors, inside, spread = [], [], []
    place = slice(SEEN, None) if task == "hidden" else slice(None)
    for truth, _, draws, _ in kept:
        hidden, known = truth[0, place], draws[:, 0, place]
        low, high = known.quantile(0.05, dim=0), known.quantile(0.95, dim=0)
        inside.append(((hidden >= low) & (hidden <= high)).double().mean())
        errors.append((known.mean(0) - hidden).square().mean())
        spread.append(known.var(0).mean())
    return {
        "rmse": torch.stack(errors).mean().sqrt().item(),
        "sd": torch.stack(spread).mean().sqrt().item(),
        "coverage": torch.stack(inside).mean().item(),
        "ess": torch.stack([each[3] for each in kept]).mean().item(),
    }


def by_one_step(prior: Any, pictures: dict[str, Any], options: Any) -> dict[str, Any]:
    """Return how far ``sample_posterior`` in one step's noise is from the twisted diffusion."""
    started = time.perf_counter()
    one = pyro_stad.distil_one_step(
        prior, steps=options.one_step, pairs=20 * options.one_step // 5, batch_size=64,
        seed=options.seed, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    truth, seen, draws, _ = pictures["hidden"][0]
    started = time.perf_counter()
    found = pyro_stad.sample_posterior(
        model_of(one, "hidden"), seen, form="noise", num_chains=16,
        num_samples=max(10, options.one_step // 10), progress=False,
    )  # fmt: skip
    x = found.draws["x"].flatten(0, 1)
    place = (slice(None), 0, slice(SEEN, None))
    return {
        "distil_seconds": seconds, "seconds": time.perf_counter() - started,
        "distance": one.distilled.distance, "r_hat": found.worst_r_hat, "ess": found.worst_ess,
        "means_apart": (x[place].mean(0) - draws[place].mean(0)).square().mean().sqrt().item(),
        "sd": x[place].var(0).mean().sqrt().item(),
        "sd_twisted": draws[place].var(0).mean().sqrt().item(),
        "rmse": (x[place].mean(0) - truth[0, SEEN:]).square().mean().sqrt().item(),
    }  # fmt: skip


def normal_of(rows: Tensor, shrink: float) -> torch.distributions.MultivariateNormal:
    covariance = torch.cov(rows.mT)
    covariance = (1 - shrink) * covariance + shrink * covariance.diagonal().mean().mul(
        torch.eye(len(covariance), dtype=rows.dtype)
    )
    return torch.distributions.MultivariateNormal(rows.mean(0), covariance)


def normals(whole: Tensor, labels: Tensor, seed: int) -> list[Any]:
    """Return a normal law of each class, shrunk as serves a tenth of its digits best."""
    source = torch.Generator().manual_seed(seed)
    found = []
    for label in range(10):
        rows = between(whole[labels == label].double(), source).flatten(1)
        held = len(rows) // 10
        tried = {
            shrink: normal_of(rows[held:], shrink).log_prob(rows[:held]).mean().item()
            for shrink in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
        }
        found.append(normal_of(rows, max(tried, key=lambda shrink: tried[shrink])))
    return found


def main() -> None:
    parser = arguments(__doc__, "pictures")
    parser.add_argument("--teacher", type=int, default=1000, help="steps of a class's prior")
    parser.add_argument("--polish", type=int, default=600)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--held", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=15, help="of them with a half hidden")
    parser.add_argument("--each", type=int, default=6, help="digits of a task")
    parser.add_argument("--particles", type=int, default=256)
    parser.add_argument("--one-step", type=int, default=1500, dest="one_step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    whole, labels = levels()
    held = between(whole[7000:], torch.Generator().manual_seed(options.seed + 1))
    truth = labels[7000:]
    started = time.perf_counter()
    prior = learned(whole[:7000], options, 2 * options.teacher)
    print(prior.summary(), flush=True)
    samples = prior.sample((60,))
    tasks, pictures = restored(prior, held[: options.each], options)
    one = by_one_step(prior, pictures, options)
    print(one, flush=True)
    classes, seconds = by_class(whole[:7000], labels[:7000], held, truth, options)
    draw(samples, pictures)
    write(options.name, {
        "provenance": made, "tasks": tasks, "one_step": one, "width": options.width,
        "classes": classes,
        "class_seconds": seconds, "seconds": time.perf_counter() - started,
        "calibration": prior.calibration.text(), "particles": options.particles,
        "weights": sum(p.numel() for p in prior.likelihood.field.parameters()),
    })  # fmt: skip


def by_class(
    whole: Tensor, labels: Tensor, held: Tensor, truth: Tensor, options: Any
) -> tuple[dict[str, Any], float]:
    """Return how well classes are told apart, by what, and how long the priors took."""
    laws = normals(whole, labels, options.seed)
    clean, hidden = held[: options.held], held[: options.hidden]
    seen = torch.stack([observed(x, "hidden", index) for index, x in enumerate(hidden)])
    found: dict[str, list[Tensor]] = {"density": [], "evidence": []}
    started = time.perf_counter()
    for label in range(10):
        prior = learned(whole[labels == label], options, options.teacher)
        with torch.no_grad():
            found["density"].append(prior.log_prob(clean).double())
        model = model_of(prior, "hidden")
        each = [
            pyro_stad.log_evidence(
                model, y, progress=False, allow_extrapolation=True,
                method=Twisted(100, repeats=2, steps=32),
            ).log_z
            for y in seen
        ]  # fmt: skip
        found["evidence"].append(torch.tensor(each, dtype=torch.float64))
        print(label, f"{time.perf_counter() - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    rows = clean.double().flatten(1)
    part = slice(0, SEEN * SIDE)
    noise = NOISES["hidden"] ** 2 * torch.eye(SEEN * SIDE, dtype=torch.float64)
    halves = [
        torch.distributions.MultivariateNormal(
            law.mean[part], law.covariance_matrix[part, part] + noise
        )
        for law in laws
    ]
    log_z = {
        "learned priors": found["density"],
        "normal laws": [law.log_prob(rows) for law in laws],
        "learned priors, half hidden": found["evidence"],
        "normal laws, half hidden": [law.log_prob(seen.double().flatten(1)) for law in halves],
    }
    made = {}
    for name, columns in log_z.items():
        share = torch.softmax(torch.stack(columns, 1), 1)
        made[name] = digits.judge(share, truth[: len(share)])
        print(name, made[name], flush=True)
    return made, seconds


def draw(samples: Tensor, pictures: dict[str, Any]) -> None:
    """Draw samples, what was seen and what the posterior says."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    grey = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
    figure, panels = plt.subplots(4, 15, figsize=(9, 2.5), layout="constrained")
    for panel, x in zip(panels.flat, samples):
        panel.imshow(x[0], **grey)
        panel.set_axis_off()
    figure.savefig(DOCS / "image_samples.png", dpi=130)
    plt.close(figure)
    shown = min(4, len(pictures["hidden"]))
    titles = ["truth", "seen", "mean", "sd", "draws", "", ""]
    figure, panels = plt.subplots(
        3 * shown, 7, figsize=(6.4, 2.75 * shown), layout="constrained", squeeze=False
    )
    lines = [(task, kept) for task in TASKS for kept in pictures[task][:shown]]
    for row, (task, (truth, seen, draws, _)) in enumerate(lines):
        full = torch.full((SIDE, SIDE), torch.nan)
        full[: seen.shape[0]] = seen
        sd = draws[:, 0].std(0)
        for column, x in enumerate((truth[0], full, draws[:, 0].mean(0), sd, *draws[:3, 0])):
            panel = panels[row, column]
            panel.imshow(x, **({"cmap": "magma", "vmin": 0, "vmax": 0.4} if column == 3 else grey))
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(titles[column], fontsize=9)
        if row % shown == 0:
            panels[row, 0].set_ylabel(task, fontsize=9)
    figure.savefig(DOCS / "image_posteriors.png", dpi=130)
    plt.close(figure)


def judged_rows(result: dict[str, Any]) -> str:
    names = ("accuracy", "mean_confidence", "log_score", "brier")
    rows = [
        [name, str(found["images"]), *(f"{found[key]:.2f}" for key in names)]
        for name, found in result["classes"].items()
    ]
    header = ["classes by", "digits", "accuracy", "mean confidence", "log score", "Brier score"]
    return table(header, rows)


@section(96)
def page() -> str:
    result = read("pictures")
    rows = [
        [
            row["task"], str(row["images"]), f"{row['rmse']:.3f}", f"{row['sd']:.3f}",
            f"{row['coverage']:.0%}", f"{row['ess']:.0f}",
            f"{row['seconds'] / row['images']:.0f}",
        ]
        for row in result["tasks"]
    ]  # fmt: skip
    header = ["digits", "images", "rms error of the mean", "rms sd", "in 90 % intervals"]
    header += ["effective particles", "seconds each"]
    one = result["one_step"]
    return (
        "## Images: what is hidden, and which digit it is\n\n"
        f"[Digits](images.md) of 14 x 14 with 32 grey levels, a U-Net of {result['weights']:,} "
        f"weights; posteriors by {2 * result['particles']} particles of the twisted diffusion. "
        f"Grey goes from 0 to 1.\n\n{table(header, rows)}\n\n"
        "The first digit with its lower half hidden, by `sample_posterior` in the noise of a "
        f"generator of one step (energy distance {one['distance']:.3f} from the flow): means "
        f"{one['means_apart']:.3f} apart (rms), sd {one['sd']:.3f} and {one['sd_twisted']:.3f}, "
        f"rms error {one['rmse']:.3f}; worst R-hat {one['r_hat']:.2f}, {one['ess']:.0f} effective "
        f"draws, {one['seconds']:.0f} s after {one['distil_seconds']:.0f} s of distillation.\n\n"
        f"{judged_rows(result)}\n\n{source('pictures', result)}"
        + (f" The numbers were {result['note']}." if "note" in result else "")
        + "\n"
    )


if __name__ == "__main__":
    main()
