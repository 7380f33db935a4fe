"""Claim: evidences of learned priors say which digit a bad photograph shows, and how surely.

The example, on a hundred held-out images: accuracy, the mean probability of the class that is
taken, log and Brier scores, and how often a class is right against how probable it was said to be.
Beside it, the same with a multivariate normal in place of every learned prior: linear, so in closed
form.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import arguments, provenance, write
from page import read, section, source, table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import digits  # noqa: E402

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
}  # fmt: skip


def by_normals(images: int, components: int, copies: int, seed: int) -> dict[str, object]:
    """Judge multivariate normals of the same coefficients, whose evidences are in closed form."""
    learned_from, labels, test, truth = digits.split(images, seed)
    camera = digits.Camera()
    y = camera.observe(test, torch.Generator().manual_seed(seed))
    log_z = []
    for label in range(10):
        mean, basis, coefficients, residual = digits.principal(
            learned_from[labels == label], components, copies, seed
        )
        covariance = basis.mT @ torch.cov(coefficients.mT) @ basis + residual.diag()
        seen = camera.matrix @ covariance @ camera.matrix.mT
        seen = seen + digits.NOISE**2 * torch.eye(len(seen))
        law = torch.distributions.MultivariateNormal(camera.matrix @ mean, seen)
        log_z.append(law.log_prob(y))
    return digits.judge(torch.softmax(torch.stack(log_z, 1), 1), truth)


def main() -> None:
    parser = arguments(__doc__, "digits")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    learned = digits.run(
        options.out,
        images=options.images,
        budget=options.budget,
        particles=options.particles,
        seed=options.seed,
    )
    normal = by_normals(options.images, digits.COMPONENTS, digits.COPIES, options.seed)
    rows = {"learned priors": learned, "normal priors": normal}
    for name, judged in rows.items():
        print(name, judged)
    write(options.name, {"provenance": made, "rows": rows})


@section(260)
def page() -> str:
    result = read("digits")
    names = ("accuracy", "mean_confidence", "log_score", "brier")
    rows = [
        [name, str(judged["images"]), *(f"{judged[key]:.2f}" for key in names)]
        for name, judged in result["rows"].items()
    ]
    header = ["priors", "images", "accuracy", "mean confidence", "log score", "Brier score"]
    return (
        "## Which digit is it?\n\n"
        "[The digits](digits.md): held-out images, blurred, noisy, and without their lower rows; "
        "confidence is the posterior probability of the class that is taken.\n\n"
        f"{table(header, rows)}\n\n{source('digits', result)}\n"
    )


if __name__ == "__main__":
    main()
