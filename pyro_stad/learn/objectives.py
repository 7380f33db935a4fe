r"""Objectives: the loss of a divergence network at a point.

The Langevin-Stein loss, whose derivation is in :mod:`pyro_stad.learn.distil`, and regression
on labels: the exact divergence, or a few probes of it.

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486); Hutchinson (1989), A
    Stochastic Estimator of the Trace of the Influence Matrix.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._events import event_sum
from pyro_stad.divergence.exact import Exact
from pyro_stad.divergence.stein import AbstractDivergenceNetwork
from pyro_stad.divergence.stochastic import shared_probes
from pyro_stad.fields.base import AbstractField
from pyro_stad.learn.clouds import Points

__all__ = ["AbstractObjective", "ExactLabels", "HutchinsonLabels", "SteinObjective"]

# Orthogonal noises about a centre at the most, and centres of a batch at the least.
_FRAME, _CENTRES = 32, 8


class AbstractObjective(ABC):
    r"""A loss per point for the network's :math:`r = d / \sqrt D`.

    Class attributes:
        uses_score: whether the noise of the points enters the loss, as the score does.
    """

    uses_score: ClassVar[bool] = False

    def frame(self, features: int, batch_size: int) -> int:
        """Return how many orthogonal noises about a centre serve this loss best."""
        if not self.uses_score:
            return 1
        return max(1, min(features, _FRAME, batch_size // (2 * _CENTRES)))

    @abstractmethod
    def __call__(
        self,
        network: AbstractDivergenceNetwork,
        field: AbstractField,
        points: Points,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss per point, shape ``(B,)``; ``generator`` is for randomness of its own."""


class SteinObjective(AbstractObjective):
    """The Langevin-Stein loss; no Jacobian of the field is formed.

    The directional derivative of the network is taken in forward mode; through a frozen trunk it
    carries no graph.
    """

    uses_score = True

    def __call__(
        self,
        network: AbstractDivergenceNetwork,
        field: AbstractField,
        points: Points,
        generator: torch.Generator,
    ) -> Tensor:
        t, x, score, _ = points
        with torch.no_grad():
            u = field.velocity(t, x) / math.sqrt(field.features)
        residual, slope = network.residual_and_slope(field, t, x, u)
        return 0.5 * residual**2 + slope + residual * event_sum(u * score)


class ExactLabels(AbstractObjective):
    """Regression on the exact divergence: D Jacobian-vector products a point, no label noise."""

    def __call__(
        self,
        network: AbstractDivergenceNetwork,
        field: AbstractField,
        points: Points,
        generator: torch.Generator,
    ) -> Tensor:
        with torch.no_grad():
            label = Exact()(field, points.t, points.x) / math.sqrt(field.features)
        residual = network.velocity_and_residual(field, points.t, points.x)[1]
        return 0.5 * (residual - label) ** 2


class HutchinsonLabels(AbstractObjective):
    """Regression on a few fresh probes a point, which share its coordinates out.

    See :func:`~pyro_stad.divergence.stochastic.shared_probes`; as many probes as coordinates are
    the exact divergence.

    Arguments:
        probes: Jacobian-vector products a point, at the most.
    """

    def __init__(self, probes: int = 1) -> None:
        check_count(probes, "probes")
        self.probes = probes

    def __call__(
        self,
        network: AbstractDivergenceNetwork,
        field: AbstractField,
        points: Points,
        generator: torch.Generator,
    ) -> Tensor:
        t, x, *_ = points
        if self.probes >= field.features:
            return ExactLabels()(network, field, points, generator)
        probes = shared_probes(self.probes, x, generator)
        with torch.no_grad():
            _, products = field.jacobian_products(t, x, probes)
            label = (probes * products).flatten(2).sum((0, -1)) / math.sqrt(field.features)
        residual = network.velocity_and_residual(field, t, x)[1]
        return 0.5 * (residual - label) ** 2
