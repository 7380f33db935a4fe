"""Claim: a law given a context is learned as well as one law, and as well as by a spline flow.

Mixtures of five normals in D = 2 and 8 given three numbers: weights, a softmax of linear functions
of the context, and means, linear in it. 10,000 pairs; errors of log p against the truth on 4,000
fresh pairs. Beside it: zuko's conditional NSF with the training time that ``fit`` took, calibration
included, on the same whitened rows; and ``fit`` without a context to 10,000 samples of the law at
one context, for three contexts in turn, on 2,000 fresh samples each.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any

import torch
from common import arguments, provenance, write
from page import read, section, source, table
from peers import zuko_flow
from torch import Tensor
from torch.distributions import MultivariateNormal

import pyro_stad
from pyro_stad.data import Standardise, whitening
from pyro_stad.fields.mixture import random_mixture

RUNS = {
    "long": ("",),
    "smoke": ("--features 2 --budget tiny --contexts 1 --name smoke_conditional",),
}

_PAIRS, _GIVEN = 10_000, 3


class Mixture:
    """A mixture given a context."""

    def __init__(self, features: int, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        weights, self.means, self.covariances = random_mixture(features, 5, seed)
        self.log_weights = weights.log()
        options: dict[str, Any] = {"generator": source, "dtype": torch.float64}
        self.tilt = 0.7 * torch.randn(5, _GIVEN, **options)
        self.slopes = torch.randn(5, features, _GIVEN, **options) / math.sqrt(_GIVEN)

    def components(self, context: Tensor) -> tuple[Tensor, MultivariateNormal]:
        context = context.double()
        log_weights = (self.log_weights + context @ self.tilt.mT).log_softmax(-1)
        means = self.means + (self.slopes @ context[:, None, :, None])[..., 0]
        return log_weights, MultivariateNormal(means, self.covariances)

    def sample(self, context: Tensor, source: torch.Generator) -> Tensor:
        log_weights, law = self.components(context)
        which = torch.multinomial(log_weights.exp(), 1, generator=source)[:, 0]
        at = torch.arange(len(context))
        noise = torch.randn(law.mean[:, 0].shape, generator=source, dtype=torch.float64)
        x = law.mean[at, which] + (law.scale_tril[at, which] @ noise[..., None])[..., 0]
        return x.float()

    def log_prob(self, x: Tensor, context: Tensor) -> Tensor:
        log_weights, law = self.components(context)
        return torch.logsumexp(log_weights + law.log_prob(x.double()[:, None]), -1)


def error(log_prob: Tensor, truth: Tensor) -> dict[str, float]:
    difference = (log_prob - truth).double()
    return {"sd": difference.std().item(), "divergence": -difference.mean().item()}


def compare(features: int, budget: str, contexts: int, seed: int) -> dict[str, Any]:
    law, draw = Mixture(features, seed), torch.Generator().manual_seed(seed + 1)
    context = torch.randn(_PAIRS + 4000, _GIVEN, generator=draw)
    x = law.sample(context, draw)
    (x, test), (context, at) = x.split([_PAIRS, 4000]), context.split([_PAIRS, 4000])
    truth = law.log_prob(test, at)
    started = time.perf_counter()
    flow = pyro_stad.fit(x, context=context, budget=budget, seed=seed, progress=False)
    seconds = time.perf_counter() - started
    whiten = Standardise(*(part.to(x) for part in whitening(x, None, flow.names)))
    peer, did = zuko_flow(whiten.inv(x), seconds, seed, context=context)
    with torch.no_grad():
        found = {
            "ours": error(flow(at).log_prob(test), truth),
            "exact trace": error(flow.exact()(at).log_prob(test), truth),
            "zuko NSF": error(peer(whiten.inv(test), at) - whiten.log_det, truth),
        }
    fixed = [one_law(law, flow, context[index], budget, seed + index) for index in range(contexts)]
    result = {
        "features": features, "seconds": seconds, "zuko_steps": did["steps"], "way": repr(flow),
        **found, "one context": fixed, "summary": flow.summary(),
    }  # fmt: skip
    print(result, file=sys.stderr, flush=True)
    return result


def one_law(law: Mixture, flow: Any, context: Tensor, budget: str, seed: int) -> dict[str, Any]:
    """Return the errors at one context, of a fit to its law alone and of the conditional flow."""
    draw = torch.Generator().manual_seed(seed)
    rows = context.expand(_PAIRS + 2000, _GIVEN)
    x, test = law.sample(rows, draw).split([_PAIRS, 2000])
    truth = law.log_prob(test, rows[:2000])
    prior = pyro_stad.fit(x, budget=budget, members=0, seed=seed, progress=False)
    return {
        "alone": error(prior.log_prob(test), truth),
        "given": error(flow(context).log_prob(test), truth),
    }


def main() -> None:
    parser = arguments(__doc__, "conditional")
    parser.add_argument("--features", nargs="*", type=int, default=[2, 8])
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--budget", default="standard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made = provenance(options.seed)
    made["versions"]["zuko"] = version("zuko")
    rows = [
        compare(size, options.budget, options.contexts, options.seed) for size in options.features
    ]
    write(options.name, {"provenance": made, "budget": options.budget, "rows": rows})


@section(107)
def page() -> str:
    result = read("conditional")

    def cell(found: dict[str, float]) -> str:
        return f"{found['sd']:.2f}, {found['divergence']:.3f}"

    header = [
        "D given 3",
        "ours",
        "its exact trace",
        "zuko NSF",
        "ours at one context",
        "a fit there",
    ]
    rows = []
    for row in result["rows"]:
        alone, given = (
            {
                key: sum(found[side][key] for found in row["one context"]) / len(row["one context"])
                for key in ("sd", "divergence")
            }
            for side in ("alone", "given")
        )
        parts = (row["ours"], row["exact trace"], row["zuko NSF"], given, alone)
        rows.append([str(row["features"]), *map(cell, parts)])
    return (
        "## Laws given a context\n\n"
        "Mixtures of five normals given three numbers, learned from 10,000 pairs: standard "
        "deviation of the error of log p in nats, and Kullback-Leibler divergence. zuko's NSF "
        "has trained as long. A fit there has seen 10,000 samples of the law at one context, "
        "where the conditional flow has seen none; means of three contexts.\n\n"
        f"{table(header, rows)}\n\n{source('conditional', result)}\n"
    )


if __name__ == "__main__":
    main()
