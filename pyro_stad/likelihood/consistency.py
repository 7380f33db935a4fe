r"""Path consistency: the constant curve learns to agree with the flow.

The integral along any curve gives the flow's log-density if the field is that of a density. A
learned field is so only nearly, and the constant curve is off by what the field's score lacks of a
gradient, gathered on the way. So a copy of the divergence head is trained on

.. math::
    E\big[(\log\hat p_{curve}(x) - \log\hat p_{flow}(x))^2\big],

half of the points data, half the flow's own draws. The labels come from the distilled divergence
along the flow, at one solve a point; they are computed once. What is learned is no longer a
divergence, but what the curve's integral needs in its place: the flow keeps the head it had.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pyro_stad.data import Batches
from pyro_stad.divergence import AbstractDivergenceNetwork, Stein
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.curves import Constant
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.likelihood.stein_path import SteinPath
from pyro_stad.training import History, TrainingSettings, train

__all__ = ["make_consistent"]

_MOST_LABELS = 20_000


def make_consistent(
    flow: AbstractLikelihood,
    kept: Batches,
    held: Batches,
    settings: TrainingSettings,
    *,
    nodes: int = 16,
    **options: Any,
) -> tuple[SteinPath, History]:
    """Return the constant curve, trained to agree with the flow.

    Arguments:
        flow: field, divergence and solver; the divergence is a ``Stein``, and stays as it is.
        kept: training data, whitened.
        held: validation data.
        settings: how long and how hard.
        nodes: Gauss-Legendre nodes of the curve.
        options: passed on to ``pyro_stad.training.train``.
    """
    if not isinstance(flow.divergence, Stein):
        raise TypeError(f"`flow` must have a distilled divergence; got {flow.divergence!r}")
    network = copy.deepcopy(flow.divergence.network)
    generator = options["generator"]
    points, labels = _labelled(flow, kept, generator)
    fixed, fixed_labels = _labelled(flow, held, generator)

    def path(module: AbstractDivergenceNetwork) -> SteinPath:
        parts = flow.field, flow.divergence, flow.solver
        return SteinPath(*parts, Constant(), nodes, consistent=Stein(module))

    def loss(module: AbstractDivergenceNetwork, source: torch.Generator) -> Tensor:
        shape = (settings.batch_size,)
        index = torch.randint(len(points), shape, generator=source, device=points.device)
        return (path(module).log_prob(points[index]) - labels[index]).square().mean()

    def validate(module: AbstractDivergenceNetwork) -> float:
        return (path(module).log_prob(fixed) - fixed_labels).square().mean().item()

    flow.requires_grad_(False)
    network.requires_grad_(True)
    history = train(network, loss, validate, settings, **options)
    return path(network.requires_grad_(False)), history


def _labelled(
    flow: AbstractLikelihood, data: Batches, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return points, half of them data and half draws, and their log-densities by the flow."""
    drawn = data.subset(_MOST_LABELS // 2, generator)
    noise = torch.randn(drawn.shape, generator=generator, dtype=drawn.dtype, device=drawn.device)
    with torch.no_grad():
        points = torch.cat([drawn, flow.push(noise)])
        return points, FlowODE(flow.field, flow.divergence, flow.solver).log_prob(points)
