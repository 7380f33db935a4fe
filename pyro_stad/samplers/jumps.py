r"""Jumps: moves to a place that has nothing to do with the last one, as between modes.

A few normal laws with weights, q, are fitted by EM to where the *other* half of the chains has
been, in the coordinates in which the normal law of that half is standard. A jump draws z' from q,
wherever z is, and is taken with the chance

.. math:: \min\left(1, \frac{p(z')\, q(z)}{p(z)\, q(z')}\right) .

So chains pass between modes that some of them have found, as often as these weigh, whatever lies in
between; where the posterior is nearly a few normal laws, every jump is a new draw. In many
dimensions q is never near enough, jumps are refused, and chains do without.

References:
    Tierney (1994), Markov Chains for Exploring Posterior Distributions; Dempster, Laird and Rubin
    (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm; Gabrie, Rotskoff and
    Vanden-Eijnden (2022), Adaptive Monte Carlo augmented with normalizing flows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad.samplers.kernels import Law, State, with_gradient

__all__ = ["Jumps"]

_COMPONENTS, _ROUNDS = 6, 8
_POINTS, _FEWEST, _NUMBERS = 400, 60, 10_000_000
# Tails of q are to be above those of what it was fitted to: its laws are wider, and one of them is
# the law of all points, wider still. From where q is too small chains do not jump away again.
_WIDER, _WIDEST, _SHARE = 1.1, 1.4, 0.1


class Jumps(NamedTuple):
    """Mixtures of J normal laws, one for each half of the chains of every object.

    Attributes:
        log_weights: ``(B, 2, J)``.
        mean: ``(B, 2, J, K)``.
        tril: lower factors of the covariances, ``(B, 2, J, K, K)``.
        inverse: their inverses: of thousands of small laws, to solve them again takes longest.
    """

    log_weights: Tensor
    mean: Tensor
    tril: Tensor
    inverse: Tensor

    @staticmethod
    def fitted(z: Tensor, generator: torch.Generator) -> Jumps:
        """Return mixtures that fit points ``(B, 2, M, K)``."""
        # Of many objects with many numbers each, fewer: memory is that of all of them.
        most = _NUMBERS // (_COMPONENTS * z[:, :, 0].numel())
        count = min(z.shape[2], max(_FEWEST, min(_POINTS, most)))
        places = torch.linspace(0, z.shape[2] - 1, count, device=z.device)
        points = z[:, :, places.long()].double()
        centres = _spread_out(points, min(_COMPONENTS, points.shape[2]), generator)
        nearest = torch.cdist(points, centres).argmin(-1, keepdim=True)
        share = torch.zeros(*points.shape[:3], centres.shape[2], dtype=points.dtype).to(points)
        share.scatter_(3, nearest, 1.0)
        for _ in range(_ROUNDS):
            law = _of_shares(points, share)
            share = law._joint(points).softmax(-1)
        law, whole = _of_shares(points, share), _of_shares(points, torch.ones_like(share[..., :1]))
        parts = (
            (law.log_weights + math.log(1 - _SHARE), whole.log_weights + math.log(_SHARE)),
            (law.mean, whole.mean),
            (_WIDER * law.tril, _WIDEST * whole.tril),
            (law.inverse / _WIDER, whole.inverse / _WIDEST),
        )
        return Jumps(*(torch.cat(pair, 2).to(z) for pair in parts))

    def of_objects(self, which: Tensor) -> Jumps:
        """Return the laws of some objects."""
        return Jumps(*(part[which] for part in self))

    def step(self, state: State, law: Law, generator: torch.Generator) -> tuple[State, Tensor]:
        """Jump once; return where chains are, and which of them have jumped, ``(B, 2, N)``."""
        z = self._drawn(state.z, generator)
        new = law(z) if state.gradient is None else with_gradient(law, z)
        gained = (new.log_density - self._relative(z)) - (
            state.log_density - self._relative(state.z)
        )
        lot = torch.rand(z.shape[:-1], generator=generator, dtype=z.dtype, device=z.device)
        taken = lot.log() < gained
        return new.where(taken, state), taken

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:
        options = {"generator": generator, "dtype": like.dtype, "device": like.device}
        lot = torch.rand(like.shape[:-1], **options)  # type: ignore[call-overload]
        edges = self.log_weights.exp().cumsum(-1)
        which = torch.searchsorted(edges, lot).clamp_max(edges.shape[-1] - 1)
        noise = torch.randn(like.shape, **options)  # type: ignore[call-overload]
        mean = self.mean.gather(2, which[..., None].expand(like.shape))
        shape = *which.shape, like.shape[-1], like.shape[-1]
        tril = self.tril.gather(2, which[..., None, None].expand(shape))
        return mean + (tril @ noise[..., None])[..., 0]

    def _relative(self, z: Tensor) -> Tensor:
        """Return the log-density at ``z`` relative to N(0, I), up to a constant."""
        return self._joint(z).logsumexp(-1) + 0.5 * z.square().sum(-1)

    def _joint(self, z: Tensor) -> Tensor:
        """Return the log-densities of the weighted laws at ``(B, 2, M, K)``: ``(B, 2, M, J)``."""
        apart = (z[:, :, None] - self.mean[..., None, :]).mT
        unit = self.inverse @ apart
        size = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = self.log_weights - size - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return (each[..., None] - 0.5 * unit.square().sum(-2)).mT


def _spread_out(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return points that are far from each other, by lot (k-means++): ``(B, 2, count, K)``."""
    flat = points.flatten(0, 1)
    chosen = torch.zeros(len(flat), 1, dtype=torch.long, device=points.device)
    for _ in range(count - 1):
        taken = flat.gather(1, chosen[..., None].expand(-1, -1, flat.shape[2]))
        apart = torch.cdist(flat, taken).amin(2).square() + 1e-12
        chosen = torch.cat([chosen, apart.multinomial(1, generator=generator)], 1)
    return flat.gather(1, chosen[..., None].expand(-1, -1, flat.shape[2])).reshape(
        *points.shape[:2], count, -1
    )


def _of_shares(points: Tensor, share: Tensor) -> Jumps:
    """Return the laws of points that belong to each by a share, ``(B, 2, M, J)``."""
    size = points.shape[-1]
    total = share.sum(2)
    part = share / total.clamp_min(1e-9)[:, :, None]
    mean = part.mT @ points
    apart = points[:, :, None] - mean[..., None, :]
    covariance = (part.mT[..., None] * apart).mT @ apart
    # Shrunk to a ball as far as points are few, and never a point.
    shrink = (size / (size + total))[..., None, None]
    level = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-4)[..., None, None]
    eye = torch.eye(size, dtype=points.dtype, device=points.device)
    tril = torch.linalg.cholesky((1 - shrink) * covariance + (shrink * level + 1e-6) * eye)
    weights = (total + 1e-3) / (total + 1e-3).sum(-1, keepdim=True)
    return Jumps(weights.log(), mean, tril, torch.linalg.inv(tril))
