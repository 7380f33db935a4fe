r"""Distilling the density: a network learns log p, and its gradient, from the flow.

The flow with its distilled divergence gives a label at any point, and by a pass back the gradient,
which is D labels more. With :math:`e` the error of the network's log-density, in nats,

.. math:: E\big[\rho(e)\big] + \lambda\, E\Big[\sum_i \rho(\partial_i e)\Big],

Huber's :math:`\rho`, because between modes a flow is rough. Points are data and the flow's own
draws, for there the density is used; data that were carried to noise, turned a little there and
carried back, for data are few; draws from noise that is too wide, out to where the gate closes; and
places between data, which a likelihood finds. Labels are computed once.

Gradients are steep along few directions, and a step in the coordinates of the weights is then
slow: in the same time Shampoo's eigenbasis (:mod:`pyro_stad.learn.soap`) left 0.21 nat where
Adam left 0.35 (mixture in 16 dimensions, two layers). Depth pays more than width: of a mixture in
8 dimensions two layers of 192 left 0.133 nat, three of 128 0.075, four of 128 0.056.

References:
    Czarnecki et al. (2017), Sobolev Training for Neural Networks; Huber (1964), Robust Estimation
    of a Location Parameter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_stad._joined import given, joined, log_prob_at, parted
from pyro_stad.data import Batches, between
from pyro_stad.errors import TrainingError
from pyro_stad.fields.gate import Gate
from pyro_stad.learn.frozen import frozen
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.settings import TrainingSettings
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.distilled import Correction, DistilledDensity
from pyro_stad.likelihood.flow_ode import FlowODE

__all__ = ["distil_density"]

_HELD = 2_000
# Shares of the points; the rest are places between data.
_DATA, _TURNED, _DRAWS, _WIDE = 0.2, 0.25, 0.3, 0.15
_TURN, _INFLATED = 0.4, 1.3
_SLOPES = 0.1  # weight of the gradient
_FEWEST = 0.5  # share of the labels that have to be finite
_CHUNK = 1024  # rows whose solve is kept for its pass back
_REACHED, _WIDTH = 0.999, 1.5  # where a gate closes that the flow has not got


class _Labels(NamedTuple):
    """Points, with their context to the right if there is one: ``(N, D + C)``.

    With the flow's log-densities there, ``(N,)``, and its gradients by both, ``(N, D + C)``.
    """

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
    count: int = 40_000,
    **options: Any,
) -> tuple[DistilledDensity, History]:
    """Return the distilled density of a flow.

    Arguments:
        flow: field, divergence and solver.
        kept: training data, whitened; with their context in C more columns, if the field has one.
        held: validation data; how far the density is from the flow's there, and at draws, as a
            mean square in nats, is the validation loss.
        settings: how long and how hard.
        correction: the network to be trained, in place.
        count: number of labels.
        options: passed on to ``pyro_stad.learn.train``.

    Raises:
        TrainingError: if the flow has hardly a finite label, or training never a finite loss.
    """
    generator = options["generator"]
    with frozen(flow):
        places = _points(flow, kept, count, generator), _held_points(flow, held, _HELD, generator)
        labels, fixed = (_labelled(flow, x) for x in places)
    if any(len(found.points) < _FEWEST * len(x) for found, x in zip((labels, fixed), places)):
        raise TrainingError(
            f"{options['label']} has finite labels at {len(labels.points)} of {len(places[0])} "
            f"points and {len(fixed.points)} of {len(places[1])} held-out ones; check the samples "
            "for extreme values"
        )
    parts = flow.field, flow.divergence, flow.solver
    size = flow.field.features
    gate = flow.field.gate or _gate_around(labels.points[:, :size] * flow.field.data_scale)

    def density(module: Correction) -> DistilledDensity:
        return DistilledDensity(*parts, module, gate, flow.chunk_size)

    def loss(module: Correction, source: torch.Generator) -> Tensor:
        shape = (settings.batch_size,)
        index = torch.randint(len(labels.points), shape, generator=source, device=source.device)
        batch = labels.at(index)
        x, context = parted(batch.points, flow.field)
        value, slope = density(module).law.value_and_slope(x, context)
        by_value = functional.huber_loss(value, batch.values)
        by_slope = functional.huber_loss(slope, batch.slopes, reduction="sum") / len(slope)
        return by_value + _SLOPES * by_slope

    def validate(module: Correction) -> float:
        x, context = parted(fixed.points, flow.field)
        found = given(density(module), context).log_prob(x)
        return (found - fixed.values).square().mean().item()

    correction.requires_grad_(True)
    history = train(correction, loss, validate, settings, **options)
    return density(correction.requires_grad_(False)), history


def _points(
    flow: AbstractLikelihood, data: Batches, count: int, generator: torch.Generator
) -> Tensor:
    """Return about ``count`` points where the density is to be learned, ``(N, D)``."""
    own, turned, drawn, wide = (int(count * s) for s in (_DATA, _TURNED, _DRAWS, _WIDE))
    size = flow.field.features
    some, (near, context) = (
        data.subset(own, generator), parted(data.draw(turned, generator), flow.field)
    )  # fmt: skip
    noise = _noise(turned + drawn + wide, some[:, :size], generator)
    noise[turned + drawn :] *= _INFLATED
    with torch.no_grad():
        # As much of other noise as keeps the law.
        back = given(flow, context).transport().pull(near)
        start = torch.cat([math.sqrt(1 - _TURN**2) * back + _TURN * noise[:turned], noise[turned:]])
        made = _pushed(flow, start, context, data, generator)
    places = between(some, count - own - turned - drawn - wide, generator)
    return torch.cat([some, made, places])


def _pushed(
    flow: AbstractLikelihood,
    noise: Tensor,
    context: Tensor | None,
    data: Batches,
    generator: torch.Generator,
) -> Tensor:
    """Return draws from noise ``(N, D)``, with the first contexts given and others of the data."""
    if not flow.field.context_shape:
        return flow.transport().push(noise)
    known = 0 if context is None else len(context)
    others = data.draw(len(noise) - known, generator)[:, flow.field.features :]
    every = others if context is None else torch.cat([context, others])
    return joined(given(flow, every).transport().push(noise), every)


def _held_points(
    flow: AbstractLikelihood, data: Batches, count: int, generator: torch.Generator
) -> Tensor:
    """Return as many data as there are up to half of ``count``, and draws, ``(N, D)``."""
    some = data.subset(count // 2, generator)
    with torch.no_grad():
        noise = _noise(count // 2, some[:, : flow.field.features], generator)
        return torch.cat([some, _pushed(flow, noise, None, data, generator)])


def _noise(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    shape = count, like.shape[1]
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _labelled(flow: AbstractLikelihood, x: Tensor) -> _Labels:
    """Return the labels of points ``(N, D)``, where they are finite."""
    values, slopes = [], []
    for rows in x.split(_CHUNK):
        with torch.enable_grad():
            at = rows.clone().requires_grad_()
            value = log_prob_at(FlowODE.of(flow), at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        values.append(value.detach())
        slopes.append(slope)
    found = _Labels(x, torch.cat(values), torch.cat(slopes))
    return found.at(torch.isfinite(found.values) & torch.isfinite(found.slopes).all(1))


def _gate_around(y: Tensor) -> Gate:
    """Return a gate about points ``(N, D)`` that have labels, for a flow without one."""
    inner = torch.quantile(y.norm(dim=-1).double(), _REACHED).item()
    return Gate(inner, inner + _WIDTH)
