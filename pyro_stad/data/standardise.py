r"""Whitening: the affine map between the sample and coordinates of mean 0 and covariance I.

:math:`\theta = \mu + L\, x` with :math:`L L^T` the covariance of the sample. Its log-determinant,
:math:`\sum_i \log L_{ii}`, lives here and nowhere else. Whitening, rather than scaling each
coordinate, makes the law at the noise end match its Gaussian to second order on every path, and
makes a Gaussian sample exactly representable by an untrained network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

__all__ = ["Standardise", "whitening"]

_WORST_CORRELATION = 1e-10


class Standardise(Transform):
    r"""The affine bijection :math:`\\theta = \\mu + L x` on vectors.

    Arguments:
        loc: mean with shape ``(D,)``.
        scale_tril: lower Cholesky factor with shape ``(D, D)``.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().__init__()
        self.loc, self.scale_tril = loc, scale_tril
        eye = torch.eye(len(loc), dtype=torch.float64, device=loc.device)
        # Stored: a triangular solve per call costs more than the product at batch size one.
        self.inverse_tril = torch.linalg.solve_triangular(scale_tril.double(), eye, upper=False).to(
            loc
        )
        self.log_det = torch.diagonal(scale_tril).log().sum()

    def with_cache(self, cache_size: int = 1) -> Standardise:
        """Return self: the map is too cheap to cache."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + x @ self.scale_tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) @ self.inverse_tril.mT

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_det.expand(x.shape[:-1])


def whitening(
    values: Tensor, weights: Tensor | None, names: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Return the mean and the lower Cholesky factor of the covariance, in float64.

    Arguments:
        values: sample with shape ``(N, D)``.
        weights: weights with shape ``(N,)`` or None.
        names: names of the columns, for the error message.

    Raises:
        ValueError: if columns are linearly dependent.
    """
    share = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    share = (share / share.sum()).to(values.device)
    values = values.double()
    loc = share @ values
    centred = values - loc
    scale = (share @ centred.square()).sqrt()
    # Correlations first: parameters in physical units differ by many orders of magnitude.
    unit = centred / scale
    correlation = unit.mT @ (share[:, None] * unit)
    smallest, directions = torch.linalg.eigh(correlation)
    if not smallest[0] > _WORST_CORRELATION:
        involved = directions[:, 0].abs() > 0.1
        columns = [name for name, here in zip(names, involved.tolist()) if here]
        raise ValueError(
            f"columns {columns} are linearly dependent, so that the sample has no density; "
            "drop one of them and compute it in the model"
        )
    return loc, scale[:, None] * torch.linalg.cholesky(correlation)
