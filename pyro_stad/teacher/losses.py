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

References:
    Lipman et al. (2023), Flow Matching for Generative Modeling; Salimans and Ho (2022),
    Progressive Distillation for Fast Sampling of Diffusion Models.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad.data.batches import Batches
from pyro_stad.teacher.base import AbstractAngularField

__all__ = ["Pairs", "draw_pairs", "matching_loss"]


class Pairs(NamedTuple):
    """Noised data: angles ``(B,)``, points y ``(B, D)``, and the data and noise behind them."""

    angle: Tensor
    y: Tensor
    data: Tensor
    noise: Tensor


def draw_pairs(
    field: AbstractAngularField,
    batches: Batches,
    fraction: Tensor,
    generator: torch.Generator,
    *,
    antithetic: bool = False,
) -> Pairs:
    """Draw noised points.

    Arguments:
        field: the field, for its range of angles.
        batches: the data, whitened.
        fraction: how far from data to noise, in [0, 1], with shape ``(B,)``.
        generator: source of randomness.
        antithetic: whether to repeat the batch with the noise reversed, to ``2 B`` points.
    """
    data = batches.draw(len(fraction), generator)
    noise = torch.randn(data.shape, generator=generator, dtype=data.dtype, device=data.device)
    angle = field.at_fraction(fraction)
    if antithetic:
        angle, data, noise = angle.repeat(2), data.repeat(2, 1), torch.cat([noise, -noise])
    y = torch.cos(angle)[:, None] * data + torch.sin(angle)[:, None] * noise
    return Pairs(angle, y, data, noise)


def matching_loss(field: AbstractAngularField, pairs: Pairs) -> Tensor:
    """Return the mean squared error of the angular velocity per coordinate, a scalar."""
    cos, sin = torch.cos(pairs.angle)[:, None], torch.sin(pairs.angle)[:, None]
    target = cos * pairs.noise - sin * pairs.data
    return (field.velocity(pairs.angle, pairs.y) - target).square().mean()
