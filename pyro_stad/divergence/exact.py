r"""The trace of the Jacobian, by one product per dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractField
from pyro_stad.registry import storable

__all__ = ["Exact"]


@storable("divergence", "exact")
@dataclass(frozen=True)
class Exact(AbstractDivergence):
    """The exact divergence: D Jacobian-vector products for D coordinates, vectorised.

    Example:
        >>> from pyro_stad.paths import OptimalTransport
        >>> from pyro_stad.fields import PathField
        >>> field = PathField(OptimalTransport(), features=3, width=8, depth=2)
        >>> Exact()(field, torch.tensor(0.5), torch.zeros(2, 3))
        tensor([0., 0.], grad_fn=<SumBackward1>)
    """

    is_exact = True
    is_stochastic = False

    def passes(self, features: int) -> int:
        return features

    def velocity_and_divergence(
        self, field: AbstractField, t: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        size = field.features
        basis = torch.eye(size, dtype=x.dtype, device=x.device)
        velocity, products = field.jacobian_products(t, x, basis.reshape(size, 1, *x.shape[1:]))
        return velocity, torch.diagonal(products.flatten(2), dim1=0, dim2=2).sum(-1)
