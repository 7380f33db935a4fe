"""Claim: some samplers draw truer than others; in phase space, reduced ones do than naive ones.

Laws whose field is known in closed form: mixtures of five normals in 2, 8 and 32 dimensions, and
the 40-component mixture of the Boltzmann-generator literature (Midgley et al., 2023, Flow Annealed
Importance Sampling Bootstrap), all whitened; and the digits of 8 x 8, learned. Every sampler at
the same network calls, on even and on quadratic steps, and the two grids made for positions; three
seeds of 2,000 draws. Energy distance to true samples (for the digits, to those held out); on
quadratic steps the error of the weights of modes and the mean spread within modes over the true
one, by responsibilities, and how often a classifier tells draws from samples (C2ST).
A sheet of digits for the eye.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, provenance, write
from page import DOCS, by, read, section, source, table
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import pyro_stad
from pyro_stad.calibrate import energy_distance
from pyro_stad.drawing import (
    DDIM,
    ODE,
    SSCS,
    AbstractPhaseSampler,
    AbstractSampler,
    Conjugate,
    DPMSolver,
    EDMChurn,
    EulerMaruyama,
    Grid,
    PhaseEulerMaruyama,
    PredictorCorrector,
    Splitting,
    grid_of,
)
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import Mixture, random_mixture, sample_mixture, whitened
from pyro_stad.paths import VPCosine

RUNS = {
    "long": (
        "--laws mixture-2 mixture-8 gmm40",
        "--laws mixture-32 digits --name samplers_high",
    ),
    "smoke": ("--laws mixture-2 digits --budgets 5 --seeds 1 --draws 200 --name smoke_samplers",),
}

_SHARED = Path(__file__).parents[2] / "shared" / "data"
_BUDGETS, _TOLD_APART = (5, 10, 20, 50, 100, 200), (20, 50)
_COMPARED, _MOST_UNITS = 1000, 128  # points of a side, and units of a layer, of the classifier
_LOST = 1e4
_MODES = ("weights", "spread", "c2st")
SAMPLERS: dict[str, AbstractSampler] = {
    "ODE, Euler": ODE(rule="euler"),
    "ODE, Heun": ODE(rule="heun"),
    "ODE, RK4": ODE(rule="rk4"),
    "DDIM": DDIM(),
    "DDPM (DDIM, eta = 1)": DDIM(eta=1.0),
    "DPM-Solver++(2M)": DPMSolver(),
    "Euler-Maruyama": EulerMaruyama(),
    "EDM, churn": EDMChurn(),
    "predictor-corrector": PredictorCorrector(),
    "PSLD, Euler-Maruyama": PhaseEulerMaruyama(),
    "PSLD, SSCS": SSCS(),
    "PSLD, conjugate": Conjugate(),
    "PSLD, conjugate, lambda = 1": Conjugate(lam=1.0),
    **{
        f"PSLD, {'reduced' if reduced else 'naive'} {scheme}": Splitting(
            scheme=scheme, reduced=reduced
        )
        for scheme in ("OBA", "BAO", "OBAB", "BA", "BAB")
        for reduced in (False, True)
    },
    "PSLD, reduced OBA, told t + h": Splitting(ahead=True),
    "PSLD, reduced OBA, lambda = 4": Splitting(noise_scale=4.0),
    "PSLD, reduced OBA, denoised": Splitting(denoise=True),
    "ODE, Heun, denoised": ODE(rule="heun", denoise=True),
    "Euler-Maruyama, denoised": EulerMaruyama(denoise=True),
}
_SHEET = ("ODE, Heun", "DDIM", "EDM, churn", "PSLD, SSCS", "PSLD, reduced OBA", "PSLD, reduced BAB")


def forty() -> Mixture:
    """Return the 40-component mixture, whitened."""
    means = torch.from_numpy(np.load(_SHARED / "evidence" / "gmm40.npz")["locs"]).double()
    scale = torch.nn.functional.softplus(torch.ones((), dtype=torch.float64))
    each = (scale**2 * torch.eye(2, dtype=torch.float64)).expand(40, 2, 2)
    return whitened((torch.full((40,), 1 / 40, dtype=torch.float64), means, each))


def law(name: str) -> tuple[Any, Any, Mixture | None]:
    """Return the field, what draws true samples by a seed and a number, and the mixture."""
    if name == "digits":
        pixels = torch.as_tensor(load_digits().data).float()
        pixels = pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(1))
        bounds = [(0.0, 17.0)] * 64
        prior = pyro_stad.fit(pixels[order[:1500]], bounds=bounds, members=0, progress=False)
        held = prior.whiten(pixels[order[1500:]])
        return prior, lambda seed, count: held, None
    mixture = forty() if name == "gmm40" else random_mixture(int(name.split("-")[1]))
    parts = tuple(part.float() for part in mixture)
    field = GaussianMixtureField(VPCosine(), *parts)
    return field, lambda seed, count: sample_mixture(mixture, count, 100 + seed).float(), mixture


def on_grids(sampler: AbstractSampler, calls: int) -> dict[str, AbstractSampler]:
    """Return a sampler that takes at most so many calls, on each grid that may serve it."""
    steps = sampler.steps_within(calls)
    if not steps:
        return {}
    if isinstance(sampler, AbstractPhaseSampler):
        powers = {"uniform": 1.0, "quadratic": 2.0}
        return {
            name: replace(sampler, grid=Grid(steps, power, sampler.path))
            for name, power in powers.items()
        }
    names = ("uniform", "quadratic", "log-snr", "edm")
    return {name: replace(sampler, grid=grid_of(name, steps)) for name in names}


def modes(mixture: Mixture, x: Tensor) -> dict[str, float]:
    """Return the error of weights, root mean square in units of a weight, and the spread within."""
    weights, means, covariances = mixture
    laws = torch.distributions.MultivariateNormal(means, covariances)
    x = x.double()
    share = (laws.log_prob(x[:, None]) + weights.log()).softmax(-1)
    found = share.mean(0)
    centre = (share.mT @ x) / share.sum(0)[:, None]
    across = (share[..., None] * (x[:, None] - centre).square()).sum(0) / share.sum(0)[:, None]
    # A mode that was lost has a spread of no points.
    spread = (across.sum(-1) / covariances.diagonal(dim1=1, dim2=2).sum(-1)).sqrt()
    return {
        "weights": ((found - weights) / weights).square().mean().sqrt().item(),
        "spread": spread.nanmean().item(),
    }


def told_apart(x: Tensor, y: Tensor) -> float:
    """Return how often a classifier tells draws from samples: 0.5 for the same law."""
    pooled = torch.cat([x, y]).numpy()
    labels = np.repeat([0, 1], [len(x), len(y)])
    size = min(10 * x.shape[1], _MOST_UNITS)
    network = MLPClassifier((size, size), max_iter=200, random_state=0, early_stopping=True)
    return cross_val_score(network, pooled, labels, cv=3).mean()


@torch.no_grad()
def measured(name: str, options: Any) -> list[dict[str, Any]]:
    with torch.enable_grad():
        known, samples, mixture = law(name)
    field = known.likelihood.field if name == "digits" else known
    rows = []
    for seed in range(options.seeds):
        truth = samples(seed, options.draws)
        for budget in options.budgets:
            for label, sampler in SAMPLERS.items():
                for grid, on_grid in on_grids(sampler, budget).items():
                    generator = torch.Generator().manual_seed(seed)
                    z = torch.randn(options.draws, *field.event_shape, generator=generator)
                    x = on_grid.draw(field, z, generator)
                    row = {"law": name, "seed": seed, "budget": budget, "sampler": label}
                    row |= {"grid": grid, "calls": on_grid.sequential_calls()}
                    row |= scores(x, truth, mixture)
                    if budget in _TOLD_APART and grid == "quadratic" and x.isfinite().all():
                        row["c2st"] = told_apart(x[:_COMPARED], truth[:_COMPARED])
                    rows.append(row)
            print(name, seed, budget, file=sys.stderr, flush=True)
    floors = [energy_distance(samples(s, 2000), samples(s + 50, 2000)) for s in range(50, 55)]
    rows.append({"law": name, "floor": np.abs(floors).mean().item()})
    if name == "digits":
        sheet(known, options)
    return rows


def scores(x: Tensor, truth: Tensor, mixture: Mixture | None) -> dict[str, float]:
    if not x.isfinite().all():
        return {"distance": float("inf")}
    found = {"distance": energy_distance(x, truth)}
    return found if mixture is None else {**found, **modes(mixture, x)}


def sheet(prior: Any, options: Any) -> None:
    """Keep ten digits of every sampler and budget, of the same noise, as pixels."""
    pictures = {}
    for label in _SHEET:
        for budget in (5, 10, 20, 50):
            grids = on_grids(SAMPLERS[label], budget)
            if grids:
                source = torch.Generator().manual_seed(3)
                x = prior.sample([10], sampler=grids["quadratic"], generator=source)
                pictures[f"{label}|{budget}"] = x.reshape(10, 8, 8).nan_to_num().tolist()
    name = options.name.removesuffix("_high")
    write(f"{name}_sheet", {"provenance": provenance(options.seed), "sheet": pictures})


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the values of all seeds in one, and those of modes where they are shown."""
    keys = ("law", "budget", "sampler", "grid", "calls")
    found: list[dict[str, Any]] = [row for row in rows if "floor" in row]
    for labels, same in by([row for row in rows if "sampler" in row], *keys).items():
        row: dict[str, Any] = dict(zip(keys, labels))
        shown = ("distance", *_MODES) if row["grid"] == "quadratic" else ("distance",)
        for key in shown:
            values = [float(f"{each[key]:.4g}") for each in same if key in each]
            row |= {key: values} if values else {}
        found.append(row)
    return found


def main() -> None:
    parser = arguments(__doc__, "samplers")
    laws = ["mixture-2", "mixture-8", "mixture-32", "gmm40", "digits"]
    parser.add_argument("--laws", nargs="+", default=laws)
    parser.add_argument("--budgets", nargs="+", type=int, default=_BUDGETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [row for name in options.laws for row in measured(name, options)]
    write(options.name, {"provenance": made, "rows": merged(rows)})


def _mean(values: list[float], factor: float = 1) -> str:
    values = [factor * value for value in values]
    if not values or not np.isfinite(values).all() or np.mean(values) > _LOST:
        return "lost"
    return f"{np.mean(values):.3g} +- {np.std(values, ddof=1):.1g}"


def _distances(rows: list[dict[str, Any]], grids: tuple[str, ...]) -> str:
    """Return distances by sampler and budget, on the truest of grids."""
    found = by([row for row in rows if row["grid"] in grids], "sampler", "budget")

    def cell(label: str, budget: int) -> str:
        each = found.get((label, budget))
        if each is None:
            return "-"
        best = min(each, key=lambda row: np.mean(row["distance"]))
        name = f" ({best['grid']})" if len(grids) > 1 else ""
        return _mean(best["distance"], 1e3) + name

    cells = [[label, *(cell(label, budget) for budget in _BUDGETS)] for label in SAMPLERS]
    return table(["sampler", *(f"{budget} calls" for budget in _BUDGETS)], cells)


def _details(rows: list[dict[str, Any]]) -> str:
    """Return weights, spread and C2ST, on quadratic steps."""
    found = by([row for row in rows if row["grid"] == "quadratic"], "sampler", "budget")
    keys = [key for key in _MODES if any(key in row for row in rows)]
    cells = [
        [
            label,
            *(
                _mean(found.get((label, budget), [{}])[0].get(key, []))
                for budget in _TOLD_APART
                for key in keys
            ),
        ]
        for label in SAMPLERS
    ]
    heads = {"weights": "error of weights", "spread": "spread", "c2st": "C2ST"}
    header = [f"{heads[key]}, {budget} calls" for budget in _TOLD_APART for key in keys]
    return table(["sampler", *header], cells)


def picture() -> None:
    """Draw the sheet of digits: a row for each sampler, a block for each budget."""
    import matplotlib.pyplot as plt

    found = read("samplers_sheet")["sheet"]
    budgets = (5, 10, 20, 50)
    figure, axes = plt.subplots(len(_SHEET), len(budgets), figsize=(12, 2.0))
    for row, label in enumerate(_SHEET):
        for column, budget in enumerate(budgets):
            ax, digits = axes[row, column], found.get(f"{label}|{budget}")
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(f"{budget} calls", fontsize=9)
            if column == 0:
                ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
            if digits is not None:
                ax.imshow(np.hstack(digits), cmap="gray_r", vmin=0, vmax=17, aspect="auto")
    figure.subplots_adjust(left=0.14, right=0.995, top=0.88, bottom=0.01, hspace=0.06, wspace=0.03)
    figure.savefig(DOCS / "samplers.png", dpi=110)
    plt.close(figure)


@section(82)
def page() -> str:
    results = [read("samplers"), read("samplers_high")]
    rows = [row for result in results for row in result["rows"]]
    picture()
    floors = {row["law"]: 1e3 * row["floor"] for row in rows if "floor" in row}
    parts = []
    for name, floor in floors.items():
        here = [row for row in rows if row["law"] == name and "sampler" in row]
        which = (
            "those held out"
            if name == "digits"
            else f"true samples, two of which are {floor:.2g} apart"
        )
        parts.append(
            f"### {name}\n\nEnergy distance to {which}, in thousandths, on even steps:\n\n"
            f"{_distances(here, ('uniform',))}\n\nOn the truest of its grids:\n\n"
            f"{_distances(here, ('uniform', 'quadratic', 'log-snr', 'edm'))}\n\n"
            f"On quadratic steps:\n\n{_details(here)}\n"
        )
    return (
        "## Samplers\n\n"
        "Draws at equal network calls, three seeds of 2,000: mean and standard deviation. Fields "
        "of mixtures are exact, that of the digits is learned. *Lost* is a distance beyond ten, "
        "or draws that are not finite; a dash, a step that takes more calls.\n\n"
        + "\n".join(parts)
        + "\n![digits by sampler and budget](samplers.png)\n\n"
        f"{source('samplers', results[0])}\n"
    )


if __name__ == "__main__":
    main()
