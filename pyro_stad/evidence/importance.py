r"""Importance sampling in the noise of a model, from a proposal learned from tempered particles.

.. math:: Z = E_q\Big[\frac{N(u; 0, I)\, L(u)}{q(u)}\Big], \qquad
    q = 0.9\; t_\nu(m, C) + 0.1\; N(0, I),

with mean m and covariance C of posterior draws (:mod:`pyro_stad.evidence.tempering`), a Student t
for its tails, and a share of the prior, which bounds the weights wherever L is bounded. Draws of a
run come from the t of the *other* runs' particles, so that the estimate is unbiased. The Pareto
shape :math:`\hat k` of the weights says whether their variance, and so the error, can be believed:
at 0.7 or above the estimate is refused.

References:
    Hesterberg (1995), Weighted Average Importance Sampling and Defensive Mixture Distributions;
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_stad.errors import EvidenceError
from pyro_stad.evidence.latent import LatentProblem
from pyro_stad.evidence.posterior import described
from pyro_stad.evidence.proposal import Normal
from pyro_stad.evidence.result import EvidenceResult
from pyro_stad.evidence.task import Task

__all__ = ["importance"]

_FREEDOM, _PRIOR = 5.0, 0.1
_WORST_SHAPE = 0.7


def importance(task: Task) -> EvidenceResult:
    """Estimate the evidence of a task by importance sampling.

    Raises:
        EvidenceError: if the weights are too heavy-tailed to be believed.
    """
    import arviz  # slow to import, and not needed elsewhere

    problem, start, generator = task.problem, task.runs.u, task.generator
    with torch.no_grad():
        even = torch.full(start.shape[:3], 1 / start.shape[2], dtype=torch.float64)
        proposal = Normal.of_others(start, even.to(start.device))
        u = _draw(proposal, start, generator)
        log_weights = _log_weights(problem, proposal, u)[0]
    runs = torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])
    share = torch.softmax(log_weights.reshape(-1), 0)
    relative = (share.square().sum() - 1 / len(share)).item()
    smooth, shape = arviz.psislw(log_weights.reshape(-1).cpu().numpy())
    if not float(shape) < _WORST_SHAPE:
        raise EvidenceError(
            f"importance weights have a Pareto shape of {float(shape):.2f}, expected less than "
            f"{_WORST_SHAPE}: their mean can't be believed. Use method='smc'"
        )
    smoothed = torch.as_tensor(smooth).exp().to(u.device)
    chosen = torch.multinomial(smoothed, len(share), replacement=True, generator=generator)
    calls = int(task.runs.calls[0]) + len(share)
    return EvidenceResult(
        log_z=(torch.logsumexp(runs, 0) - math.log(len(runs))).item(),
        log_z_err=math.sqrt(max(relative, runs.var().item() / len(runs))),
        method="importance",
        repeats=tuple(runs.tolist()),
        likelihood_calls=calls,
        network_calls=problem.network_calls(calls),
        formula_err=math.sqrt(relative * len(runs)),
        ess=1 / share.square().sum().item(),
        khat=float(shape),
        data=problem.data[0],
        **described(problem, u.reshape(-1, problem.size)[chosen]),
    )


def _draw(proposal: Normal, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return draws from the defensive mixture, ``(1, R, N, D)``."""

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    noise = normal(like.shape)
    # A chi-square with five degrees of freedom: five squared normals.
    chi = normal((*like.shape[:-1], int(_FREEDOM))).square().sum(-1)
    student = proposal.from_unit(noise * (_FREEDOM / chi).sqrt()[..., None])
    prior = torch.rand(like.shape[:-1], generator=generator, device=like.device) < _PRIOR
    return torch.where(prior[..., None], noise, student)


def _log_weights(problem: LatentProblem, proposal: Normal, u: Tensor) -> Tensor:
    """Return log of prior times likelihood over proposal, ``(1, R, N)``, in float64."""
    size = problem.size
    prior = -0.5 * (u.square().sum(-1) + size * math.log(2 * math.pi)).double()
    squares = proposal.to_unit(u).square().sum(-1).double()
    constant = (
        math.lgamma(0.5 * (_FREEDOM + size))
        - math.lgamma(0.5 * _FREEDOM)
        - 0.5 * size * math.log(_FREEDOM * math.pi)
    )
    log_det = proposal.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True).double()
    student = constant - log_det - 0.5 * (_FREEDOM + size) * torch.log1p(squares / _FREEDOM)
    mixture = torch.logaddexp(student + math.log1p(-_PRIOR), prior + math.log(_PRIOR))
    fit = problem.log_likelihood(u.reshape(-1, size)).reshape(u.shape[:-1]).double()
    return prior + fit - mixture
