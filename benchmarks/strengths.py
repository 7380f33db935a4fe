"""Claim: which coordinates NUTS is fastest in depends on how much the data say; a pilot finds out.

Two priors, learned from 10,000 draws: a banana, whose own law is what NUTS finds hard, and a ridge
of 1 to 100, as of a degenerate pair of parameters. Of each, data with normal noise of 10, 1, 0.1
and 0.01 prior standard deviations (of the narrowest direction, on a ridge). Compiled NUTS in all
three forms: as it is, whitened, and in noise, where no density is computed. Effective draws of the
worst coordinate a second, without warm-up.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import DOCS, read, section, source, table
from priors import fitted
from torch import Tensor

import pyro_stad

RUNS = {
    "long": ("",),
    "smoke": ("--draws 20 --budget tiny --priors ridge --name smoke_strengths",),
}

NOISES = (10.0, 1.0, 0.1, 0.01)
COLOURS = {"as it is": "#c0392b", "whitened": "#2b5c9e", "noise": "#0b6e4f"}


def banana(count: int) -> Tensor:
    first, second = torch.randn(2, count)
    return torch.stack([first, 0.25 * second + first.square() - 1], 1)


def ridge(count: int) -> Tensor:
    along, across = torch.randn(2, count)
    return torch.stack([along + 0.01 * across, along - 0.01 * across], 1)


PRIORS = {"banana": banana, "ridge": ridge}


def one(name: str, options: Any) -> list[dict[str, Any]]:
    torch.manual_seed(options.seed)
    samples = PRIORS[name](10_000)
    prior = fitted(samples, None, options.budget, options.seed)
    truth = prior.sample()
    # A ridge is weakly seen when its narrow direction is.
    scale = torch.linalg.eigvalsh(torch.cov(samples.T))[0].sqrt()
    rows = []
    for noise in NOISES:
        y = truth + noise * scale * torch.randn(len(truth))

        def model(y: Tensor = y, noise: Tensor = noise * scale) -> None:
            theta = pyro.sample("theta", prior)
            pyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=y)

        pilot = piloted(model, options)
        if pilot is None:
            print(name, noise, "diverges in every form", file=sys.stderr, flush=True)
            continue
        row = {
            "prior": name,
            "noise": noise,
            "best": pilot.best,
            "rates": {run.form: run.effective / run.seconds for run in pilot.runs},
            "diverging": {run.form: run.diverging for run in pilot.runs},
        }
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def piloted(model: Any, options: Any) -> Any:
    """Return the pilot of all forms; None if all of them diverge."""
    try:
        return pyro_stad.choose_form(
            model, warmup=options.draws, draws=options.draws, seed=options.seed,
            nuts={"jit_compile": True, "ignore_jit_warnings": True},
        )  # fmt: skip
    except ValueError:
        return None


def main() -> None:
    parser = arguments(__doc__, "strengths")
    parser.add_argument("--priors", nargs="*", default=list(PRIORS))
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--draws", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [row for name in options.priors for row in one(name, options)]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


def draw(rows: list[dict[str, Any]]) -> None:
    """Draw effective draws a second against the noise, one panel a prior."""
    mpl.use("agg")
    names = list(dict.fromkeys(row["prior"] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.2), sharey=True)
    for axis, name in zip(axes, names):
        of_name = [row for row in rows if row["prior"] == name]
        for form, colour in COLOURS.items():
            good = [r for r in of_name if r["diverging"][form] <= 0.02]
            bad = [r for r in of_name if r["diverging"][form] > 0.02]
            noises, rates = zip(*((r["noise"], r["rates"][form]) for r in of_name))
            axis.plot(noises, rates, color=colour, label=form)
            for group, face in ((good, colour), (bad, "white")):
                axis.plot(
                    [r["noise"] for r in group], [r["rates"][form] for r in group], "o",
                    color=colour, markerfacecolor=face,
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=name, xlabel="noise / prior's sd")
        axis.invert_xaxis()
    axes[0].set_ylabel("effective draws a second")
    axes[-1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(DOCS / "strengths.png", dpi=150)
    plt.close(figure)


@section(198)
def page() -> str:
    result = read("strengths")
    draw(result["rows"])
    forms = list(COLOURS)
    rows = [
        [
            row["prior"],
            f"{row['noise']:g}",
            *(
                f"{row['rates'][form]:.0f}"
                + (f" ({row['diverging'][form]:.0%} diverge)" if row["diverging"][form] else "")
                for form in forms
            ),
            row["best"],
        ]
        for row in result["rows"]
    ]
    return (
        "## In which coordinates, by the strength of the data\n\n"
        "Effective draws a second of compiled NUTS, of the worst coordinate, by the noise of the "
        "data in prior standard deviations (a ridge's narrow one), and what `choose_form` "
        "recommends.\n\n"
        f"{table(['prior', 'noise', *forms, 'recommended'], rows)}\n\n"
        "![Effective draws a second by strength](strengths.png)\n\n"
        "Data get stronger to the right; a hollow point has more than 2 % divergences.\n\n"
        f"{source('strengths', result)}\n"
    )


if __name__ == "__main__":
    main()
