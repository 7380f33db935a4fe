"""The evidence by tempered sequential Monte Carlo (:mod:`pyro_stad.samplers.tempering`).

The error is that of the mean of the runs, by their spread or by the single-run formula, whichever
is larger: four runs know their own spread badly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_stad._weights import log_mean_exp
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.evidence.method import AbstractParticleMethod
from pyro_stad.evidence.posterior import posterior_of
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.registry import storable
from pyro_stad.samplers.kernels import AbstractKernel
from pyro_stad.samplers.tempering import Runs

__all__ = ["SMC", "STUCK", "of_runs"]

STUCK = (
    "particles still remembered where they were resampled when their moves ended; take more of them"
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
        calls = int(runs.calls[0])
        found = posterior_of(problem, runs.u[0].flatten(0, 1))
        warnings = ((STUCK,) if runs.stuck[0] else ()) + found.pop("warnings")
        return EvidenceResult(
            **of_runs(runs, 0),
            method="smc",
            likelihood_calls=calls,
            network_calls=problem.network_calls(calls),
            data=problem.data[0],
            warnings=warnings,
            **found,
        )


def of_runs(runs: Runs, index: int) -> dict[str, Any]:
    """Return log Z of one object, with its errors, repeats and effective sample size."""
    log_z, variance = runs.log_z[index], runs.variance[index].mean().item()
    count = len(log_z)
    return {
        # Unbiased is Z, not its logarithm.
        "log_z": log_mean_exp(log_z).item(),
        "log_z_err": math.sqrt(max(log_z.var().item(), variance) / count),
        "formula_err": math.sqrt(variance),
        "repeats": tuple(log_z.tolist()),
        "ess": runs.effective[index].item(),
    }
