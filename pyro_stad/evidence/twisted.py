"""The evidence along the diffusion of a learned prior (:mod:`pyro_stad.samplers.twisted`).

For models whose only latent site has a learned prior on a Gaussian path: an image, and what was
seen of it. Where tempering has to move particles from the prior to the posterior in hundreds of
dimensions, here the sampler itself takes them there. The error is that of the mean of the runs, by
their spread, or by the descendants of each first particle (:mod:`pyro_stad.samplers.lineage`).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._weights import log_mean_exp
from pyro_stad.density import FlowPrior
from pyro_stad.errors import EvidenceError, EvidenceWarning
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.evidence.method import AbstractParticleMethod
from pyro_stad.evidence.posterior import posterior_of
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.smc import error_of
from pyro_stad.fields import AbstractAngularField
from pyro_stad.model.given import likelihood_of, only_prior
from pyro_stad.model.noise import LatentProblem
from pyro_stad.registry import storable
from pyro_stad.samplers.resampling import systematic
from pyro_stad.samplers.twist import TwistedProblem
from pyro_stad.samplers.twisted import TwistedDraws, twisted

__all__ = ["Twisted"]

_FEW = 0.05  # of the particles, effective at the end
_POOR = (
    "of the particles {share:.1%} were effective at the end: posterior and evidence are those of a "
    "few; take more of them, or more steps"
)
_TOO_FEW, _FEWEST = 2, 10  # effective ancestors of the draws of a run
_ALIKE = (
    "the draws of a run descend from {count:.1f} of its particles: they are more alike than the "
    "posterior's; take more of them"
)


@storable("evidence method", "twisted")
@dataclass(frozen=True)
class Twisted(AbstractParticleMethod):
    """Posterior sampling in the sampler; see :mod:`pyro_stad.samplers.twisted`.

    Its draws are of the posterior of the chain's own law, which nears the prior's as steps become
    many: compare with twice as many.

    Arguments:
        particles, repeats: N particles in each of R runs.
        steps: of the reverse diffusion.

    References:
        Wu, Trippe, Naesseth, Blei and Cunningham (2023), Practical and Asymptotically Exact
        Conditional Sampling in Diffusion Models.
    """

    particles: int = 512
    steps: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.steps, "steps", least=2)

    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        """Estimate the evidence of a job.

        Raises:
            EvidenceError: if the likelihood is zero at all particles of a run, or its draws descend
                from fewer than two of them.
            TypeError: if the prior's field is on no Gaussian path.
            ValueError: if the model has other latent sites, or a likelihood without a gradient.
        """
        problem, prior = job.problem, only_prior(job.problem.model)
        source, like = job.generator("twisted diffusion"), prior.like
        known = _asked(job.problem, prior)
        shape = (self.repeats, self.particles, *like.shape)
        noise = torch.randn(shape, generator=source, dtype=like.dtype, device=like.device)
        calls = problem.calls
        found = twisted(known, noise, self.steps, source, progress=job.progress)
        calls = problem.calls - calls
        lost = int((~torch.isfinite(found.log_z)).sum())
        if lost:
            raise EvidenceError(
                f"the likelihood is zero at all particles of {lost} of {self.repeats} runs; take "
                "more particles, or method='smc'"
            )
        # The weights of ancestors sum to one: the effective number of them.
        count = 1 / (found.variance.mean().item() + 1 / self.particles)
        if count < _TOO_FEW:
            raise EvidenceError(
                f"the draws of a run descend from {count:.1f} of its particles, so that neither "
                "posterior nor evidence can be believed; take more particles, or method='smc'"
            )
        x = self._of_all_runs(found, source)
        with torch.no_grad():
            u = prior.transport.pull(x).flatten(1).to(problem.like)
        posterior = posterior_of(problem, u)
        passes = 2 if known.divergence.passes(like.numel()) else 1
        return EvidenceResult(
            log_z=log_mean_exp(found.log_z).item(),
            log_z_err=error_of(found.log_z, found.variance),
            formula_err=math.sqrt(found.variance.mean().item()),
            method="twisted",
            repeats=tuple(found.log_z.tolist()),
            likelihood_calls=calls,
            network_calls=passes * self.steps * self.repeats * self.particles,
            ess=found.effective * self.repeats,
            data=problem.data[0],
            warnings=(*self._doubts(found, count), *posterior.pop("warnings")),
            **posterior,
        )

    def _of_all_runs(self, found: TwistedDraws, source: torch.Generator) -> Tensor:
        """Return whitened draws, of each run as many as its evidence says, ``(R N, ...)``."""
        share = torch.softmax(found.log_z, 0)[:, None].expand(-1, self.particles)
        index = systematic(share.reshape(1, 1, -1) / self.particles, source)[0, 0]
        # In no order: neighbours would be siblings.
        order = torch.randperm(len(index), generator=source, device=index.device)
        return found.x.flatten(0, 1)[index[order]]

    def _doubts(self, found: TwistedDraws, count: float) -> list[str]:
        """Return what may be wrong with the draws of so many ancestors, and say it."""
        share, told = found.effective / self.particles, []
        if share < _FEW:
            told.append(_POOR.format(share=share))
        if count < _FEWEST:
            told.append(_ALIKE.format(count=count))
        for text in told:
            warnings.warn(text, EvidenceWarning, stacklevel=5)
        return told


def _asked(problem: LatentProblem, prior: FlowPrior) -> TwistedProblem:
    """Return field and likelihood of a model in whitened coordinates."""
    likelihood = prior.likelihood
    if not isinstance(likelihood.field, AbstractAngularField):
        raise TypeError(
            "method='twisted' needs a prior on a Gaussian path, whose score is known; got a "
            f"{type(likelihood.field).__name__}. Use method='smc'"
        )

    def fit(x: Tensor) -> Tensor:
        for transform in prior.coordinates.transforms:
            x = transform(x)
        return problem.checked(likelihood_of(problem.model, x))

    return TwistedProblem(likelihood.field, likelihood.divergence, fit, likelihood.chunk_size)
