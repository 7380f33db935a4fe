"""Claim: NUTS with a learned prior costs little more per effective sample than with a normal one.

Three posteriors: a near-normal one in 12 dimensions (a Student t), a banana in 4, and a
mixture of five components in 8. The same samples give the learned prior and a multivariate normal
of their moments; the law that they came from, in closed form, stands beside them, since another
prior has another posterior, which may be harder whatever the prior costs. The data are the same,
and so are Pyro's NUTS, warm-up, draws and compilation. Seconds of sampling, without warm-up, over
the smallest bulk effective sample size. The teacher's score at the data end, one network call, is
tried as the gradient too: it is not that of the density, and that is what it costs. On the mixture
it has never come to an end within five minutes, and is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import arviz
import pyro
import pyro.distributions as dist
import torch
from common import RESULTS, arguments, provenance, write
from page import read, section, source, table
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.reparam import TransformReparam
from torch import Tensor

import pyro_stad
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.likelihood import ScoreGradient

# What `make bench`, `bench-long`, `bench-quick` and the slow tests run of it.
RUNS = {
    "long": ("",),
}  # fmt: skip


class Banana(dist.TorchDistribution):
    """Two independent bananas, (a, b + (a^2 - 1) / 2), with a of spread 1 and b of 1/2."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.real_vector

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size([4]))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        a, b = torch.randn(2, *sample_shape, 2)
        return torch.cat([a, 0.5 * b + 0.5 * (a.square() - 1)], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        a, c = value.chunk(2, dim=-1)
        b = 2 * c - (a.square() - 1)
        return (-0.5 * (a.square() + b.square())).sum(-1) - 2 * math.log(math.pi)


class Mixture(dist.MixtureSameFamily):
    """A mixture whose support Pyro's transforms know."""

    support = dist.constraints.real_vector


# Of the observation. At 1, the posterior of the mixture has modes that no chain leaves.
NOISES = {"near-normal, D = 12": 1.0, "banana, D = 4": 1.0, "mixture, D = 8": 0.4}
BY_SCORE = ("near-normal, D = 12", "banana, D = 4")


def laws(seed: int) -> dict[str, Any]:
    """Return the laws of the prior samples by name."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=generator) / 12**0.5 + torch.eye(12)
    tril = torch.linalg.cholesky(mix @ mix.mT)
    weights, means, covariances = (part.float() for part in random_mixture(8, 5, seed))
    return {
        "near-normal, D = 12": dist.MultivariateStudentT(
            torch.tensor(200.0), torch.zeros(12), tril
        ),
        "banana, D = 4": Banana(),
        "mixture, D = 8": Mixture(
            dist.Categorical(weights), dist.MultivariateNormal(means, covariances)
        ),
    }


def model_of(prior: Any, observed: Tensor, noise: float) -> Callable[[], None]:
    """Return a model that observes every coordinate with normal noise."""

    def model() -> None:
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=observed)

    return model


def run(model: Any, warmup: int, draws: int, seed: int) -> dict[str, float]:
    pyro.set_rng_seed(seed)
    kernel = NUTS(
        model,
        jit_compile=True,
        ignore_jit_warnings=True,
        init_strategy=init_to_sample,
    )
    stamps: list[float] = []
    mcmc = MCMC(
        kernel,
        draws,
        warmup,
        disable_progbar=True,
        hook_fn=lambda *_: stamps.append(time.perf_counter()),
    )
    mcmc.run()
    seconds = stamps[-1] - stamps[warmup - 1]
    values = next(iter(mcmc.get_samples().values())).double().numpy()
    effective = float(arviz.ess({"theta": values[None]})["theta"].min())
    return {
        "seconds": seconds,
        "effective": effective,
        "seconds_per_effective_sample": seconds / effective,
        "divergences": len(mcmc.diagnostics()["divergences"]["chain 0"]),
    }


def rows(name: str, law: Any, warmup: int, draws: int, seed: int) -> list[dict[str, Any]]:
    pyro.set_rng_seed(seed)
    samples = law.sample((10_000,))
    learned = pyro_stad.fit(samples, seed=seed, progress=False)
    print(learned)
    normal = dist.MultivariateNormal(samples.mean(0), torch.cov(samples.mT))
    priors = {
        "multivariate normal": normal,
        "the law itself": law,
        "learned, x-space": learned,
        "learned, auxiliary form": learned,
    }
    if name in BY_SCORE:
        by_score = learned.with_likelihood(ScoreGradient(learned.likelihood))
        priors["learned, x-space, score for a gradient"] = by_score
    models = {key: model_of(prior, samples[0], NOISES[name]) for key, prior in priors.items()}
    auxiliary = "learned, auxiliary form"
    models[auxiliary] = poutine.reparam(models[auxiliary], config={"theta": TransformReparam()})
    found = {key: run(model, warmup, draws, seed) for key, model in models.items()}
    normals, itself = (
        found[key]["seconds_per_effective_sample"]
        for key in ("multivariate normal", "the law itself")
    )
    return [
        {
            "posterior": name,
            "prior": key,
            "likelihood": repr(learned.likelihood) if key.startswith("learned") else "",
            **result,
            "over_normal": result["seconds_per_effective_sample"] / normals,
            "over_law": result["seconds_per_effective_sample"] / itself,
        }
        for key, result in found.items()
    ]


def main() -> None:
    parser = arguments(__doc__, "nuts")
    parser.add_argument("--posteriors", nargs="+", default=list(NOISES))
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(options.seed)
    measured = []
    for name in options.posteriors:
        law = laws(options.seed)[name]
        of_one = rows(name, law, options.warmup, options.draws, options.seed)
        measured += of_one
        for r in of_one:
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()}, flush=True)
        # Written as it goes: each problem takes minutes.
        write(options.name, {"provenance": made, "rows": measured})


@section(90)
def page() -> str:
    results = [read(path.stem) for path in RESULTS.glob("nuts*.json")]
    results.sort(key=lambda result: result["provenance"]["date"])
    rows = [
        [
            row["posterior"],
            row["prior"],
            row["likelihood"],
            f"{row['effective']:.0f}",
            str(row["divergences"]),
            f"{row['over_normal']:.2f}",
            f"{row['over_law']:.2f}",
        ]
        for result in results
        for row in result["rows"]
    ]
    sources = " ".join(source("nuts", result) for result in results)
    header = ["posterior", "prior", "density", "ESS", "divergences"]
    header += ["time per ESS, over a normal", "over the law itself"]
    return (
        "## What an effective sample costs\n\n"
        "NUTS with the learned prior, by both routes, beside a multivariate normal of the same "
        "moments, whose posterior is another one, and beside the law of the samples in closed "
        "form. Smallest bulk effective sample size.\n\n"
        f"{table(header, rows)}\n\n{sources}\n"
    )


if __name__ == "__main__":
    main()
