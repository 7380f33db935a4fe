r"""Matching: how a network on a Gaussian path is trained.

For every path the loss is

.. math:: E_\varphi E_{x_0, \epsilon}\;
    \lVert w_\theta(\varphi, y) - (\cos\varphi\,\epsilon - \sin\varphi\, x_0)\rVert^2,
    \qquad \varphi \sim U(\varphi_{\min}, \varphi_{\max}).

In these coordinates it *is* the flow-matching loss: for :math:`a = 1 - t, s = t` one has
:math:`\dot\varphi\, c = 1 / c` and :math:`dt = c^2 d\varphi`, so that
:math:`\int \lVert v_\theta - (\epsilon - x_0)\rVert^2 dt` weighs angles evenly. The target has unit
variance at every angle, so no weighting has to be tuned, and what is trained does not depend on the
clock of the path.

Which angles are drawn is another matter. The divergence between data and model is
:math:`\int \cot\varphi\, E\lVert w_\theta - w\rVert^2 d\varphi`: errors at the data end weigh
like :math:`1/\varphi`, while the target there is nearly all noise. Hence angles at :math:`u^2` of
the range, u uniform, and noise in antithetic pairs, whose noise in the gradient cancels as far as
the network takes the same value at both points, as it does at the data end. On the mixture in 16
dimensions the two brought the mean loss of log p against the truth from 0.64 to 0.36 nat.

References:
    Lipman et al. (2023), Flow Matching for Generative Modeling; Salimans and Ho (2022),
    Progressive Distillation for Fast Sampling of Diffusion Models; Song, Durkan, Murray and Ermon
    (2021), Maximum Likelihood Training of Score-Based Diffusion Models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad._joined import given, parted
from pyro_stad.data.batches import Batches, balanced_noise, stratified
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.settings import TrainingSettings

__all__ = ["Pairs", "draw_pairs", "match", "matching_loss"]


class Pairs(NamedTuple):
    """Noised data: angles ``(B,)``, points y ``(B, D)``, and the data and noise behind them.

    And, where the field has one, the context of the data, ``(B, C)``.
    """

    angle: Tensor
    y: Tensor
    data: Tensor
    noise: Tensor
    context: Tensor | None = None


def draw_pairs(
    field: AbstractAngularField,
    batches: Batches,
    fraction: Tensor,
    generator: torch.Generator,
    *,
    frame: int = 1,
) -> Pairs:
    """Draw noised points: each datum meets a frame of orthogonal noises and their negatives.

    Arguments:
        field: the field, for its range of angles.
        batches: the data, whitened; with their context to the right, if the field has one.
        fraction: how far from data to noise, in [0, 1], with shape ``(B,)``.
        generator: source of randomness.
        frame: noises of a datum, at most D; with their negatives, ``2 B frame`` points in all. The
            second half of the points is the first half with the noise reversed.
    """
    data, context = parted(batches.draw(len(fraction), generator), field)
    count, event = len(data), data.shape[1:]
    noise = balanced_noise(count, frame, event.numel(), generator, data).reshape(-1, *event)
    angle = field.at_fraction(fraction).repeat_interleave(frame).repeat(2)
    data = torch.cat([data.repeat_interleave(frame, 0)] * 2)
    y = beside(torch.cos(angle), data) * data + beside(torch.sin(angle), data) * noise
    if context is not None:
        context = torch.cat([context.repeat_interleave(frame, 0)] * 2)
    return Pairs(angle, y, data, noise, context)


def _training_pairs(
    field: AbstractAngularField, batches: Batches, count: int, generator: torch.Generator
) -> Pairs:
    """Draw what the field is trained on: antithetic pairs, denser at the data end.

    Arguments:
        field: the field, for its range of angles.
        batches: the data, whitened.
        count: number of points; rounded up to an even one.
        generator: source of randomness.
    """
    fraction = stratified((count + 1) // 2, generator, batches.values).square()
    return draw_pairs(field, batches, fraction, generator)


def matching_loss(field: AbstractAngularField, pairs: Pairs) -> Tensor:
    """Return the mean squared error of the angular velocity per coordinate, a scalar."""
    cos, sin = (beside(f(pairs.angle), pairs.y) for f in (torch.cos, torch.sin))
    target = cos * pairs.noise - sin * pairs.data
    velocity = given(field, pairs.context).velocity(pairs.angle, pairs.y)
    return (velocity - target).square().mean()


def match(
    field: AbstractAngularField,
    kept: Batches,
    held: Batches,
    settings: TrainingSettings,
    *,
    generator: torch.Generator,
    **options: Any,
) -> History:
    """Train ``field`` in place by matching, validated on a fixed set of held-out noised points.

    Arguments:
        field: the field.
        kept: training data, whitened.
        held: held-out data, whitened.
        settings: how long and how hard.
        generator: the only source of randomness.
        options: as in ``pyro_stad.learn.train``.
    """
    fixed = _training_pairs(field, held, max(4096, settings.batch_size), generator)

    def loss(module: AbstractAngularField, source: torch.Generator) -> Tensor:
        return matching_loss(module, _training_pairs(field, kept, settings.batch_size, source))

    def validate(module: AbstractAngularField) -> float:
        return matching_loss(module, fixed).item()

    return train(field, loss, validate, settings, generator=generator, **options)
