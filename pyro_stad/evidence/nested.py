r"""The evidence by nested sampling in the unit cube, with nautilus.

Noise is :math:`u = \Phi^{-1}(c)` of a point c of the cube, so that any model of this package is a
likelihood there. nautilus learns where it is large with small networks, and draws from importance
shells; the likelihood is evaluated in batches.

References:
    Skilling (2006), Nested sampling for general Bayesian computation; Lange (2023), nautilus:
    boosting Bayesian importance nested sampling with deep learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_stad._random import stream
from pyro_stad._weights import log_mean_exp
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.evidence.method import AbstractParticleMethod
from pyro_stad.evidence.posterior import posterior_of
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.registry import storable

__all__ = ["Nested"]

_EFFECTIVE = 2000
_EDGE = 1e-15  # noise of eight standard deviations


@storable("evidence method", "nested")
@dataclass(frozen=True)
class Nested(AbstractParticleMethod):
    """Nested sampling, with ``particles`` live points in each run."""

    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        """Estimate the evidence of a job.

        Raises:
            ImportError: if nautilus is not installed.
        """
        problem = job.problem
        runs = [self._run(job, repeat) for repeat in range(self.repeats)]
        log_z = torch.tensor([float(run.log_z) for run in runs], dtype=torch.float64)
        effective = [float(run.n_eff) for run in runs]
        formula = float(np.mean([n**-0.5 for n in effective]))
        spread = log_z.std().item() if len(runs) > 1 else 0.0
        calls = sum(int(run.n_like) for run in runs)
        noise = [torch.as_tensor(run.posterior(equal_weight=True)[0]) for run in runs]
        return EvidenceResult(
            log_z=log_mean_exp(log_z).item(),
            log_z_err=max(spread, formula) / math.sqrt(len(runs)),
            method="nested",
            repeats=tuple(log_z.tolist()),
            likelihood_calls=calls,
            network_calls=problem.network_calls(calls),
            formula_err=formula,
            ess=sum(effective),
            data=problem.data[0],
            **posterior_of(problem, torch.cat(noise)[:, : problem.size].to(problem.like)),
        )

    def _run(self, job: EvidenceJob, repeat: int) -> Any:
        try:
            from nautilus import Sampler
        except ImportError as missing:
            raise ImportError(
                "method='nested' needs nautilus: pip install 'pyro-stad[evidence]'"
            ) from missing
        problem = job.problem

        def log_likelihood(noise: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                rows = torch.as_tensor(noise[:, : problem.size]).to(problem.like)
                fit = problem.log_likelihood(rows)
            return fit.double().cpu().numpy()

        sampler = Sampler(
            _noise_of_cube,
            log_likelihood,
            # nautilus wants two coordinates; a second one that nobody reads changes no integral.
            n_dim=max(problem.size, 2),
            n_live=self.particles,
            vectorized=True,
            pass_dict=False,
            seed=stream(job.seed, f"nested run {repeat}"),
            filepath=_file(job.checkpoint, repeat),
            resume=True,
        )
        sampler.run(n_eff=_EFFECTIVE, discard_exploration=True, verbose=job.progress)
        return sampler


def _noise_of_cube(cube: np.ndarray) -> np.ndarray:
    inside = torch.as_tensor(cube, dtype=torch.float64).clamp(_EDGE, 1 - _EDGE)
    return torch.special.ndtri(inside).numpy()


def _file(checkpoint: Path | None, repeat: int) -> Path | None:
    """Return the file of one run: nautilus takes one for each, and wants to see HDF5."""
    return checkpoint and checkpoint.with_name(f"{checkpoint.name}.{repeat}.h5")
