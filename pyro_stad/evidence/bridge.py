r"""Bridge sampling: the evidence from posterior draws that are there already.

With q the joint density of the model in unconstrained numbers, and g a normal law,

.. math:: Z = \frac{E_g[h\, q]}{E_{post}[h\, g]}, \qquad h \propto (s_1 q + s_2 Z g)^{-1},

with the optimal h found by iteration. Half of every chain gives mean m and factor R; the other half
and as many draws of g = N(0, I) are compared in :math:`\eta = R^{-1}(z - m)`, warped so that q is
symmetric, :math:`\tilde q(\eta) = \tfrac12 |R| [q(m - R\eta) + q(m + R\eta)]` (Warp-III), which has
the same integral. The error is the relative mean square of Frühwirth-Schnatter, with the
effective sample size for correlated draws; the halves change places, so that there are two runs,
which are not independent.

Priors go in by their densities: with a distilled divergence, Z is that of the distilled density,
until it is corrected (:mod:`pyro_stad.evidence.correction`).

References:
    Meng and Wong (1996), Simulating ratios of normalizing constants via a simple identity; Meng and
    Schilling (2002), Warp Bridge Sampling; Frühwirth-Schnatter (2004), Estimating marginal
    likelihoods for mixture and Markov switching models using bridge sampling techniques; Gronau et
    al. (2017), A tutorial on bridge sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._weights import believable, log_mean_exp
from pyro_stad.data.effective import ess
from pyro_stad.errors import EvidenceError
from pyro_stad.evidence.correction import Correction, correct, distilled
from pyro_stad.evidence.job import EvidenceJob
from pyro_stad.evidence.method import AbstractMethod
from pyro_stad.evidence.posterior import extrapolated
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.model.draws import chains_of
from pyro_stad.model.joint import JointDensity, angles
from pyro_stad.registry import storable

__all__ = ["Bridge"]

_ITERATIONS = 1000
_CONVERGED = 1e-10


@storable("evidence method", "bridge")
@dataclass(frozen=True, eq=False)
class Bridge(AbstractMethod):
    """Bridge sampling from posterior draws that are there already.

    Arguments:
        draws: posterior draws of the model: an ``MCMC`` that has run, ArviZ data, or tensors by
            site.
        correct: whether the evidence is corrected: where a distilled density was used, to the exact
            trace, and where draws are by generators of one step, to the flow.
    """

    draws: Any = field(default=None, repr=False)
    correct: bool = True

    def __call__(self, job: EvidenceJob) -> EvidenceResult:
        """Estimate the evidence of a job.

        Raises:
            EvidenceError: if the iteration does not converge, or no draw has a density.
            TypeError, ValueError: if there are no draws, or not of this model.
        """
        density = JointDensity(job.problem.model)
        flat, found, sizes = self._halves(density, job.generator("bridge"))
        log_z = torch.tensor([half.log_z for half in found], dtype=torch.float64)
        # Not averaged down: what one half is fitted to, the other bridges from. Their errors
        # correlate by 0.4 to 0.6; taken for independent, the quoted error was a third too small.
        error = math.sqrt(sum(half.variance for half in found) / len(found))
        error = max(error, log_z.std().item() / math.sqrt(2))
        value, correction, draws = log_z.mean().item(), None, flat
        warnings: tuple[str, ...] = ()
        flows = density.flows(flat)
        out = extrapolated(flows)
        approximate = distilled(flows) if self.correct else []
        exact = self._exact(job, density)
        if approximate or exact is not density:
            more = None if exact is density else partial(_gained, density, exact, flat)
            known = correct(approximate, *sizes, more)
            value, error = value + known.value, math.hypot(error, known.error)
            correction, warnings = (known.value, known.error), _warnings(known)
            draws = _resampled(flat, known, job.generator("resampling"))
        return EvidenceResult(
            log_z=value,
            log_z_err=error,
            method="bridge",
            repeats=tuple(log_z.tolist()),
            likelihood_calls=density.calls,
            network_calls=None,
            formula_err=math.sqrt(found[0].variance),
            ess=sum(half.effective for half in found),
            khat=None if correction is None else known.khat,
            data=job.problem.model.data,
            extrapolated=out.share,
            tolerated=out.tolerated,
            correction=correction,
            warnings=warnings,
            draws=draws,
            log_likelihood=exact.pointwise(draws),
        )

    def _exact(self, job: EvidenceJob, density: JointDensity) -> JointDensity:
        """Return the density by the flow, where draws are of generators; else that which is."""
        if job.problem.generated is None or not self.correct:
            return density
        return JointDensity(density.model, by_flow=True)

    def _halves(
        self, density: JointDensity, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], list[_Half], tuple[int, int]]:
        """Return the draws, chain by chain, what their halves say, and how many there are."""
        if self.draws is None:
            raise ValueError("method='bridge' needs posterior draws of the model: draws=mcmc")
        model = density.model
        if periodic := angles(model.latent):
            raise ValueError(
                f"method='bridge' integrates over the line, on which the density of the angles in "
                f"{periodic} repeats itself without end; use method='smc'"
            )
        chains = chains_of(self.draws, model.sites, model.like)
        with torch.no_grad():
            count, length = next(iter(chains.values())).shape[:2]
            flat = {name: value.flatten(0, 1) for name, value in chains.items()}
            z = density.unconstrain(flat).reshape(count, length, -1).double()
            _check_rows(z)
            halves = z[:, : length // 2], z[:, length // 2 :]
            found = [_half(density, fit, rest, generator) for fit, rest in (halves, halves[::-1])]
        return flat, found, (count, length)


def _check_rows(z: Tensor) -> None:
    """Refuse unconstrained draws ``(C, n, K)`` that no normal law could be fitted to."""
    if not torch.isfinite(z).all():
        bad = int((~torch.isfinite(z)).any(-1).sum())
        raise ValueError(
            f"{bad} of `draws` are outside the support of the model's priors; are they of this "
            "model?"
        )
    still = (z.flatten(0, 1).std(0) == 0).nonzero()
    if len(still):
        raise ValueError(
            f"`draws` are all the same in coordinate {int(still[0])}; the bridge needs a sampled "
            "posterior"
        )


def _gained(
    density: JointDensity, exact: JointDensity, flat: dict[str, Tensor], places: Tensor
) -> Tensor:
    """Return log of the exact density over that of the draws, at some of these, ``(n,)``."""
    some = {name: value[places.to(value.device)] for name, value in flat.items()}
    with torch.no_grad():
        z = density.unconstrain(some)
        return exact.log_joint(z).double() - density.log_joint(z).double()


class _Half(NamedTuple):
    log_z: float
    variance: float
    effective: float


def _half(density: JointDensity, fit: Tensor, rest: Tensor, generator: torch.Generator) -> _Half:
    """Bridge from the draws ``rest``, ``(C, n, K)``, to the normal law of the draws ``fit``."""
    rows = fit.flatten(0, 1)
    mean, tril = rows.mean(0), _factor(rows)
    eta = torch.linalg.solve_triangular(tril, (rest - mean).mT, upper=False).mT
    shape, flat = eta.shape[:2], eta.flatten(0, 1)
    noise = torch.randn(flat.shape, generator=generator, dtype=flat.dtype, device=flat.device)
    of_draws, of_noise = (_log_ratio(density, points, mean, tril) for points in (flat, noise))
    if not torch.isfinite(of_draws).any():
        raise EvidenceError("no draw has a density under the model: are they of this model?")
    effective = _effective(of_draws.reshape(shape))
    shares = effective / (effective + len(noise)), len(noise) / (effective + len(noise))
    log_z = _iterate(of_draws, of_noise, shares)
    f_draws = _sigmoid(-(of_draws - log_z), shares[::-1])
    f_noise = _sigmoid(of_noise - log_z, shares)
    n_draws = _effective(f_draws.reshape(shape))
    variance = _relative(f_noise) / len(f_noise) + _relative(f_draws) / n_draws
    return _Half(log_z, variance, n_draws)


def _factor(rows: Tensor) -> Tensor:
    """Return the Cholesky factor of the covariance of draws ``(n, K)``, shrunk a little."""
    covariance = torch.cov(rows.mT).reshape(rows.shape[1], rows.shape[1])
    share = rows.shape[1] / (rows.shape[1] + len(rows))
    diagonal = covariance.diagonal().diag()
    return torch.linalg.cholesky((1 - share) * covariance + (share + 1e-9) * diagonal)


def _log_ratio(density: JointDensity, eta: Tensor, mean: Tensor, tril: Tensor) -> Tensor:
    """Return log of the warped joint density over N(0, I) at ``eta``, ``(n, K)``: ``(n,)``."""
    step = eta @ tril.mT
    sides = [
        density.log_joint((mean + sign * step).to(density.model.like)).double() for sign in (1, -1)
    ]
    log_det = tril.diagonal().log().sum()
    normal = -0.5 * (eta.square().sum(-1) + eta.shape[1] * math.log(2 * math.pi))
    return torch.logaddexp(*sides) - math.log(2) + log_det - normal


def _iterate(of_draws: Tensor, of_noise: Tensor, shares: tuple[float, float]) -> float:
    """Return log Z by the fixed point of the optimal bridge."""
    log_z = of_draws[torch.isfinite(of_draws)].median().item()
    for _ in range(_ITERATIONS):
        above = log_mean_exp(of_noise - _log_bridge(of_noise - log_z, shares), 0).item()
        below = log_mean_exp(-_log_bridge(of_draws - log_z, shares), 0).item()
        new = above - below
        if abs(new - log_z) < _CONVERGED * max(1.0, abs(new)):
            return new
        log_z = new
    raise EvidenceError(
        f"the bridge has not converged after {_ITERATIONS} iterations; take more draws, or "
        "method='smc'"
    )


def _log_bridge(log_ratio: Tensor, shares: tuple[float, float]) -> Tensor:
    """Return the log of ``s1 r + s2``, for ``r`` the ratio of q / Z to g."""
    return torch.logaddexp(
        log_ratio + math.log(shares[0]), torch.full_like(log_ratio, math.log(shares[1]))
    )


def _sigmoid(log_ratio: Tensor, shares: tuple[float, float]) -> Tensor:
    """Return ``r / (s1 r + s2)``."""
    return (log_ratio - _log_bridge(log_ratio, shares)).exp()


def _relative(values: Tensor) -> float:
    return (values.var() / values.mean().square()).item()


def _effective(values: Tensor) -> float:
    """Return the effective sample size of draws ``(C, n)``, or their number."""
    found = ess(values.clamp(min=torch.finfo(values.dtype).min).cpu())
    return found if math.isfinite(found) and found > 0 else float(values.numel())


def _resampled(
    flat: dict[str, Tensor], known: Correction, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return draws of the posterior under the exact trace."""
    weights = known.weights.to(generator.device)
    chosen = torch.multinomial(weights, len(weights), replacement=True, generator=generator)
    places = known.used.to(chosen.device)[chosen]
    return {name: value[places.to(value.device)] for name, value in flat.items()}


def _warnings(known: Correction) -> tuple[str, ...]:
    if believable(known.khat, known.effective, len(known.weights)):
        return ()
    return (
        f"weights from the distilled law to the exact one have a Pareto shape of "
        f"{known.khat:.2f}: their mean can't be believed. Train the divergence for longer, or "
        "sample under the exact law",
    )
