r"""What splitting is held against: Euler-Maruyama, SSCS and the conjugate integrator.

*SSCS*, symmetric splitting for critically damped Langevin diffusion: over half a step the linear
part of the reverse dynamics with all of the noise, exactly; over a whole step the score by Euler,
:math:`x \mathrel{+}= h\beta\Gamma (x + s_x)` and :math:`p \mathrel{+}= h\beta\nu (p + s_p)`; and
the other half. The linear part is that of the forward dynamics with its coupling reversed.

*Conjugate integrators* solve the probability-flow ODE :math:`dz/dt = F z + \tfrac12 G G^T L^{-T}
\hat\epsilon` with :math:`\hat\epsilon` held over a step, in coordinates in which its linear part
is B. Over a step from t to t - h,

.. math:: z' = e^{(B - F) h} (z - h B z)
    - \tfrac12 \int_0^h e^{(B - F)(h - v)}\, G G^T L_{t - v}^{-T}\, dv\; \hat\epsilon ,

by Gauss-Legendre quadrature. B = 0 is DDIM in phase space; :math:`\lambda`-DDIM has
:math:`B = \lambda I`, or :math:`\lambda` times a matrix of ones.

References:
    Dockhorn, Vahdat and Kreis (2022), Score-Based Generative Modeling with Critically-Damped
    Langevin Diffusion; Pandey, Rudolph and Mandt (2024), Efficient Integrators for Diffusion
    Generative Models; Zhang and Chen (2023), Fast Sampling of Diffusion Models with Exponential
    Integrator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pyro_stad._checks import check_between, check_choice
from pyro_stad.drawing.phase_walk import AbstractPhaseSampler, PhaseWalk, mixed
from pyro_stad.paths import PhaseLaw
from pyro_stad.registry import storable

__all__ = ["SSCS", "Conjugate", "PhaseEulerMaruyama"]

_NODES = 16
_LARGEST = 1e6  # of lambda
_KINDS = ("identity", "ones")


@storable("sampler", "phase-euler-maruyama")
@dataclass(frozen=True, repr=False)
class PhaseEulerMaruyama(AbstractPhaseSampler):
    """Euler-Maruyama on the reverse diffusion in phase space: one call a step."""

    @property
    def is_stochastic(self) -> bool:
        return True

    def moves(self, phase: PhaseWalk, z: Tensor, times: list[float]) -> Iterator[Tensor]:
        drift, diffusion = self.path.drift(), self.path.diffusion()
        for before, after in pairwise(times):
            h, score = before - after, torch.stack([*phase.score(before, z)], 1)
            added = mixed(torch.diag((h * diffusion).sqrt()), phase.normal(z))
            z = z - h * mixed(drift, z) + mixed(torch.diag(h * diffusion), score) + added
            yield z


@storable("sampler", "sscs")
@dataclass(frozen=True, repr=False)
class SSCS(AbstractPhaseSampler):
    """Symmetric splitting with an exact linear part: one call a step."""

    @property
    def is_stochastic(self) -> bool:
        return True

    def moves(self, phase: PhaseWalk, z: Tensor, times: list[float]) -> Iterator[Tensor]:
        for before, after in pairwise(times):
            h = before - after
            z = self._linear(phase, z, 0.5 * h)
            kick = z + torch.stack([*phase.score(before, z)], 1)
            z = z + mixed(torch.diag(h * self.path.diffusion()), kick)
            z = self._linear(phase, z, 0.5 * h)
            yield z

    def _linear(self, phase: PhaseWalk, z: Tensor, h: float) -> Tensor:
        """Return the pair after the linear part, with its noise, over ``h``."""
        drift = self.path.drift()
        # The coupling of positions and momenta runs backwards; friction and noise do not.
        over = torch.matrix_exp(h * drift.mT)
        lower = torch.linalg.cholesky(self._noise(h))
        return mixed(over, z) + mixed(lower, phase.normal(z))

    def _noise(self, h: float) -> Tensor:
        """Return the covariance of the noise that comes in over ``h``, by quadrature.

        One less what is left of it would cancel: that of positions is of order h^3 without
        friction.
        """
        nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
        since = 0.5 * h * (1 + nodes)
        over = torch.matrix_exp(since[:, None, None] * self.path.drift().mT)
        came = over @ torch.diag(self.path.diffusion()) @ over.mT
        return (0.5 * h * weights[:, None, None] * came).sum(0)


@storable("sampler", "conjugate")
@dataclass(frozen=True, repr=False)
class Conjugate(AbstractPhaseSampler):
    """The conjugate integrator, lambda-DDIM: one call a step, no noise on the way.

    Arguments:
        lam: lambda; 0 is DDIM.
        kind: ``"identity"`` or ``"ones"``, the matrix that it multiplies.
    """

    lam: float = 0.0
    kind: str = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.kind, "kind", _KINDS)
        check_between(self.lam, "lam", -_LARGEST, _LARGEST)

    def moves(self, phase: PhaseWalk, z: Tensor, times: list[float]) -> Iterator[Tensor]:
        eye = torch.eye(2, dtype=torch.float64, device="cpu")
        shift = self.lam * (eye if self.kind == "identity" else torch.ones_like(eye))
        linear = shift - self.path.drift()
        for before, after in pairwise(times):
            h = before - after
            law = phase.law(before)
            lower = _lower(law)
            score = torch.stack([*phase.score(before, z)], 1)
            noise = -mixed(lower.mT, score)
            kept = torch.matrix_exp(h * linear) @ (eye - h * shift)
            z = mixed(kept, z) - mixed(self._met(linear, before, h), noise)
            yield z

    def _met(self, linear: Tensor, before: float, h: float) -> Tensor:
        """Return the integral over a step, ``(2, 2)``."""
        nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_NODES))
        gone = 0.5 * h * (1 + nodes)
        lower = _lower(self.path.law(before - gone))
        left = torch.matrix_exp((h - gone)[:, None, None] * linear)
        found = left @ torch.diag(self.path.diffusion()) @ torch.linalg.inv(lower).mT
        return (0.25 * h * weights[:, None, None] * found).sum(0)


def _lower(law: PhaseLaw) -> Tensor:
    """Return L, of the pair given the data."""
    given = law.covariance - law.mean[..., :, None] * law.mean[..., None, :]
    return torch.linalg.cholesky(given)
