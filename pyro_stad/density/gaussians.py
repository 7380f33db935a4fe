r"""A Gaussian mixture by expectation maximisation: what a plain method makes of the same samples.

A flow that does no better than a handful of normal laws has earned nothing. The mixture is fitted
in whitened coordinates; its number K of components is the one with the least

.. math:: \mathrm{BIC} = - 2 n\, \overline{\log p} + p \log n, \qquad
    p = K - 1 + K D (D + 3) / 2,

n being what the rows are worth, and the search ends when more components have been worse twice.

References:
    Dempster, Laird and Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm;
    Schwarz (1978), Estimating the Dimension of a Model; Arthur and Vassilvitskii (2007),
    k-means++.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gaussians", "best_gaussians"]

_COMPONENTS = (1, 2, 3, 4, 6, 8, 10)
_ITERATIONS, _CONVERGED = 60, 1e-3
_RIDGE = 1e-4  # of the variance: no component shrinks onto a few rows


class Gaussians(NamedTuple):
    """A mixture: log-weights ``(K,)``, means ``(K, D)``, Cholesky factors ``(K, D, D)``."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """Return the log-densities of rows ``(N, D)`` and components, ``(N, K)``."""
        offset = (x - self.means[:, None]).mT
        z = torch.linalg.solve_triangular(self.factors, offset, upper=False)
        log_det = torch.diagonal(self.factors, dim1=1, dim2=2).log().sum(-1)
        constant = self.log_weights - log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return (constant[:, None] - 0.5 * z.square().sum(1)).mT

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of rows ``(N, D)``, shape ``(N,)``."""
        return self.log_joint(x.double()).logsumexp(-1)


def best_gaussians(rows: Tensor, effective: float, generator: torch.Generator) -> Gaussians:
    """Return the mixture with the least BIC.

    Arguments:
        rows: whitened, of equal weight, with shape ``(N, D)``.
        effective: independent rows that they are worth.
        generator: source of the first means.
    """
    rows, worse = rows.double(), 0
    best, least = None, math.inf
    for count in _COMPONENTS:
        found = _fitted(rows, count, generator)
        free = count - 1 + count * rows.shape[1] * (rows.shape[1] + 3) / 2
        bic = free * math.log(effective) - 2 * effective * found.log_prob(rows).mean().item()
        if best is None or bic < least:
            best, least, worse = found, bic, 0
        else:
            worse += 1
            if worse == 2:
                break
    assert best is not None  # the first is better than none
    return best


def _fitted(rows: Tensor, count: int, generator: torch.Generator) -> Gaussians:
    means = _spread_out(rows, count, generator)
    eye = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    whole = torch.linalg.cholesky(
        (1 + _RIDGE) * torch.cov(rows.mT, correction=0).reshape(eye.shape)
    )
    log_weights = torch.full_like(means[:, 0], -math.log(count))
    found, before = Gaussians(log_weights, means, whole.expand(count, -1, -1)), -math.inf
    for _ in range(_ITERATIONS if count > 1 else 1):
        joint = found.log_joint(rows)
        mean = joint.logsumexp(-1).mean().item()
        if mean - before < _CONVERGED:
            break
        before, share = mean, joint.softmax(-1)
        found = _maximised(rows, share, eye)
    return found


def _maximised(rows: Tensor, share: Tensor, eye: Tensor) -> Gaussians:
    """Return the mixture of rows with shares ``(N, K)``."""
    # Never quite zero: a component that lost all its rows would divide by it.
    size = share.sum(0) + 1e-6
    means = (share.mT @ rows) / size[:, None]
    offset = rows - means[:, None]
    covariance = torch.einsum("nk,knd,kne->kde", share, offset, offset) / size[:, None, None]
    factors = torch.linalg.cholesky(covariance + _RIDGE * eye)
    return Gaussians((size / size.sum()).log(), means, factors)


def _spread_out(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` rows that are far from each other, by chance (k-means++)."""
    chance, chosen = torch.ones_like(rows[:, 0]), []
    for _ in range(count):
        chosen.append(rows[torch.multinomial(chance, 1, generator=generator)])
        nearest = torch.cdist(rows, torch.cat(chosen)).amin(1)
        chance = nearest.square() + torch.finfo(rows.dtype).tiny
    return torch.cat(chosen)
