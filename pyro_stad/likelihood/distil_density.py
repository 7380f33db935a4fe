r"""Distilling the density: a network learns log p, and its gradient, from the flow.

The flow with its distilled divergence gives a label at any point, and by a pass back the gradient,
which is D labels more. With :math:`e` the error of the network's log-density, in nats,

.. math:: E\big[\rho(e)\big] + \lambda\, E\Big[\sum_i \rho(\partial_i e)\Big],

Huber's :math:`\rho`, because between modes a flow is rough. Points are data and the flow's own
draws, for there the density is used; draws from noise that is too wide, out to where the gate
closes; and places between data, which a likelihood finds. Labels are computed once.

Gradients are steep along few directions, and a step in the coordinates of the weights is then
slow: in the same time Shampoo's eigenbasis (:mod:`pyro_stad.training.soap`) left 0.21 nat where
Adam left 0.35 (mixture in 16 dimensions, two layers); a third layer made that 0.14.

References:
    Czarnecki et al. (2017), Sobolev Training for Neural Networks; Huber (1964), Robust Estimation
    of a Location Parameter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_stad.data import Batches
from pyro_stad.errors import TrainingError
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.distilled import Correction, DistilledDensity
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.likelihood.standard import between
from pyro_stad.teacher.gate import Gate
from pyro_stad.training import History, TrainingSettings, train

__all__ = ["distil_density"]

_LABELS, _HELD = 40_000, 2_000
# Shares of the points; the rest are places between data.
_DATA, _DRAWS, _WIDE = 0.4, 0.35, 0.15
_INFLATED = 1.3
_SLOPES = 0.1  # weight of the gradient
_FEWEST = 0.5  # share of the labels that have to be finite
_CHUNK = 1024  # rows whose solve is kept for its pass back
_REACHED, _WIDTH = 0.999, 1.5  # where a gate closes that the flow has not got


class _Labels(NamedTuple):
    """Points, shape ``(N, D)``, with the flow's log-densities, ``(N,)``, and gradients there."""

    points: Tensor
    values: Tensor
    slopes: Tensor

    def at(self, index: Tensor) -> _Labels:
        return _Labels(*(part[index] for part in self))


def distil_density(
    flow: AbstractLikelihood,
    kept: Batches,
    held: Batches,
    settings: TrainingSettings,
    correction: Correction,
    **options: Any,
) -> tuple[DistilledDensity, History]:
    """Return the distilled density of a flow.

    Arguments:
        flow: field, divergence and solver.
        kept: training data, whitened.
        held: validation data; how far the density is from the flow's there, and at draws, as a
            mean square in nats, is the validation loss.
        settings: how long and how hard.
        correction: the network to be trained, in place.
        options: passed on to ``pyro_stad.training.train``.

    Raises:
        TrainingError: if the flow has hardly a finite label, or training never a finite loss.
    """
    generator = options["generator"]
    flow.requires_grad_(False)
    labels = _labelled(flow, kept, _LABELS, generator)
    fixed = _labelled(flow, held, _HELD, generator, bulk=True)
    if min(len(labels.points) / _LABELS, len(fixed.points) / _HELD) < _FEWEST:
        raise TrainingError(
            f"{options['label']} has finite labels at {len(labels.points)} of {_LABELS} points and "
            f"{len(fixed.points)} of {_HELD} held-out ones; check the samples for extreme values"
        )
    parts = flow.field, flow.divergence, flow.solver
    gate = flow.field.gate or _gate_around(labels.points * flow.field.data_scale)

    def density(module: Correction) -> DistilledDensity:
        return DistilledDensity(*parts, module, gate)

    def loss(module: Correction, source: torch.Generator) -> Tensor:
        shape = (settings.batch_size,)
        index = torch.randint(len(labels.points), shape, generator=source, device=source.device)
        batch = labels.at(index)
        value, slope = density(module).value_and_slope(batch.points)
        by_value = functional.huber_loss(value, batch.values)
        by_slope = functional.huber_loss(slope, batch.slopes, reduction="sum") / len(slope)
        return by_value + _SLOPES * by_slope

    def validate(module: Correction) -> float:
        found = density(module).by_autograd(fixed.points)
        return (found - fixed.values).square().mean().item()

    correction.requires_grad_(True)
    history = train(correction, loss, validate, settings, **options)
    return density(correction.requires_grad_(False)), history


def _labelled(
    flow: AbstractLikelihood,
    data: Batches,
    count: int,
    generator: torch.Generator,
    *,
    bulk: bool = False,
) -> _Labels:
    """Return points with labels, those that have finite ones; of the ``bulk``, data and draws."""
    some = data.subset(int(count * (0.5 if bulk else _DATA)), generator)
    draws, wide = (int(count * share) for share in ((0.5, 0.0) if bulk else (_DRAWS, _WIDE)))
    noise = torch.randn(
        draws + wide, some.shape[1], generator=generator, dtype=some.dtype, device=some.device
    )
    noise[draws:] *= _INFLATED
    with torch.no_grad():
        points = [some, flow.push(noise)]
    if not bulk:
        points.append(between(some, count - int(count * _DATA) - draws - wide, generator))
    x = torch.cat(points)
    way = FlowODE(flow.field, flow.divergence, flow.solver)
    values, slopes = [], []
    for rows in x.split(_CHUNK):
        with torch.enable_grad():
            at = rows.clone().requires_grad_()
            value = way.log_prob(at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        values.append(value.detach())
        slopes.append(slope)
    found = _Labels(x, torch.cat(values), torch.cat(slopes))
    return found.at(torch.isfinite(found.values) & torch.isfinite(found.slopes).all(1))


def _gate_around(y: Tensor) -> Gate:
    """Return a gate about points ``(N, D)`` that have labels, for a flow without one."""
    inner = torch.quantile(y.norm(dim=-1).double(), _REACHED).item()
    return Gate(inner, inner + _WIDTH)
