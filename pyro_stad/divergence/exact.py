r"""The trace of the Jacobian, by one forward-mode product per dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.teacher.base import AbstractField

__all__ = ["Exact", "jacobian_products"]


def jacobian_products(
    field: AbstractField, t: Tensor, x: Tensor, tangents: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the velocity ``(B, D)`` and ``J u`` for each tangent ``u``.

    Arguments:
        field: the field whose Jacobian in x is meant.
        t: times with shape ``()`` or ``(B,)``.
        x: points with shape ``(B, D)``.
        tangents: directions with shape ``(K, B, D)`` or ``(K, 1, D)``.

    Returns:
        The velocity, and products with shape ``(K, B, D)``.
    """

    def product(tangent: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = jvp(lambda y: field.velocity(t, y), (x,), (tangent.expand_as(x),))[:2]
        return value, derivative

    # The primal does not depend on the tangent, so vmap computes it once. (torch's annotation of
    # out_dims leaves out the None that its documentation describes.)
    out_dims: Any = (None, 0)
    velocity, products = vmap(product, out_dims=out_dims)(tangents)
    return velocity, products


class Exact(AbstractDivergence):
    """The exact divergence: D Jacobian-vector products, vectorised.

    Example:
        >>> from pyro_stad.paths import OptimalTransport
        >>> from pyro_stad.teacher import PathField
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
        basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        velocity, products = jacobian_products(field, t, x, basis[:, None, :])
        return velocity, torch.diagonal(products, dim1=0, dim2=2).sum(-1)

    def __repr__(self) -> str:
        return "Exact()"
