"""The evidence by tempered sequential Monte Carlo (:mod:`pyro_stad.samplers.tempering`).

The error is that of the mean of the runs, by their spread or by the single-run formula, whichever
is larger: four runs know their own spread badly. The formula counts ancestors where particles were
stuck (:mod:`pyro_stad.samplers.lineage`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_stad._weights import log_mean_exp
from pyro_stad.evidence.job import EvidenceJob, spent
from pyro_stad.evidence.method import AbstractParticleMethod
from pyro_stad.evidence.posterior import posterior_of
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.model.noise import LatentProblem
from pyro_stad.registry import storable
from pyro_stad.samplers import AbstractKernel, BridgedRuns, Runs

__all__ = ["SMC", "STUCK", "error_of", "of_runs"]

STUCK = (
    "particles still remembered where they were resampled when their moves ended; take more of "
    "them, or moves by gradients, method=SMC(kernel=Hamiltonian())"
)


@storable("evidence method", "smc")
@dataclass(frozen=True)
class SMC(AbstractParticleMethod):
    """Tempered sequential Monte Carlo; see :mod:`pyro_stad.samplers.tempering`.

    Arguments:
        particles, repeats: N particles in each of R runs.
        kernel: how particles move; None for Crank and Nicolson's way.
    """

    kernel: AbstractKernel | None = None
    is_checked = True

    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        problem, runs = job.problem, job.runs(self.particles, self.repeats, self.kernel)
        found = posterior_of(problem, runs.u[0].flatten(0, 1))
        warnings = ((STUCK,) if runs.stuck[0] else ()) + found.pop("warnings")
        return EvidenceResult(
            **of_runs(problem, runs, 0),
            method="smc",
            data=problem.data[0],
            warnings=warnings,
            **found,
        )


def of_runs(problem: LatentProblem, runs: Runs, index: int) -> dict[str, Any]:
    """Return log Z of one object, with all that its runs know of it and what they took."""
    log_z, variance = runs.log_z[index], runs.variance[index]
    calls, networks = spent(problem, runs, index)
    return {
        # Unbiased is Z, not its logarithm.
        "log_z": log_mean_exp(log_z).item(),
        "log_z_err": error_of(log_z, variance),
        "formula_err": math.sqrt(variance.mean().item()),
        "repeats": tuple(log_z.tolist()),
        "ess": runs.effective[index].item(),
        "likelihood_calls": calls,
        "network_calls": networks,
        "correction": _correction(runs, index) if isinstance(runs, BridgedRuns) else None,
    }


def _correction(runs: BridgedRuns, index: int) -> tuple[float, float]:
    """Return what the flow in place of generators has added to log Z, and its error."""
    log_z, cheap = runs.log_z[index], runs.cheap_log_z[index]
    variance = runs.variance[index] - runs.cheap_variance[index]
    return (log_mean_exp(log_z) - log_mean_exp(cheap)).item(), error_of(log_z - cheap, variance)


def error_of(log_z: Tensor, variance: Tensor) -> float:
    """Return the standard error of the mean of runs: by their spread, or by the formula."""
    return math.sqrt(max(log_z.var().item(), variance.mean().item()) / len(log_z))
