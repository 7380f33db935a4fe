r"""Four faces of one field: velocity, score, noise and denoised data.

With :math:`y = x / c` and the angular velocity :math:`w` of :mod:`pyro_stad.paths.base`,

.. math::
    \hat x_0 = \cos\varphi\; y - \sin\varphi\; w, \qquad
    \hat\epsilon = \sin\varphi\; y + \cos\varphi\; w, \qquad
    S_t(x) = -\hat\epsilon / s, \qquad
    v = (\dot c / c)\, x + c\,\dot\varphi\, w,

and each of them gives :math:`w` back. Score and noise say nothing about the data where
:math:`a = 0`; the paths end before that, or (``OptimalTransport``) the two raise there.

All functions take ``t`` of shape ``()`` or ``batch_shape`` and ``x`` of shape
``batch_shape + event_shape``, and return the shape of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad.paths.base import AbstractPath

__all__ = [
    "TO_ANGULAR",
    "angular_to_denoised",
    "angular_to_noise",
    "angular_to_score",
    "angular_to_velocity",
    "denoised_to_angular",
    "noise_to_angular",
    "score_to_angular",
    "velocity_to_angular",
]


def angular_to_velocity(path: AbstractPath, t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Return the probability-flow velocity :math:`dx/dt`."""
    p = path.polar(t)
    return beside(p.log_scale_rate, x) * x + beside(p.scale * p.angle_rate, x) * w


def angular_to_denoised(path: AbstractPath, t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Return the posterior mean of the data, :math:`E[x_0 | x_t]`."""
    p = path.polar(t)
    return beside(torch.cos(p.angle) / p.scale, x) * x - beside(torch.sin(p.angle), x) * w


def angular_to_noise(path: AbstractPath, t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    r"""Return the posterior mean of the noise, :math:`E[\epsilon | x_t]`."""
    p = path.polar(t)
    return beside(torch.sin(p.angle) / p.scale, x) * x + beside(torch.cos(p.angle), x) * w


def angular_to_score(path: AbstractPath, t: Tensor, x: Tensor, w: Tensor) -> Tensor:
    r"""Return the score :math:`\nabla \log p_t(x)`."""
    p = path.polar(t)
    return -angular_to_noise(path, t, x, w) / beside(p.scale * torch.sin(p.angle), x)


def velocity_to_angular(path: AbstractPath, t: Tensor, x: Tensor, velocity: Tensor) -> Tensor:
    """Return the angular velocity of a field given by its velocity."""
    p = path.polar(t)
    return (velocity - beside(p.log_scale_rate, x) * x) / beside(p.scale * p.angle_rate, x)


def denoised_to_angular(path: AbstractPath, t: Tensor, x: Tensor, denoised: Tensor) -> Tensor:
    """Return the angular velocity of a field given by its denoised data."""
    p = path.polar(t)
    cos_y = beside(torch.cos(p.angle) / p.scale, x) * x
    return (cos_y - denoised) / beside(torch.sin(p.angle), x)


def noise_to_angular(path: AbstractPath, t: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Return the angular velocity of a field given by its noise prediction."""
    p = path.polar(t)
    sin_y = beside(torch.sin(p.angle) / p.scale, x) * x
    return (noise - sin_y) / beside(torch.cos(p.angle), x)


def score_to_angular(path: AbstractPath, t: Tensor, x: Tensor, score: Tensor) -> Tensor:
    """Return the angular velocity of a field given by its score."""
    p = path.polar(t)
    noise = -beside(p.scale * torch.sin(p.angle), x) * score
    return noise_to_angular(path, t, x, noise)


TO_ANGULAR: dict[str, Callable[[AbstractPath, Tensor, Tensor, Tensor], Tensor]] = {
    "velocity": velocity_to_angular,
    "score": score_to_angular,
    "noise": noise_to_angular,
    "denoised": denoised_to_angular,
}
