r"""The first part: an enzyme whose posterior is a curved ridge between walls.

Experiment A's posterior of (V, K, sigma) is drawn exactly, learned as a prior, and updated with
experiment B: by NUTS in x-space, where the prior's density is asked for at every leapfrog step; by
NUTS in auxiliary form, where nothing but the flow is asked for; and by ``log_evidence``, which
brings posterior draws with it. The truth of all three, and of the evidence, is a grid.

Beside it stand the two normal laws that people write down for such a posterior: a multivariate
normal of (V, K, sigma), cut at the walls, and one of their logarithms. What they lead to is known
from the same grid, without any chain: their errors are theirs alone.

At last the law itself is doubted. Michaelis and Menten against Hill is a question to all
measurements, so that both models start from scratch: A's learned posterior is that of the first
law, and would be a wrong prior for the second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_stad.demo import kinetics
from pyro_stad.demo.grid import Grid
from pyro_stad.demo.sampling import Chain, describe, errors, jobs_for, run_chains
from pyro_stad.demo.settings import DemoSettings
from pyro_stad.density import FlowPrior
from pyro_stad.evidence import EvidenceResult, compare_evidence, log_evidence
from pyro_stad.fitting import fit

__all__ = ["Ridge", "grid_over", "normal_fits", "run_ridge"]

_ROUTES = {"learned prior, x-space": False, "learned prior, auxiliary form": True}
_EVIDENCE_DRAWS = "learned prior, evidence draws"


@dataclass(frozen=True)
class Ridge:
    """What the first part found.

    Attributes:
        summary: the numbers, as they are written.
        posterior_a: exact draws of A's posterior, ``(N, 3)``.
        prior: what was learned from them.
        chains: of NUTS, by route.
        grids: posteriors of A and B on a grid, by the prior that they start from; ``"truth"``
            among them.
    """

    summary: dict[str, Any]
    posterior_a: Tensor
    prior: FlowPrior
    chains: dict[str, list[Chain]]
    grids: dict[str, Grid]


def run_ridge(folder: Path, settings: DemoSettings) -> Ridge:
    """Run the first part; write the prior into ``folder``."""
    generator = torch.Generator().manual_seed(settings.seed)
    draws = kinetics.draw_posterior_of_a(settings.draws, generator)
    grids, log_z = _posteriors(draws)
    truth, seconds = grids["truth"].moments(), {}

    started = time.monotonic()
    prior = fit(
        draws.float(),
        names=kinetics.NAMES,
        bounds=dict.fromkeys(kinetics.NAMES, (0, None)),
        budget=settings.budget,
        seed=settings.seed,
        progress=settings.progress,
    )
    prior.save(folder / "kinetics.safetensors")
    seconds["fit"] = time.monotonic() - started

    started = time.monotonic()
    jobs = [
        job
        for name, auxiliary in _ROUTES.items()
        for job in jobs_for(name, kinetics.update, prior, **settings.of_chains(auxiliary=auxiliary))
    ]
    chains = run_chains(jobs, settings.workers)
    seconds["nuts"] = time.monotonic() - started

    started = time.monotonic()
    evidence = log_evidence(kinetics.update, prior, **settings.of_evidence())
    comparison = _compare(grids["truth"].log_mass, settings)
    seconds["evidence"] = time.monotonic() - started
    answers = {name: describe(runs, truth) for name, runs in chains.items()}
    answers |= _without_chains(evidence, grids, truth)
    summary = {
        "parameters": list(kinetics.NAMES),
        "truth": {"mean": truth[0].tolist(), "sd": truth[1].tolist()},
        "answers": answers,
        "evidence": _evidence(evidence, log_z),
        "comparison": comparison,
        "seconds": seconds,
        "fit": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }
    return Ridge(summary, draws, prior, chains, grids)


def grid_over(log_density: Callable[[Tensor], Tensor]) -> Grid:
    """Return the grid of a density of (V, K, sigma), whose walls are its ends."""
    return Grid.over(log_density, (1.0, 1e-6, 0.1), (1e5, 1e2, 1e3), (120, 120, 60))


def normal_fits(draws: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the log-densities, in (V, K, sigma), of normal laws with the moments of ``draws``.

    The first has mass beyond the walls, too: it is that of the law before the cut.
    """
    plain = MultivariateNormal(draws.mean(0), torch.cov(draws.mT), validate_args=False)
    logs = draws.log()
    in_logs = MultivariateNormal(logs.mean(0), torch.cov(logs.mT), validate_args=False)
    return {
        "multivariate normal": plain.log_prob,
        "log-normal": lambda theta: in_logs.log_prob(theta.log()) - theta.log().sum(-1),
    }


def _posteriors(draws: Tensor) -> tuple[dict[str, Grid], dict[str, float]]:
    """Return the posteriors of B by their prior, and log Z of A, and of B by its prior."""

    def updated(log_prior: Callable[[Tensor], Tensor], part: slice) -> Grid:
        return grid_over(lambda theta: log_prior(theta) + kinetics.log_likelihood(theta, part))

    of_a = updated(kinetics.log_prior, kinetics.A)
    grids = {
        "truth": updated(kinetics.log_prior, kinetics.ALL),
        "ignoring A": updated(kinetics.log_prior, kinetics.B),
    }
    log_z = {"A": of_a.log_mass, "truth": grids["truth"].log_mass - of_a.log_mass}
    for name, log_density in normal_fits(draws).items():
        grids[name] = updated(log_density, kinetics.B)
        # A normal that is cut at the walls has lost some of its mass there.
        log_z[name] = grids[name].log_mass - grid_over(log_density).log_mass
    return grids, log_z


def _without_chains(
    evidence: EvidenceResult, grids: dict[str, Grid], truth: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Return the errors of the answers that no chain has given."""
    drawn = evidence.draws["theta"].double()
    by_evidence = {**errors(drawn.mean(0), drawn.std(0), truth), "ess": evidence.ess}
    others = {name: errors(*grid.moments(), truth) for name, grid in grids.items()}
    del others["truth"]
    return {_EVIDENCE_DRAWS: by_evidence, **others}


def _evidence(found: EvidenceResult, log_z: dict[str, float]) -> dict[str, Any]:
    """Return the evidence of B given A, by the learned prior, by normal ones, and in truth."""
    normals = {name: value for name, value in log_z.items() if name not in ("A", "truth")}
    return {
        "truth": log_z["truth"],
        "log_z": found.log_z,
        "log_z_err": found.log_z_err,
        "method": found.method,
        "checks": found.checks,
        "warnings": list(found.warnings),
        "normal fits": normals,
    }


def _compare(log_z: float, settings: DemoSettings) -> dict[str, Any]:
    """Compare two laws by all the data; ``log_z`` is the evidence of the first in truth."""
    truth = {"michaelis_menten": log_z, "hill": kinetics.log_evidence_of_hill()}
    probabilities = {
        name: 1 / (1 + math.exp(sum(truth.values()) - 2 * z)) for name, z in truth.items()
    }
    found = compare_evidence(
        michaelis_menten=kinetics.michaelis_menten,
        hill=kinetics.hill,
        options=settings.of_evidence(),
    )
    return {
        name: {
            "truth": truth[name],
            "log_z": result.log_z,
            "log_z_err": result.log_z_err,
            "probability": found.probabilities[name],
            "true_probability": probabilities[name],
            "elpd_loo": found.elpd_loo[name],
        }
        for name, result in found.results.items()
    }
