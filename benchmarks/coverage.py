"""Claim: the error of an evidence covers, learning included, or the evidence is refused.

Two-dimensional laws, each learned from 10,000 samples with several seeds; likelihoods that are
normal about a draw of the law, of several widths, that is, in the bulk; and likelihoods off a bent
ridge, where there are no samples. The truth is that of the law, by quadrature: z is the error of
log Z in units of the quoted one.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import by, read, section, source, table
from priors import fitted
from torch import Tensor

import pyro_stad

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
    "smoke": ("--budget tiny --laws normal --seeds 1 --widths 0.5",),
}

_ROWS, _GRID = 10_000, 1501
_WIDTHS = (0.1, 0.2, 0.4, 0.7, 1.0)
Law = tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor], Any]


def normal(x: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    return dist.Normal(loc, scale).log_prob(x)


def draw_modes(rows: int) -> Tensor:
    x = 0.5 * torch.randn(rows, 2)
    x[:, 0] += 2.0 * (2.0 * (torch.rand(rows) < 0.4) - 1)
    return x


def modes(x: Tensor) -> Tensor:
    left, right = (math.log(p) + normal(x[:, 0], m, 0.5) for p, m in ((0.6, -2.0), (0.4, 2.0)))
    return torch.logaddexp(left, right) + normal(x[:, 1], 0.0, 0.5)


def draw_banana(rows: int) -> Tensor:
    a = torch.randn(rows)
    return torch.stack([1.5 * a, 0.9 * a.square() - 1 + 0.3 * torch.randn(rows)], 1)


def banana(x: Tensor) -> Tensor:
    a = x[:, 0] / 1.5
    return normal(a) - math.log(1.5) + normal(x[:, 1], 0.9 * a.square() - 1, 0.3)


STUDENT = dist.StudentT(3.0)
LAWS: dict[str, Law] = {
    "normal": (lambda n: torch.randn(n, 2), lambda x: normal(x).sum(1), None),
    "banana": (draw_banana, banana, None),
    "two modes": (draw_modes, modes, None),
    "Student t, 3 dof": (
        lambda n: STUDENT.sample((n, 2)), lambda x: STUDENT.log_prob(x).sum(1), None
    ),
    "half-normal, exponential": (
        lambda n: torch.stack([torch.randn(n).abs(), -torch.rand(n).log()], 1),
        lambda x: math.log(2) + normal(x[:, 0]) - x[:, 1],
        [(0.0, None), (0.0, None)],
    ),
}  # fmt: skip
# Where a likelihood pulls off the ridge of the banana: the observation, and its error.
OFF = [((0.0, 0.5), 0.2), ((0.0, 1.0), 0.2), ((0.0, 4.0), 0.3)]


def truth(law: Law, y: Tensor, width: float) -> float:
    """Return log Z by quadrature over twelve widths of likelihood about the datum, or the bulk."""
    _, log_prob, bounds = law
    reach = max(12 * width, 6.0)
    axes = []
    for i in range(2):
        low = max(float(y[i]) - reach, 0.0 if bounds else -math.inf)
        axes.append(torch.linspace(low, float(y[i]) + reach, _GRID, dtype=torch.float64))
    x = torch.cartesian_prod(*axes)
    ends = [torch.ones(_GRID, dtype=torch.float64) for _ in axes]
    for end in ends:
        end[[0, -1]] = 0.5
    weights = (ends[0][:, None] * ends[1]).flatten().log()
    total = log_prob(x) + normal(x, y.double(), width).sum(1) + weights
    steps = math.log(float(axes[0][1] - axes[0][0])) + math.log(float(axes[1][1] - axes[1][0]))
    return torch.logsumexp(total, 0).item() + steps


def likelihood(prior: Any, width: float) -> Callable[[Tensor], None]:
    def model(y: Tensor) -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, width).to_event(1), obs=y)

    return model


def evidence(model: Callable[[Tensor], None], y: Tensor, seed: int) -> dict[str, Any]:
    """Return what is said of an evidence, be it given or refused."""
    reason = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = pyro_stad.log_evidence(model, y, seed=seed, progress=False)
        except pyro_stad.EvidenceError as error:
            result, reason = error.result, str(error)
    assert result is not None
    row = {"log_z": result.log_z, "log_z_err": result.log_z_err, "refused": reason}
    if result.support is not None:
        kept = ("power", "log_ratio", "error", "expected", "learning_error", "ess")
        row |= {name: getattr(result.support, name) for name in kept}
    row |= {"method": result.method, "extrapolated": result.extrapolated}
    return row


def measure(name: str, budget: str, seed: int, widths: list[float]) -> list[dict[str, Any]]:
    law = LAWS[name]
    torch.manual_seed(seed)
    x, centres = law[0](_ROWS), law[0](len(widths))
    prior = fitted(x, law[2], budget, seed)
    cases = [("bulk", y, width) for y, width in zip(centres, widths)]
    if name == "banana":
        cases += [("off", torch.tensor(y), width) for y, width in OFF]
    rows = []
    for place, y, width in cases:
        row = {"law": name, "seed": seed, "place": place, "y": y.tolist(), "width": width}
        row |= {"truth": truth(law, y, width), **evidence(likelihood(prior, width), y, seed)}
        rows.append({**row, "z": (row["log_z"] - row["truth"]) / row["log_z_err"]})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = arguments(__doc__, "coverage")
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--widths", nargs="*", type=float, default=list(_WIDTHS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made, seeds = provenance(options.seed), range(options.seed, options.seed + options.seeds)
    rows: list[dict[str, Any]] = []
    for name in options.laws:
        for seed in seeds:
            rows += measure(name, options.budget, seed, options.widths)
    bulk = [row["z"] for row in rows if row["place"] == "bulk" and not row["refused"]]
    print(f"bulk: {len(bulk)} answers, sd of z {statistics.pstdev(bulk):.2f}, "
          f"{sum(abs(z) < 3 for z in bulk)} within three errors")  # fmt: skip
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(170)
def page() -> str:
    result = read("coverage")
    rows = []
    for (law, place), found in by(result["rows"], "law", "place").items():
        given = [row for row in found if not row["refused"]]
        z = [row["z"] for row in given]
        rows.append([
            law, "in the bulk" if place == "bulk" else "off the ridge", str(len(found)),
            str(len(found) - len(given)),
            f"{sum(abs(v) < 3 for v in z)} of {len(z)}",
            f"{statistics.pstdev(z):.2f}" if len(z) > 1 else "",
            f"{max(abs(row['log_z'] - row['truth']) for row in given):.2f}" if given else "",
        ])  # fmt: skip
    header = ["law", "likelihoods", "number", "refused", "within three errors", "sd of z"]
    return (
        "## Errors of evidences of learned priors\n\n"
        f"log Z with priors learned from 10,000 samples, budget `{result['budget']}`, against that "
        "of the law by quadrature; z in units of the quoted error.\n\n"
        f"{table([*header, 'largest error given, nat'], rows)}\n\n{source('coverage', result)}\n"
    )


if __name__ == "__main__":
    main()
