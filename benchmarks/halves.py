"""Claim: yesterday's posterior as today's prior gives the posterior of both days.

Five regressions of posteriordb (Magnusson, Torgander, Buerkner, Zhang, Carpenter and Vehtari
(2025), posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms), every
other row of their data a half.
NUTS samples the posterior of the first half, ``fit`` learns it, and NUTS updates it by the second
half, whitened and in noise. And from the chains of either half alone: ``combine``, their common
prior counted once. Against the reference draws of all data: the largest error of a mean, in
posterior standard deviations, and of a standard deviation; split R-hat and divergences of NUTS.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from common import arguments, provenance, write
from page import read, section, source, table
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import init_to_sample
from torch import Tensor

import pyro_stad

RUNS = {
    "long": ("",),
    "smoke": ("--posteriors kidiq-kidscore_momhsiq --budget tiny --draws 100 --name smoke_halves",),
}

_DATA = Path(__file__).parents[2] / "shared" / "data" / "posteriordb"
_FLAT = dist.Uniform(-1e4, 1e4)  # as flat as none, but it has a density


class Regression(NamedTuple):
    """Rows of a normal linear regression, and the priors of its coefficients and its noise."""

    x: Tensor
    y: Tensor
    coefficient: Any
    noise: Any

    def half(self, start: int) -> Regression:
        """Every other row: the first and the second half of some of them differ by sigmas."""
        return self._replace(x=self.x[start::2], y=self.y[start::2])


def stored(name: str, what: str) -> Any:
    with zipfile.ZipFile(_DATA / name / f"{what}.json.zip") as archive:
        (member,) = [entry for entry in archive.namelist() if entry.endswith(".json")]
        return json.loads(archive.read(member))


def columns(data: dict[str, Any], *names: str) -> list[Tensor]:
    return [torch.tensor(data[name], dtype=torch.float64) for name in names]


def kidiq(data: dict[str, Any], *, interaction: bool) -> Regression:
    score, school, iq = columns(data, "kid_score", "mom_hs", "mom_iq")
    parts = [torch.ones_like(iq), school, iq, *([school * iq] if interaction else [])]
    return Regression(torch.stack(parts, 1), score, _FLAT, dist.HalfCauchy(2.5))


def earnings(data: dict[str, Any]) -> Regression:
    earn, height, male = columns(data, "earn", "height", "male")
    x = torch.stack([torch.ones_like(height), height, male, height * male], 1)
    return Regression(x, earn.log(), _FLAT, dist.Uniform(0.0, 1e4))


def autoregression(data: dict[str, Any]) -> Regression:
    (y,), lags = columns(data, "y"), data["K"]
    parts = [y[lags - k : len(y) - k] for k in range(1, lags + 1)]
    x = torch.stack([torch.ones(len(y) - lags, dtype=y.dtype), *parts], 1)
    return Regression(x, y[lags:], dist.Normal(0.0, 10.0), dist.HalfCauchy(2.5))


def many(data: dict[str, Any]) -> Regression:
    y, x = columns(data, "y", "X")
    return Regression(x, y, dist.Normal(0.0, 10.0), dist.HalfNormal(10.0))


POSTERIORS = {
    "kidiq-kidscore_momhsiq": lambda data: kidiq(data, interaction=False),
    "kidiq-kidscore_interaction": lambda data: kidiq(data, interaction=True),
    "earnings-logearn_interaction": earnings,
    "arK-arK": autoregression,
    "sblrc-blr": many,
}


def nuts(model: Any, sites: list[str], draws: int, seed: int) -> tuple[dict[str, Tensor], int]:
    """Return two chains ``(2, draws, ...)`` of sites, computed ones too, and the divergences."""
    found, diverged = [], 0
    for chain in range(2):
        pyro.set_rng_seed(1000 * seed + chain)
        kernel = NUTS(
            model, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample
        )
        mcmc = MCMC(kernel, draws, draws // 2, disable_progbar=True)
        mcmc.run()
        samples = mcmc.get_samples()
        missing = [site for site in sites if site not in samples]
        if missing:
            with torch.no_grad():
                samples |= Predictive(model, samples, return_sites=missing)()
        found.append({site: samples[site].reshape(draws, -1) for site in sites})
        diverged += sum(map(len, mcmc.diagnostics()["divergences"].values()))
    return {site: torch.stack([one[site] for one in found]) for site in sites}, diverged


def chain_of(rows: Regression, draws: int, seed: int) -> Tensor:
    """Return draws of coefficients and noise of some rows, ``(2 draws, D + 1)``."""
    middle = torch.linalg.lstsq(rows.x, rows.y[:, None]).solution[:, 0]
    left = (rows.y - rows.x @ middle).std()
    tril = torch.linalg.cholesky(torch.linalg.inv(rows.x.mT @ rows.x)) * left
    size = len(middle)

    def model() -> None:
        # Flat, in coordinates in which the likelihood is round; their map's determinant is one.
        with pyro.poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(torch.zeros(size + 1), 1.0).to_event(1))
        beta = pyro.deterministic("beta", middle + tril @ z[:size])
        sigma = pyro.deterministic("sigma", left * (0.1 * z[size]).exp())
        prior = rows.coefficient.log_prob(beta).sum() + rows.noise.log_prob(sigma)
        pyro.factor("prior", prior + sigma.log())
        pyro.sample("y", dist.Normal(rows.x @ beta, sigma).to_event(1), obs=rows.y)

    found, _ = nuts(model, ["beta", "sigma"], draws, seed)
    return torch.cat([found["beta"], found["sigma"]], -1).flatten(0, 1)


def against(draws: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the largest errors of means, in sds, and of sds, of draws ``(N, D)``."""
    mean, sd = reference.mean(0), reference.std(0)
    return {
        "mean": ((draws.mean(0) - mean) / sd).abs().max().item(),
        "sd": (draws.std(0) / sd - 1).abs().max().item(),
    }


def updated(prior: Any, rows: Regression, form: str, draws: int, seed: int) -> Any:
    """Return draws of the prior updated by rows, with R-hat and divergences."""

    def model() -> None:
        theta = pyro.sample("theta", prior)
        noise = dist.Normal(rows.x @ theta[:-1], theta[-1]).to_event(1)
        pyro.sample("y", noise, obs=rows.y)

    held = pyro_stad.FlowReparam(form)(model)
    found, diverged = nuts(held, ["theta"], draws, seed)
    theta = found["theta"]
    half = theta.unflatten(1, (2, -1)).flatten(0, 1)
    within = half.var(1).mean(0)
    rhat = ((within + half.mean(1).var(0)) / within).sqrt().max().item()
    return theta.flatten(0, 1), {"rhat": rhat, "divergences": diverged}


def one(name: str, options: Any) -> dict[str, Any]:
    rows = POSTERIORS[name](stored(name, "data"))
    chains = stored(name, "draws")
    keys = list(chains[0])
    reference = torch.stack(
        [torch.tensor([v for c in chains for v in c[key]], dtype=torch.float64) for key in keys], 1
    )
    names = [f"c{index}" for index in range(len(keys) - 1)] + ["sigma"]
    fits = []
    for start in (0, 1):
        draws = chain_of(rows.half(start), options.chain, options.seed + 10 * start)
        fits.append(
            pyro_stad.fit(
                draws, names=names, bounds={"sigma": (0, None)}, budget=options.budget, members=0,
                progress=False, dtype=torch.float64,
            )
        )  # fmt: skip
    row: dict[str, Any] = {"posterior": name}
    for form in ("whitened", "noise"):
        started = time.perf_counter()
        draws, how = updated(fits[0], rows.half(1), form, options.draws, options.seed)
        row[form] = {**against(draws, reference), **how, "seconds": time.perf_counter() - started}
    common = {key: rows.coefficient for key in names[:-1]} | {"sigma": rows.noise}
    both = pyro_stad.combine(*fits, shared_prior=common, particles=2500, progress=False)
    row["combined"] = {**against(both.pool, reference), "troubles": list(both.troubles)}
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> None:
    parser = arguments(__doc__, "halves")
    parser.add_argument("--posteriors", nargs="*", default=list(POSTERIORS))
    parser.add_argument("--budget", default="standard")
    parser.add_argument("--chain", type=int, default=5000, help="draws of a chain of a half")
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    rows = [one(name, options) for name in options.posteriors]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(196)
def page() -> str:
    result = read("halves")
    header = ["posterior", "whitened", "in noise", "combined", "R-hat", "divergences"]
    rows = []
    for row in result["rows"]:
        ways = [row[key] for key in ("whitened", "noise", "combined")]
        cells = [f"{way['mean']:.3f}, {way['sd']:.1%}" for way in ways]
        rows.append(
            [
                row["posterior"],
                *cells,
                ", ".join(f"{way['rhat']:.3f}" for way in ways[:2]),
                ", ".join(str(way["divergences"]) for way in ways[:2]),
            ]
        )
    return (
        "## Data halved\n\n"
        "Regressions of posteriordb: half the data as a learned prior, half as likelihood; and "
        "both halves from their chains alone. Largest error of a mean in posterior standard "
        "deviations, and of a standard deviation.\n\n"
        f"{table(header, rows)}\n\n{source('halves', result)}\n"
    )


if __name__ == "__main__":
    main()
