"""Normal laws learned from the particles of other runs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Normal"]


class Normal(NamedTuple):
    """One normal law for every run: means ``(B, R, 1, D)`` and factors ``(B, R, D, D)``."""

    mean: Tensor
    tril: Tensor

    @staticmethod
    def of_others(u: Tensor, share: Tensor) -> Normal:
        """Return, for each run of an object, that of the weighted particles of its other runs.

        Arguments:
            u: particles with shape ``(B, R, N, D)``.
            share: their weights, which sum to one in each run, ``(B, R, N)``.
        """
        runs, size = u.shape[1], u.shape[-1]
        # In float64, about a common centre: posteriors may be narrow, and off zero.
        centre = u.double().mean((1, 2), keepdim=True)
        rows, share = u.double() - centre, share.double()[..., None]
        first = (share * rows).sum(2)
        second = (share * rows).mT @ rows
        mean, moment = (
            (total.sum(1, keepdim=True) - total) / (runs - 1) for total in (first, second)
        )
        covariance = moment - mean[..., :, None] * mean[..., None, :]
        # Shrunk to a ball as far as particles are few.
        squares = share.square().sum((2, 3))
        few = (squares.sum(1, keepdim=True) - squares) / (runs - 1) ** 2
        shrink = (size / (size + 1 / few))[..., None, None]
        diagonal = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        # Relative, but for particles that are all the same.
        level = (shrink + 1e-9) * diagonal + torch.finfo(torch.float64).tiny ** 0.5
        eye = torch.eye(size, dtype=torch.float64, device=u.device)
        tril = torch.linalg.cholesky((1 - shrink) * covariance + level * eye)
        return Normal((centre + mean[:, :, None]).to(u), tril.to(u))

    def widened(self, size: int) -> Normal:
        """Return laws whose covariance is larger by a share that falls with the dimension."""
        return Normal(self.mean, self.tril * math.sqrt(1 + 0.5 / math.sqrt(size)))

    def of_objects(self, which: Tensor) -> Normal:
        """Return the laws of some objects."""
        return Normal(self.mean[which], self.tril[which])

    def to_unit(self, u: Tensor) -> Tensor:
        """Carry points ``(B, R, N, D)`` to coordinates in which the laws are standard."""
        return torch.linalg.solve_triangular(self.tril, (u - self.mean).mT, upper=False).mT

    def from_unit(self, z: Tensor) -> Tensor:
        """Carry standard normal points ``(B, R, N, D)`` to the laws."""
        return self.mean + z @ self.tril.mT
