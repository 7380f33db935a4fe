r"""The oracle: Gaussian mixtures, whose field, divergence and density are known in closed form.

For data :math:`\sum_k \pi_k N(m_k, C_k)` the law at ``t`` is again a mixture, with means
:math:`a m_k` and precisions :math:`P_k = (a^2 C_k + s^2 I)^{-1}`. With responsibilities
:math:`r_k(x)`, :math:`g_k = -P_k (x - a m_k)` and component posteriors
:math:`\mu_k = m_k - a\,C_k g_k`, :math:`V_k = s^2 C_k P_k`,

.. math::
    \hat x_0 = \sum_k r_k \mu_k, \qquad
    T = \mathrm{tr}\,\mathrm{Cov}(x_0 | x)
      = \sum_k r_k (\mathrm{tr} V_k + \lVert \mu_k - \hat x_0\rVert^2), \qquad
    \nabla_y\cdot w = D \cot\varphi - T \cos\varphi / \sin^3\varphi,

forms that stay finite at the noise end of every path. One component is the Gaussian oracle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_stad.paths import AbstractPath, convert
from pyro_stad.teacher.base import AbstractPathField

__all__ = ["GaussianMixtureField"]


class GaussianMixtureField(AbstractPathField):
    """The exact field of a Gaussian mixture on a Gaussian path.

    Arguments:
        path: the Gaussian path.
        weights: mixture weights with shape ``(K,)``, summing to one.
        means: component means with shape ``(K, D)``.
        covariances: component covariances with shape ``(K, D, D)``.

    The flow ends in :math:`N(0, c^2 I)`, so the mixture should be standardised (mean zero,
    covariance the identity) when its flow density is to equal ``log_density``.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    _spectrum: Tensor
    _axes: Tensor

    def __init__(
        self, path: AbstractPath, weights: Tensor, means: Tensor, covariances: Tensor
    ) -> None:
        super().__init__()
        self._set_path(path, means.shape[-1])
        spectrum, axes = torch.linalg.eigh(covariances)
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("covariances", covariances)
        self.register_buffer("_spectrum", spectrum)
        self.register_buffer("_axes", axes)

    def _components(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log joint ``(B, K)``, ``g`` in eigen-coordinates ``(B, K, D)``, variances ``(.., K, D)``."""
        a, s, _, _ = self.path.coefficients(t)
        a, s = a[..., None, None], s[..., None, None]
        variance = a * a * self._spectrum + s * s
        offset = torch.einsum("...kd,kde->...ke", x[..., None, :] - a * self.means, self._axes)
        g = -offset / variance
        log_joint = self.weights.log() + 0.5 * (
            (g * offset).sum(-1) - variance.log().sum(-1) - self.features * math.log(2 * math.pi)
        )
        return log_joint, g, variance

    def log_density(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`\\log p_t(x)`, shape ``(B,)``."""
        return self._components(t, x)[0].logsumexp(-1)

    def _posterior(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``(B, D)`` and trace of the covariance ``(B,)`` of the data given ``x``."""
        log_joint, g, variance = self._components(t, x)
        a, s, _, _ = self.path.coefficients(t)
        r = log_joint.softmax(-1)[..., None]
        pull = torch.einsum("...ke,kde->...kd", self._spectrum * g, self._axes)
        centres = self.means - a[..., None, None] * pull
        mean = (r * centres).sum(-2)
        within = s[..., None] ** 2 * (self._spectrum / variance).sum(-1)
        between = ((centres - mean[..., None, :]) ** 2).sum(-1)
        return mean, (r[..., 0] * (within + between)).sum(-1)

    def angular(self, t: Tensor, x: Tensor) -> Tensor:
        return convert.denoised_to_angular(self.path, t, x, self._posterior(t, x)[0])

    def divergence(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the divergence of the velocity in closed form, shape ``(B,)``."""
        _, spread = self._posterior(t, x)
        p = self.path.polar(t)
        cos, sin = torch.cos(p.angle), torch.sin(p.angle)
        angular = self.features * cos / sin - cos / sin**3 * spread
        return self.features * p.log_scale_rate + p.angle_rate * angular
