"""Claim: a generator of one call draws what its prior draws, at a fraction of the time.

Priors of 10,000 samples by the standard budget: mixtures of five normals in 2, 8 and 16 dimensions,
and the 40-component mixture. *Ways*: regression on 50,000 pairs of the flow, EM distillation, and
both. Of 5,000 draws against 5,000 of the flow on 16 Runge-Kutta steps: how often a classifier tells
them apart (C2ST), energy distance, the largest relative error of the weights of modes, and the time
of 10,000 draws, the prior's own over the generator's. A draw is of the mode whose middle is the
nearest, whitened: by the densities of modes, one of which is as thin as 0.005, a draw that is off
by a hundredth is of another mode. *EM*: by the number of inference steps, with
noise cancellation and without, at as many network passes, three seeds; Kullback-Leibler divergences
both ways by nearest neighbours. *In noise*: a step of SVI, and NUTS, with the prior and with its
generator, in one model; the generator's posterior before and after its correction, against 16,000
particles of the prior's; and evidences: by the flow, by the generator and corrected, by it alone.

References:
    Perez-Cruz (2008), Kullback-Leibler Divergence Estimation of Continuous Distributions.
"""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, median_seconds, provenance, write
from page import DOCS, by, read, section, source, table
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from samplers import forty, told_apart
from sklearn.datasets import load_digits
from torch import Tensor

import pyro_stad
from pyro_stad.calibrate import energy_distance
from pyro_stad.evidence import SMC
from pyro_stad.fields.mixture import Mixture, random_mixture, sample_mixture
from pyro_stad.learn import EMSettings
from pyro_stad.ode import RK4

RUNS = {
    "long": ("", "--sheet --name one_step_sheet", "--width 64 --name one_step_narrow"),
    "smoke": (
        "--laws mixture-2 --budget tiny --steps 20 --draws 200 --seeds 1 --svi 5 --nuts 100 "
        "--particles 400 --name smoke_one_step",
    ),
}  # fmt: skip
_ROWS = 10_000
_INFERENCE = ((0, True), (1, True), (4, True), (8, True), (16, True), (1, False), (4, False))


def mixture_of(name: str) -> Mixture:
    return forty() if name == "gmm40" else random_mixture(int(name.split("-")[1]))


def learned(name: str, options: Any) -> tuple[Mixture, pyro_stad.FlowPrior]:
    mixture = mixture_of(name)
    samples = sample_mixture(mixture, _ROWS, 1).float()
    prior = pyro_stad.fit(
        samples, budget=options.budget, members=0, seed=options.seed, progress=False
    )
    return mixture, prior


def neighbours(x: Tensor, y: Tensor, *, same: bool) -> Tensor:
    """Return the distance to the nearest point of y, not to a point itself."""
    # By differences, in double precision: products round what is near to nothing.
    apart = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return apart.topk(2 if same else 1, largest=False).values[:, -1]


def divergence(x: Tensor, y: Tensor) -> float:
    """Return the Kullback-Leibler divergence of the law of x from that of y, by neighbours."""
    ratio = neighbours(x, y, same=False) / neighbours(x, x, same=True)
    return x.shape[1] * ratio.log().mean().item() + math.log(len(y) / (len(x) - 1))


def weights_of(middles: Tensor, white: Tensor) -> Tensor:
    """Return the share of whitened draws that each mode is the nearest to."""
    nearest = torch.cdist(white, middles).argmin(1)
    return nearest.bincount(minlength=len(middles)) / len(white)


@torch.no_grad()
def compared(made: pyro_stad.OneStepGenerator, mixture: Mixture, options: Any) -> dict[str, float]:
    """Return how the draws of a generator compare with those of its flow."""
    prior, source_ = made.prior, torch.Generator().manual_seed(1)
    flow = prior.transport.on_grid(RK4(16))
    x = made.sample([options.draws], generator=torch.Generator().manual_seed(2))
    white = prior.whiten(x)
    true, other = (
        flow.push(torch.randn(options.draws, len(prior.names), generator=source_)) for _ in range(2)
    )
    middles = prior.whiten(mixture[1].to(x))
    ours, theirs, again = (weights_of(middles, each) for each in (white, true, other))
    return {
        "c2st": float(told_apart(white, true)),
        "distance": energy_distance(white[:4000], true[:4000]),
        "weights": ((ours - theirs) / theirs).abs().max().item(),
        "by_chance": ((again - theirs) / theirs).abs().max().item(),
        "forward": divergence(true, white),
        "reverse": divergence(white, true),
    }


def ways(name: str, options: Any) -> list[dict[str, Any]]:
    """Return what regression, EM and both are worth on one law."""
    mixture, prior = learned(name, options)
    rows = []
    for method in ("regression", "em", "both") if options.width is None else ("regression",):
        made = pyro_stad.distil_one_step(
            prior, method=method, steps=options.steps, width=options.width, seed=options.seed,
            progress=False,
        )  # fmt: skip
        z = torch.randn(_ROWS, len(prior.names))
        pushes = {"one": made.transport.push, "flow": prior.transport.push}
        times = median_seconds({kind: partial(push, z) for kind, push in pushes.items()})
        rows.append({
            "law": name, "method": method, "seconds": made.distilled.seconds,
            "displacement": made.distilled.displacement,
            "faster": times["flow"] / times["one"],
            "calls": prior.transport.sequential_calls(), **compared(made, mixture, options),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def inferred(name: str, options: Any) -> list[dict[str, Any]]:
    """Return what EM is worth by its inference steps, at as many network passes."""
    mixture, prior = learned(name, options)
    rows = []
    for count, cancelled in _INFERENCE:
        # Student: a draw and a training pass. Generator, in one of three steps: for each inference
        # step a draw with its gradient, teacher and student, and a training pass. Backward is two.
        passes = 4 + (5 * max(1, count) + 3) / 3
        steps = max(10, round(12 * options.steps / 3 / passes))
        em = EMSettings(inference_steps=count, noise_cancellation=cancelled)
        for seed in range(options.seeds):
            made = pyro_stad.distil_one_step(
                prior, method="em", em=em, steps=steps, seed=seed, progress=False
            )
            rows.append({
                "law": name, "inference_steps": count, "cancelled": cancelled, "seed": seed,
                "steps": steps, **compared(made, mixture, options),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def in_noise(name: str, options: Any) -> dict[str, Any]:
    """Return ELBO and time of SVI, and posterior and price of NUTS, with both in one model."""
    _, prior = learned(name, options)
    made = pyro_stad.distil_one_step(prior, steps=options.steps, seed=options.seed, progress=False)
    truth = prior.sample([1], generator=torch.Generator().manual_seed(5))[0]
    seen = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(6))
    found: dict[str, Any] = {"law": name}
    for label, law in {"flow": prior, "generator": made}.items():
        model = pyro_stad.FlowReparam()(_model(law))
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoMultivariateNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=10))
        started = time.perf_counter()
        losses = [svi.step(seen) for _ in range(options.svi)]
        found[f"svi {label}"] = {
            "seconds": (time.perf_counter() - started) / options.svi,
            "elbo": -float(np.mean(losses[-options.svi // 4 :])),
        }
        mcmc = MCMC(NUTS(model), options.nuts, 200, disable_progbar=True)
        started = time.perf_counter()
        mcmc.run(seen)
        seconds = time.perf_counter() - started
        theta = Predictive(model, mcmc.get_samples())(seen)["theta"].reshape(options.nuts, -1)
        effective = mcmc.diagnostics()["theta_base"]["n_eff"].min().item()
        found[f"nuts {label}"] = {
            "seconds": seconds / effective,
            "mean": theta.mean(0).tolist(),
            "sd": theta.std(0).tolist(),
            "divergences": sum(map(len, mcmc.diagnostics()["divergences"].values())),
        }
    put_right = pyro_stad.correct(mcmc, model, seen, draws=options.nuts)
    found["corrected"] = {
        "khat": put_right.khat,
        "share": put_right.ess / put_right.log_weights.numel(),
        "mean": put_right.mean()["theta"].tolist(),
        "sd": put_right.sd()["theta"].tolist(),
    }
    found["evidence"] = evidences(prior, made, seen, options)
    known = evidence(prior, seen, options.particles).draws["theta"]
    found["truth"] = {"mean": known.mean(0).tolist(), "sd": known.std(0).tolist()}
    print(found, flush=True)
    return found


def evidence(law: Any, seen: Tensor, particles: int, **options: Any) -> Any:
    return pyro_stad.log_evidence(
        _model(law), seen, method=SMC(particles), progress=False,
        allow_extrapolation=True, **options,
    )  # fmt: skip


def evidences(prior: Any, made: Any, seen: Tensor, options: Any) -> dict[str, Any]:
    ways_ = {"flow": (prior, {}), "corrected": (made, {}), "generator": (made, {"correct": False})}
    rows = {}
    for label, (law, more) in ways_.items():
        started = time.perf_counter()
        result = evidence(law, seen, options.particles // 4, **more)
        rows[label] = {
            "seconds": time.perf_counter() - started,
            "log_z": result.log_z, "error": result.log_z_err, "calls": result.network_calls,
            "correction": result.correction,
        }  # fmt: skip
    return rows


def sheet(options: Any) -> dict[str, Any]:
    """Return ten digits of 8 x 8 by the flow and by each generator, of one noise, as pixels."""
    pixels = torch.as_tensor(load_digits().data).float()
    pixels = pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))
    prior = pyro_stad.fit(
        pixels, bounds=[(0.0, 17.0)] * 64, budget=options.budget, members=0, progress=False
    )
    ways_ = {
        "regression": {"method": "regression"},
        "EM, K = 4": {"method": "em"},
        "EM, K = 0": {"method": "em", "em": EMSettings(inference_steps=0)},
    }
    laws: dict[str, Any] = {"flow": prior}
    for label, way in ways_.items():
        laws[label] = pyro_stad.distil_one_step(prior, steps=options.steps, progress=False, **way)
        print(label, laws[label].distilled, flush=True)
    return {
        label: law.sample([10], generator=torch.Generator().manual_seed(3))
        .reshape(10, 8, 8).mul(10).round().div(10).tolist()
        for label, law in laws.items()
    }  # fmt: skip


def _model(law: Any) -> Any:
    def model(seen: Tensor) -> None:
        theta = pyro.sample("theta", law)
        pyro.sample("seen", dist.Normal(theta, 0.3).to_event(1), obs=seen)

    return model


def main() -> None:
    parser = arguments(__doc__, "one_step")
    laws = ["mixture-2", "mixture-8", "mixture-16", "gmm40"]
    parser.add_argument("--laws", nargs="+", default=laws)
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--svi", type=int, default=400)
    parser.add_argument("--nuts", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--width", type=int, help="units of a regressed generator; ways alone")
    parser.add_argument("--sheet", action="store_true", help="only the sheet of digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    if options.sheet:
        write(options.name, {"provenance": made, "sheet": sheet(options)})
        return
    if options.width is not None:
        rows = [row for name in options.laws for row in ways(name, options)]
        write(options.name, {"provenance": made, "ways": rows, "width": options.width})
        return
    noise = [in_noise(name, options) for name in options.laws[:3]]
    rows = [row for name in options.laws for row in ways(name, options)]
    em = inferred(options.laws[0], options)
    write(options.name, {"provenance": made, "ways": rows, "em": em, "noise": noise})


def picture() -> None:
    """Draw the sheet of digits, a row for each way."""
    import matplotlib.pyplot as plt

    found = read("one_step_sheet")["sheet"]
    figure, axes = plt.subplots(len(found), 1, figsize=(6, 2.6))
    for ax, (label, digits) in zip(axes, found.items()):
        ax.imshow(np.hstack(digits), cmap="gray_r", vmin=0, vmax=17)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=0.2, right=0.99, top=0.99, bottom=0.01, hspace=0.06)
    figure.savefig(DOCS / "one_step.png", dpi=110)
    plt.close(figure)


@section(88)
def page() -> str:
    result, narrow = read("one_step"), read("one_step_narrow")
    picture()
    for row in narrow["ways"]:
        row["method"] = f"regression, {narrow['width']} units"
    each = sorted(result["ways"] + narrow["ways"], key=lambda row: row["law"])
    rows = [
        [
            row["law"], row["method"], f"{row['seconds']:.0f}", f"{row['c2st']:.3f}",
            f"{1e3 * row['distance']:.2g}", f"{row['weights']:.0%} ({row['by_chance']:.0%})",
            f"{row['displacement']:.3f}", f"{row['faster']:.0f} ({row['calls']})",
        ]
        for row in each
    ]  # fmt: skip
    header = ["prior", "way", "seconds", "C2ST", "distance", "weights", "displacement", "faster"]
    keys = ("c2st", "distance", "weights", "forward", "reverse")
    inference = [
        [
            str(count), "yes" if cancelled else "no", str(at[0]["steps"]),
            *(_mean([row[key] for row in at]) for key in keys),
        ]
        for (count, cancelled), at in by(result["em"], "inference_steps", "cancelled").items()
    ]  # fmt: skip
    heads = ["K", "cancelled", "steps", "C2ST", "distance", "weights", "KL", "KL, reverse"]
    return (
        "## Generators of one call\n\n"
        "Against the flow on 16 Runge-Kutta steps: C2ST, energy distance in thousandths, largest "
        "relative error of the weight of a mode (in brackets, of other draws of the flow), root "
        "mean square of how far draws are from the flow's of the same noise, and how many times "
        "faster than the prior's own draws (in "
        f"brackets, their calls).\n\n{table(header, rows)}\n\n"
        f"EM distillation of {result['em'][0]['law']} by inference steps, at as many network "
        f"passes, three seeds; divergences in nats.\n\n{table(heads, inference)}\n\n"
        f"{_noise(result['noise'])}\n\n"
        "Digits of 8 x 8, of one noise.\n\n![digits in one call](one_step.png)\n\n"
        f"{source('one_step', result)} {source('one_step', narrow)}\n"
    )


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3g} +- {np.std(values):.1g}"


def _noise(rows: list[dict[str, Any]]) -> str:
    cells, numbers = [], []
    for row in rows:
        svi, other = row["svi flow"], row["svi generator"]
        nuts, ours = row["nuts flow"], row["nuts generator"]
        truth, right = row["truth"], row["corrected"]
        cells.append([
            row["law"], f"{svi['elbo']:.2f}", f"{other['elbo']:.2f}",
            f"{svi['seconds'] / other['seconds']:.1f}", f"{nuts['seconds'] / ours['seconds']:.1f}",
            _off(nuts, truth), _off(ours, truth), _off(right, truth),
            f"{right['khat']:.2f}", f"{right['share']:.0%}",
        ])  # fmt: skip
        ways_ = row["evidence"]
        whole = ways_["flow"]
        numbers.append([
            row["law"],
            *(f"{way['log_z']:.3f} +- {way['error']:.3f}" for way in ways_.values()),
            f"{ways_['corrected']['correction'][0]:+.3f}",
            f"{whole['calls'] / ways_['corrected']['calls']:.1f}",
            f"{whole['seconds'] / ways_['corrected']['seconds']:.1f}",
        ])  # fmt: skip
    header = [
        "prior", "ELBO, flow", "ELBO, generator", "SVI, times faster", "NUTS, times faster",
        "off, flow", "off, generator", "off, corrected", "Pareto shape", "draws left",
    ]  # fmt: skip
    heads = [
        "prior", "log Z, flow", "corrected", "generator alone", "correction", "calls, fewer",
        "times faster",
    ]  # fmt: skip
    return (
        "In noise, in one model: steps of SVI, and effective draws of NUTS, times faster than with "
        "the flow; and how far means of NUTS (in brackets, sds) are from those of the flow's "
        "16,000 particles, in sds, the generator's before and after `correct`; draws are 1,000.\n\n"
        f"{table(header, cells)}\n\nEvidences of the same data by SMC, one run of each: by the "
        "flow; by the generator, corrected to the flow; and by the generator alone.\n\n"
        f"{table(heads, numbers)}"
    )


def _off(found: dict[str, Any], truth: dict[str, Any]) -> str:
    sd = np.array(truth["sd"])
    mean = np.abs(np.array(found["mean"]) - np.array(truth["mean"])) / sd
    spread = np.abs(np.array(found["sd"]) / sd - 1)
    return f"{mean.max():.2f} ({spread.max():.0%})"


if __name__ == "__main__":
    main()
