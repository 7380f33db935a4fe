"""Claim: many chains at once give ten thousand effective draws many times sooner than NUTS.

The posteriors of nuts.py with a learned prior (of 10,000 samples, the standard budget), one of the
mixture with several modes, the eight schools, non-centred, and the enzyme kinetics of the demo.
*Time*: seconds to 10,000 effective draws of the worst coordinate, everything included: tempering,
pilot and warm-up of ours, compilation and warm-up of Pyro's compiled NUTS, whose draws go on at
their own rate; on the eight schools BlackJAX's MEADS and ChEES beside them, compilation included,
and without. *Price*: seconds for an effective draw with the learned prior over those with the law
itself, in the same kernel. *Truth*: the law itself, 20 seeds, against closed forms, or millions of
draws weighed to the posterior: means and sds, z-scores of means by their own error, and weights of
modes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from known_posteriors import NormalMixture, known_posterior, most_even
from nuts import NOISES, laws, model_of
from page import read, section, source, table
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample

import pyro_stad
from pyro_stad.data.effective import ess
from pyro_stad.demo import kinetics

RUNS = {
    "long": ("",),
    "smoke": (
        "--problems 'eight schools' 'banana, D = 4' --budget tiny --ess 200 --nuts 50 --seeds 1 "
        "--known 2000 --name smoke_many_chains",
    ),
}  # fmt: skip
_SCHOOLS = "eight schools"
_MODES = "mixture, D = 8, several modes"
_WEIGHTY = 0.05  # a mode of which the weight is asked for
_KINETICS = "enzyme kinetics"
_WORST_R_HAT = 1.01
_EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
_ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("effect", dist.Normal(mu + tau * eta, _ERRORS), obs=_EFFECTS)


def of_enzyme(options: Any) -> Callable[[], None]:
    """Return the demo's model, with a prior learned from the posterior of its first part."""
    draws = kinetics.draw_posterior_of_a(10_000, torch.Generator().manual_seed(options.seed))
    prior = pyro_stad.fit(
        draws, names=kinetics.NAMES, bounds=dict.fromkeys(kinetics.NAMES, (0, None)),
        budget=options.budget, members=0, seed=options.seed, progress=False,
    )  # fmt: skip
    return lambda: kinetics.update(prior)


class Problem(NamedTuple):
    """A model with a learned prior; with the law itself, and what is known of that, if it is."""

    learned: Callable[[], None]
    exact: Callable[[], None] | None = None
    law: Any = None
    seen: Any = None
    noise: float = 0.0


def problem(name: str, options: Any) -> Problem:
    if name == _SCHOOLS:
        return Problem(eight_schools)
    if name == _KINETICS:
        return Problem(of_enzyme(options))
    law = laws(options.seed)[name.removesuffix(", several modes")]
    noise = 1.0 if name == _MODES else NOISES[name]
    pyro.set_rng_seed(options.seed)
    samples = law.sample((10_000,))
    prior = pyro_stad.fit(
        samples, budget=options.budget, members=0, seed=options.seed, progress=False
    )
    seen = most_even(law, samples, noise) if name == _MODES else samples[0]
    learned, exact = (model_of(each, seen, noise) for each in (prior, law))
    return Problem(learned, exact, law, seen, noise)


def ours(model: Any, options: Any, **more: Any) -> dict[str, Any]:
    found = pyro_stad.sample_posterior(
        model, num_samples=options.draws, min_ess=options.ess, seed=options.seed, progress=False,
        **more,
    )  # fmt: skip
    return {
        "seconds": found.seconds, "effective": found.worst_ess, "form": found.form,
        "r_hat": found.worst_r_hat, "pilot": found.pilot, "draws": found.lp.numel(),
        "chains": len(found.lp),
    }  # fmt: skip


def theirs(model: Any, options: Any) -> dict[str, float]:
    """Return what Pyro's compiled NUTS takes to as many effective draws, by its own rate."""
    pyro.set_rng_seed(options.seed)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample)
    stamps: list[float] = []
    warmup = options.nuts // 2
    mcmc = MCMC(
        kernel, options.nuts, warmup, disable_progbar=True,
        hook_fn=lambda *_: stamps.append(time.perf_counter()),
    )  # fmt: skip
    started = time.perf_counter()
    mcmc.run()
    before, sampling = stamps[warmup - 1] - started, stamps[-1] - stamps[warmup - 1]
    columns = torch.cat([x.reshape(len(x), -1) for x in mcmc.get_samples().values()], 1).double()
    effective = min(ess(column[None]) for column in columns.T)
    return {
        "warm-up": before, "effective": effective, "sampling": sampling,
        "seconds": before + sampling * options.ess / effective,
    }  # fmt: skip


def truth(found: Problem, options: Any) -> dict[str, float]:
    """Return how far posteriors of the law itself are from the known one, over seeds."""
    mean, sd = known_posterior(found.law, found.seen, found.noise, options.known)
    near = NormalMixture.near(found.law)
    modes = None if near is None else near.seen(found.seen, found.noise)
    off, spread, scores, weights = [], [], [], [0.0]
    for seed in range(options.seeds):
        result = pyro_stad.sample_posterior(
            found.exact, num_samples=options.draws, min_ess=options.true, seed=seed, progress=False
        )
        draws = result.draws["theta"].flatten(0, 1).double()
        apart = (draws.mean(0) - mean) / sd
        off.append(apart.abs().max().item())
        spread.append((draws.std(0) / sd - 1).abs().max().item())
        scores.append((apart * result.ess["theta"].sqrt()).tolist())
        if modes is not None and len(modes.weights) > 1:
            share = modes.joint(draws).softmax(1).mean(0)
            weighty = modes.weights > _WEIGHTY
            weights.append((share / modes.weights - 1)[weighty].abs().max().item())
    return {
        "mean": float(np.mean(off)), "sd": float(np.mean(spread)), "scores": float(np.std(scores)),
        "weights": float(np.mean(weights[1:])) if len(weights) > 1 else None,
        "modes": 1 if modes is None else int((modes.weights > _WEIGHTY).sum()),
    }  # fmt: skip


def blackjax_schools(options: Any) -> list[dict[str, Any]]:
    """Return what BlackJAX's samplers of many chains take on the eight schools, one thread."""
    import schools_blackjax

    return [
        schools_blackjax.run(kind, _EFFECTS.tolist(), _ERRORS.tolist(), options.ess)
        for kind in ("chees", "meads")
    ]


def measured(name: str, options: Any) -> dict[str, Any]:
    found = problem(name, options)
    settings = [ours(found.learned, options, num_chains=count) for count in options.chains]
    row: dict[str, Any] = {
        "posterior": name,
        "settings": settings,
        # The fastest of those that have come to what was asked for, and agree.
        "ours": min(
            settings,
            key=lambda s: (s["effective"] < options.ess, s["r_hat"] > _WORST_R_HAT, s["seconds"]),
        ),
        "nuts": theirs(found.learned, options),
    }
    if found.exact is not None:
        form = row["ours"]["form"]
        count = row["ours"]["chains"]
        row["learned"] = ours(found.learned, options, form=form, num_chains=count)
        row["law"] = ours(found.exact, options, form="parameters", num_chains=count)
        row["truth"] = truth(found, options)
    if name == _SCHOOLS:
        row["blackjax"] = blackjax_schools(options)
    return row


def main() -> None:
    parser = arguments(__doc__, "many_chains")
    parser.add_argument("--problems", nargs="+", default=[*NOISES, _MODES, _SCHOOLS, _KINETICS])
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--ess", type=float, default=10_000.0)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--chains", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--nuts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--true", type=float, default=2000.0, help="effective draws, for the truth")
    parser.add_argument("--known", type=int, default=2_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = []
    for name in options.problems:
        rows.append(measured(name, options))
        print(rows[-1], flush=True)
    peers = {name: version(name) for name in ("blackjax", "jax")}
    write(
        options.name,
        {
            "provenance": made,
            "peers": peers,
            "ess": options.ess,
            "true": options.true,
            "rows": rows,
        },
    )


def _beside(result: dict[str, Any]) -> str:
    """Say what BlackJAX takes, in our seconds."""
    (row,) = (row for row in result["rows"] if "blackjax" in row)
    ours_at = row["ours"]["seconds"] * result["ess"] / row["ours"]["effective"]
    parts = [
        f"{each['kind']} {each['seconds'] / ours_at:.1f} times ours with its compilation, "
        f"{each['compiled'] / ours_at:.2f} without"
        for each in row["blackjax"]
    ]
    versions = ", ".join(f"{k} {v}" for k, v in result["peers"].items())
    return (
        f"BlackJAX ({versions}), 128 chains on the same thread, warm-up included, takes on the "
        f"eight schools: {'; '.join(parts)}."
    )


@section(91)
def page() -> str:
    result = read("many_chains")
    cells, known = [], []
    for row in result["rows"]:
        mine, nuts = row["ours"], row["nuts"]
        price = "-"
        if "law" in row:
            each = [row[key]["seconds"] / row[key]["effective"] for key in ("learned", "law")]
            price = f"{each[0] / each[1]:.1f}"
            at = row["truth"]
            weights = "-" if at["weights"] is None else f"{at['weights']:.1%} of {at['modes']}"
            known.append([
                row["posterior"], f"{at['mean']:.3f}", f"{at['sd']:.1%}", f"{at['scores']:.2f}",
                weights,
            ])  # fmt: skip
        ours_at = mine["seconds"] * result["ess"] / mine["effective"]
        cells.append([
            row["posterior"], mine["form"], str(mine["chains"]), f"{mine['r_hat']:.3f}",
            f"{nuts['seconds'] / ours_at:.0f}", f"{nuts['seconds'] / mine['seconds']:.0f}", price,
        ])  # fmt: skip
    header = ["posterior", "form", "chains", "R-hat", "faster, a draw", "faster, in all", "price"]
    heads = ["posterior", "means off (sd)", "sds off", "sd of z-scores", "weights of modes off"]
    return (
        "## Many chains at once\n\n"
        f"Seconds to {result['ess']:,.0f} effective draws of the worst coordinate, everything "
        "included, of Pyro's compiled NUTS over `sample_posterior`'s, with 64, 128 or 256 chains, "
        "for the draws that there were (it stops in blocks) and in all; the price of an effective "
        f"draw with the learned prior over one with the law itself.\n\n{table(header, cells)}\n\n"
        f"{_beside(result)}\n\n"
        f"With the law itself, 64 chains and {result['true']:,.0f} effective draws of the worst "
        "coordinate at least, against closed forms or draws weighed to the "
        "posterior; means over 20 seeds; modes are those with a weight of more than "
        f"{_WEIGHTY:.0%}.\n\n{table(heads, known)}\n\n"
        f"{source('many_chains', result)}\n"
    )


if __name__ == "__main__":
    main()
