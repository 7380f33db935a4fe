r"""The oracle: Gaussian mixtures, whose field, divergence and density are known in closed form.

For data :math:`\sum_k \pi_k N(m_k, C_k)` the law of :math:`y = \cos\varphi\, x_0 +
\sin\varphi\, \epsilon` is again a mixture, with means :math:`\cos\varphi\, m_k` and precisions
:math:`P_k = (\cos^2\varphi\, C_k + \sin^2\varphi\, I)^{-1}`. With responsibilities
:math:`r_k(y)`, :math:`g_k = -P_k (y - \cos\varphi\, m_k)` and component posteriors
:math:`\mu_k = m_k - \cos\varphi\, C_k g_k`, :math:`V_k = \sin^2\varphi\, C_k P_k`,

.. math::
    \hat x_0 = \sum_k r_k \mu_k, \qquad
    T = \mathrm{tr}\,\mathrm{Cov}(x_0 | y)
      = \sum_k r_k (\mathrm{tr} V_k + \lVert \mu_k - \hat x_0\rVert^2), \qquad
    \nabla_y\cdot w = D \cot\varphi - T \cos\varphi / \sin^3\varphi,

forms that stay finite at the noise end. One component is the Gaussian oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_stad._config import decode
from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.paths import AbstractPath
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["GaussianMixtureField", "Mixture", "random_mixture", "sample_mixture", "whitened"]

# Weights (K,), means (K, D) and covariances (K, D, D).
Mixture = tuple[Tensor, Tensor, Tensor]


def random_mixture(features: int, components: int = 5, seed: int = 0) -> Mixture:
    """Return a random Gaussian mixture, whitened, in float64: the problem of tests and benchmarks.

    Means spread 1.5 times the identity, component factors 0.5 to 1 on the diagonal with 0.15 off
    it, before whitening; one component gives the standard normal.

    Arguments:
        features: dimension D.
        components: number K of components.
        seed: of the generator that this function makes for itself.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")

    weights = torch.softmax(0.5 * normal(components), 0)
    means = 1.5 * normal(components, features)
    factors = 0.15 * normal(components, features, features)
    spread = torch.rand(components, features, generator=g, dtype=torch.float64, device="cpu")
    scales = 0.5 + 0.5 * spread
    factors = factors + torch.diag_embed(scales)
    covariances = factors @ factors.mT
    return whitened((weights, means, covariances))


def whitened(mixture: Mixture) -> Mixture:
    """Return a Gaussian mixture carried to mean zero and covariance one."""
    weights, means, covariances = mixture
    centred = means - weights @ means
    total = torch.einsum("k,kij->ij", weights, covariances)
    total = total + torch.einsum("k,ki,kj->ij", weights, centred, centred)
    whiten = torch.linalg.inv(torch.linalg.cholesky(total))
    covariances = whiten @ covariances @ whiten.mT
    return weights, centred @ whiten.mT, 0.5 * (covariances + covariances.mT)


def sample_mixture(mixture: Mixture, count: int, seed: int = 0) -> Tensor:
    """Draw from a Gaussian mixture, shape ``(count, D)``."""
    weights, means, covariances = mixture
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(weights, count, replacement=True, generator=g)
    noise = torch.randn(count, means.shape[1], generator=g, dtype=means.dtype)
    factors = torch.linalg.cholesky(covariances)
    return means[which] + torch.einsum("nij,nj->ni", factors[which], noise)


@storable("field", "gaussian-mixture")
class GaussianMixtureField(AbstractAngularField):
    """The exact field of a Gaussian mixture on a Gaussian path.

    Arguments:
        path: the Gaussian path.
        weights: mixture weights with shape ``(K,)``, summing to one.
        means: component means with shape ``(K, D)``.
        covariances: component covariances with shape ``(K, D, D)``.
        event_shape: shape of a point, of D coordinates in all; None for vectors.

    The flow ends in N(0, I), so the mixture should be standardised (mean zero, covariance the
    identity) when its flow density is to equal ``log_density``.
    """

    weights: Tensor
    means: Tensor
    _spectrum: Tensor
    _axes: Tensor

    def __init__(
        self,
        path: AbstractPath,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self._set_path(path, means.shape[-1:] if event_shape is None else event_shape)
        if self.features != means.shape[-1]:
            raise ValueError(
                f"`event_shape` must have {means.shape[-1]} coordinates in all; got {event_shape}"
            )
        spectrum, axes = torch.linalg.eigh(covariances)
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("_spectrum", spectrum)
        self.register_buffer("_axes", axes)

    def settings(self) -> dict[str, Any]:
        return {"path": describe(self.path, "path"), "event_shape": list(self.event_shape)}

    @classmethod
    def from_settings(
        cls, name: str, settings: dict[str, Any], source: Source
    ) -> GaussianMixtureField:
        event_shape = decode(tuple[int, ...], settings["event_shape"], "event_shape")
        components, size = source["means"].shape
        # What it is made of is filled in: only its sizes matter.
        eye = torch.eye(size, dtype=source["means"].dtype).expand(components, size, size)
        parts = torch.ones(components), torch.zeros(components, size), eye
        return cls(build(settings["path"], "path"), *parts, event_shape)

    def _components(self, angle: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log joint ``(B, K)``; g in eigen-coordinates and variances, ``(B, K, D)``."""
        cos, sin = torch.cos(angle)[..., None, None], torch.sin(angle)[..., None, None]
        variance = cos * cos * self._spectrum + sin * sin
        offset = torch.einsum("...kd,kde->...ke", y[..., None, :] - cos * self.means, self._axes)
        g = -offset / variance
        log_joint = self.weights.log() + 0.5 * (
            (g * offset).sum(-1) - variance.log().sum(-1) - self.features * math.log(2 * math.pi)
        )
        return log_joint, g, variance

    def _posterior(self, angle: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``(B, D)`` and trace of the covariance ``(B,)`` of the data given ``y``."""
        log_joint, g, variance = self._components(angle, y)
        r = log_joint.softmax(-1)[..., None]
        pull = torch.einsum("...ke,kde->...kd", self._spectrum * g, self._axes)
        centres = self.means - torch.cos(angle)[..., None, None] * pull
        mean = (r * centres).sum(-2)
        within = torch.sin(angle)[..., None] ** 2 * (self._spectrum / variance).sum(-1)
        between = ((centres - mean[..., None, :]) ** 2).sum(-1)
        return mean, (r[..., 0] * (within + between)).sum(-1)

    def log_density(self, angle: Tensor, y: Tensor) -> Tensor:
        """Return the log-density of y at ``angle``, shape ``(B,)``."""
        return self._components(angle, y.flatten(1))[0].logsumexp(-1)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        mean, _ = self._posterior(t, x.flatten(1))
        return (beside(torch.cos(t), x) * x - mean.view_as(x)) / beside(torch.sin(t), x)

    def divergence(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the divergence of the velocity in closed form, shape ``(B,)``."""
        _, spread = self._posterior(t, x.flatten(1))
        cos, sin = torch.cos(t), torch.sin(t)
        return self.features * cos / sin - cos / sin**3 * spread
