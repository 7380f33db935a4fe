"""Which digit is it, and how sure? Ten learned priors, one bad photograph, ten evidences.

For every class of scikit-learn's 8x8 digits: principal components of its images (turned and shifted
a little, to be more), a flow prior of their coefficients, and the variance of what is left over,
pixel by pixel. The photograph is blurred, noisy, and lacks its lower rows. Its evidence under every
class says which digit it is; the posterior of the image, a mixture over classes, what it shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import ndimage
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad
from pyro_stad import EvidenceComparison, EvidenceResult, FlowPrior

SIDE, HIDDEN_ROWS, BLUR, NOISE = 8, 3, 0.7, 2.0
COMPONENTS, COPIES = 8, 8


@dataclass(frozen=True)
class DigitPrior:
    """The images of one class: ``mean + coefficients @ basis + residual``."""

    coefficients: FlowPrior
    mean: Tensor  # (64,)
    basis: Tensor  # (d, 64)
    residual: Tensor  # variance, (64,)


class Camera:
    """Blurs, hides the lower rows, and adds noise of two of sixteen grey levels."""

    def __init__(self) -> None:
        units = np.eye(SIDE * SIDE).reshape(-1, SIDE, SIDE)
        blurred = np.stack([ndimage.gaussian_filter(unit, BLUR, mode="constant") for unit in units])
        blur = torch.tensor(blurred.reshape(SIDE * SIDE, -1).T, dtype=torch.float32)
        self.matrix = blur[: SIDE * (SIDE - HIDDEN_ROWS)]

    def observe(self, images: Tensor, generator: torch.Generator) -> Tensor:
        seen = images @ self.matrix.mT
        return seen + NOISE * torch.randn(seen.shape, generator=generator)

    def tril(self, prior: DigitPrior) -> Tensor:
        """Return the factor of the covariance of an observation, given the coefficients."""
        of_residual = (self.matrix * prior.residual) @ self.matrix.mT
        return torch.linalg.cholesky(of_residual + NOISE**2 * torch.eye(len(self.matrix)))


def split(held_out: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels to learn from, and those held out."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, train = order[:held_out], order[held_out:]
    return images[train], labels[train], images[test], labels[test]


def varied(images: Tensor, copies: int, seed: int) -> Tensor:
    """Return images, and copies of them that are turned and shifted a little."""
    random = np.random.default_rng(seed)
    made = [images.numpy()]
    for _ in range(copies):
        for image in images.numpy():
            angle, shift = 6 * random.standard_normal(), 0.3 * random.standard_normal(2)
            turned = ndimage.rotate(image.reshape(SIDE, SIDE), angle, reshape=False, order=1)
            made.append(ndimage.shift(turned, shift, order=1).reshape(1, -1))
    return torch.tensor(np.concatenate(made), dtype=torch.float32).clamp(0, 16)


def principal(
    images: Tensor, components: int, copies: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, basis and coefficients of one class, and the variance that is left over."""
    images = varied(images, copies, seed)
    mean = images.mean(0)
    _, _, vectors = torch.linalg.svd(images - mean, full_matrices=False)
    basis = vectors[:components]
    coefficients = (images - mean) @ basis.mT
    left_over = images - mean - coefficients @ basis
    return mean, basis, coefficients, left_over.var(0) + 0.01


def learn(images: Tensor, components: int, copies: int, budget: str, seed: int) -> DigitPrior:
    """Learn the images of one class."""
    mean, basis, coefficients, residual = principal(images, components, copies, seed)
    prior = pyro_stad.fit(coefficients, budget=budget, seed=seed, progress=False)
    return DigitPrior(prior, mean, basis, residual)


def model_of(prior: DigitPrior, camera: Camera) -> Callable[[Tensor], None]:
    """Return the model of a photograph of a digit of one class."""
    tril = camera.tril(prior)

    def model(y: Tensor) -> None:
        z = pyro.sample("z", prior.coefficients)
        seen = (prior.mean + z @ prior.basis) @ camera.matrix.mT
        pyro.sample("y", dist.MultivariateNormal(seen, scale_tril=tril), obs=y)

    return model


def images_of(
    prior: DigitPrior, camera: Camera, y: Tensor, result: EvidenceResult, seed: int
) -> Tensor:
    """Return posterior draws of the whole image under one class, ``(N, 64)``."""
    generator = torch.Generator().manual_seed(seed)
    smooth = prior.mean + result.draws["z"] @ prior.basis
    # The residual given the photograph: its prior draw, corrected by what it would have shown.
    residual = prior.residual.sqrt() * torch.randn(smooth.shape, generator=generator)
    surprise = y - camera.observe(smooth + residual, generator)
    gain = torch.cholesky_solve(camera.matrix * prior.residual, camera.tril(prior))
    return (smooth + residual + surprise @ gain).clamp(0, 16)


def mixed(
    priors: dict[int, DigitPrior], camera: Camera, y: Tensor, found: EvidenceComparison, count: int
) -> Tensor:
    """Return posterior draws of the image over all classes, each as often as it is probable."""
    random, parts = torch.Generator().manual_seed(0), []
    for name, probability in found.probabilities.items():
        label, wanted = int(name.removeprefix("digit_")), round(probability * count)
        draws = images_of(priors[label], camera, y, found.results[name], seed=label)
        parts.append(draws[torch.randperm(len(draws), generator=random)[:wanted]])
    return torch.cat(parts)[torch.randperm(sum(map(len, parts)), generator=random)]


def posterior_of_labels(
    priors: dict[int, DigitPrior], camera: Camera, y: Tensor, particles: int
) -> tuple[Tensor, Tensor]:
    """Return posterior probabilities of the classes of photographs, ``(B, C)``, and errors."""
    log_z, errors = [], []
    for label, prior in priors.items():
        print(f"evidence of {label}", flush=True)
        found = pyro_stad.log_evidences(
            model_of(prior, camera), y, particles=particles, repeats=2, progress=False
        )
        log_z.append([result.log_z for result in found])
        errors.append([result.log_z_err for result in found])
    return torch.softmax(torch.tensor(log_z).mT, dim=-1), torch.tensor(errors).mT


def judge(probabilities: Tensor, truth: Tensor, bins: int = 5) -> dict[str, object]:
    """Return accuracy, log score, Brier score, and the reliability of all probabilities."""
    hit = torch.nn.functional.one_hot(truth, probabilities.shape[1]).float()
    places = (probabilities * bins).long().clamp(max=bins - 1)
    inside = [places == k for k in range(bins)]
    return {
        "images": len(truth),
        "accuracy": (probabilities.argmax(1) == truth).float().mean().item(),
        "mean_confidence": probabilities.amax(1).mean().item(),
        "log_score": probabilities[hit.bool()].clamp_min(1e-12).log().mean().item(),
        "brier": (probabilities - hit).square().sum(1).mean().item(),
        "reliability": [
            {
                "predicted": probabilities[b].mean().item(),
                "observed": hit[b].mean().item(),
                "cases": int(b.sum()),
            }
            for b in inside
            if b.any()
        ],
    }


def draw_story(path: Path, truth: Tensor, camera: Camera, y: Tensor, images: Tensor,
               found: EvidenceComparison) -> None:  # fmt: skip
    """Draw the digit, its photograph, what it may have been, and which it is."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(11, 4.6), layout="constrained")
    grid = sheet.add_gridspec(2, 8, height_ratios=(1, 1.2))
    photograph = torch.full((SIDE * SIDE,), torch.nan)
    photograph[: len(y)] = y
    panels = {
        "truth": truth,
        "photograph": photograph,
        "posterior mean": images.mean(0),
        "posterior sd": images.std(0),
        **{f"draw {k + 1}": images[k] for k in range(4)},
    }
    for place, (title, picture) in enumerate(panels.items()):
        axes = sheet.add_subplot(grid[0, place])
        axes.set_facecolor("#d8c9a8")
        shade = {"cmap": "viridis"} if title.endswith("sd") else {"cmap": "gray_r", "vmax": 16}
        axes.imshow(picture.reshape(SIDE, SIDE), vmin=0, **shade)
        axes.set(title=title, xticks=[], yticks=[])
    axes = sheet.add_subplot(grid[1, :])
    names = sorted(found.probabilities)
    axes.bar(
        [name.removeprefix("digit_") for name in names],
        [found.probabilities[name] for name in names],
        yerr=[found.probability_errs[name] for name in names],
        color="#0b6e4f",
        capsize=3,
    )
    axes.set(xlabel="digit", ylabel="posterior probability", ylim=(0, 1))
    sheet.savefig(path, dpi=130)


def draw_reliability(path: Path, judged: dict[str, object]) -> None:
    """Draw how often a class was right against how probable it was said to be."""
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(4.2, 4), layout="constrained")
    axes = sheet.subplots()
    rows = judged["reliability"]
    predicted, observed, cases = (
        np.array([row[key] for row in rows]) for key in ("predicted", "observed", "cases")
    )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    errors = 2 * np.sqrt(predicted * (1 - predicted) / cases)
    axes.errorbar(predicted, observed, errors, fmt="o", color="#2b5c9e", capsize=3)
    axes.set(xlabel="posterior probability of a class", ylabel="how often it was right")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    sheet.savefig(path, dpi=130)


def run(
    out: Path,
    *,
    images: int = 100,
    story: int | None = None,
    classes: tuple[int, ...] = tuple(range(10)),
    components: int = COMPONENTS,
    copies: int = COPIES,
    budget: str = "quick",
    particles: int = 300,
    seed: int = 0,
) -> dict[str, object]:
    """Learn the classes, recognise held-out photographs, and draw one story; return the judgement.

    Arguments:
        out: folder of the pictures, made if need be.
        images: held-out images to be recognised.
        story: which of them is shown; None for the one that leaves most to doubt.
        classes: digits to choose from.
        components, copies: principal components, and varied copies of every image, of each class.
        budget: of the fits.
        particles: of each run of an evidence.
        seed: of everything random.
    """
    out.mkdir(parents=True, exist_ok=True)
    # With few classes, most of what is held out is of others.
    learned_from, labels, test, truth = split(images * (1 if len(classes) == 10 else 10), seed)
    chosen = torch.isin(truth, torch.tensor(classes)).nonzero()[:images, 0]
    test, truth, camera, priors = test[chosen], truth[chosen], Camera(), {}
    for label in classes:
        print(f"learning {label}", flush=True)
        priors[label] = learn(learned_from[labels == label], components, copies, budget, seed)
    y = camera.observe(test, torch.Generator().manual_seed(seed))
    probabilities, _ = posterior_of_labels(priors, camera, y, particles)
    places = torch.tensor([classes.index(int(label)) for label in truth])
    judged = judge(probabilities, places)
    draw_reliability(out / "reliability.png", judged)
    doubt = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(1)
    story = int(doubt.argmax()) if story is None else story
    models = {f"digit_{label}": model_of(prior, camera) for label, prior in priors.items()}
    # Under the wrong class a photograph lies where that class's prior has seen nothing.
    relaxed = {"progress": False, "allow_extrapolation": True}
    found = pyro_stad.compare_evidence(data=y[story], options=relaxed, **models)
    print(found.summary())
    drawn = mixed(priors, camera, y[story], found, count=1000)
    draw_story(out / "story.png", test[story], camera, y[story], drawn, found)
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("digits"))
    parser.add_argument("--images", type=int, default=100, help="held out, to be recognised")
    parser.add_argument("--story", type=int, default=None, help="which of them is shown")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    judged = run(options.pop("out"), **{**options, "classes": tuple(options["classes"])})
    print(f"accuracy {judged['accuracy']:.2f}, mean confidence {judged['mean_confidence']:.2f}")


if __name__ == "__main__":
    main()
