r"""The flow in phase space of any field: positions and momenta, moved by one network of positions.

In coordinates :math:`y = \bar L^{-1} z`, with :math:`\bar\Sigma = \bar L \bar L^T`, the law of
standardised normal data stays N(0, I), and the probability-flow ODE of
:mod:`pyro_stad.paths.phase` is

.. math::
    \dot y = k\,(y_p, -y_x) + g\, w(\varphi, u), \qquad u = c^T \bar L y / \cos\varphi, \qquad
    g = \tfrac{1}{2 \sin\varphi}\, \bar L^{-1} G G^T c,

a turn, which moves no density, and the angular velocity of the field that it is made of. So its
divergence is that of w, times :math:`g \cdot \bar L^T c / \cos\varphi`: it needs D products, not
2 D, and a divergence that is distilled for w serves here as it is
(:mod:`pyro_stad.divergence.projected`).

At the data end y is (x, p), but for the little noise of ``t_min``, with momenta in units of their
first standard deviation; at the noise end it is N(0, I).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_stad._events import beside
from pyro_stad.fields.base import AbstractAngularField, AbstractField
from pyro_stad.paths import PSLD

__all__ = ["PhaseField", "Projection"]


class Projection(NamedTuple):
    """Numbers of one time, each ``()`` or ``(B,)``, and pairs ``(..., 2)``.

    Attributes:
        angle: at which the field is asked.
        onto: from y to u.
        turn: k.
        along: g.
    """

    angle: Tensor
    onto: Tensor
    turn: Tensor
    along: Tensor


class PhaseField(AbstractField):
    """Positions and momenta as one field of events ``(2, *event_shape)``.

    Arguments:
        field: a field on any Gaussian path, whose network is asked.
        path: the diffusion in phase space, or None for that of the field, or the default.
    """

    data_scale = 1.0

    def __init__(self, field: AbstractAngularField, path: PSLD | None = None) -> None:
        super().__init__()
        if not isinstance(field, AbstractAngularField):
            raise TypeError(
                f"`field` must be on a Gaussian path, as a PathField is; got {type(field).__name__}"
            )
        if path is not None and not isinstance(path, PSLD):
            raise TypeError(f"`path` must be a PSLD, or None; got {path!r:.80}")
        own = field.path if isinstance(field.path, PSLD) else PSLD()
        self.field, self.path = field, own if path is None else path
        self.event_shape = torch.Size([2, *field.event_shape])
        self.context_shape, self.context = field.context_shape, field.context
        self.t_min, self.t_max = self.path.t_min, self.path.t_max
        # Made now: a trace warns of every tensor that is made of numbers.
        self._rates = self.path.drift(), self.path.diffusion()

    def given(self, context: Tensor) -> PhaseField:
        return PhaseField(self.field.given(context), self.path)  # type: ignore[arg-type]

    def projection(self, t: Tensor) -> Projection:
        """Return what velocity and divergence are put together with."""
        law = self.path.law(t)
        lower = torch.linalg.cholesky(law.covariance)
        drift, diffusion = (rate.to(lower) for rate in self._rates)
        inverse = torch.linalg.inv(lower)
        # The upper right entry of a turn: the lower triangular part comes from the whitening.
        turn = (inverse @ drift @ lower + 0.5 * inverse @ (diffusion[:, None] * inverse.mT))[
            ..., 0, 1
        ]
        along = (inverse @ (diffusion * law.weights)[..., None])[..., 0]
        along = along / (2 * torch.sin(law.angle)[..., None])
        onto = (lower.mT @ law.weights[..., None])[..., 0] / torch.cos(law.angle)[..., None]
        # The field ends where it ends: at pure noise its velocity changes no more.
        angle = law.angle.clamp(self.field.t_min, self.field.t_max)
        return Projection(*(part.to(t) for part in (angle, onto, turn, along)))

    def projected(self, at: Projection, y: Tensor) -> Tensor:
        """Return u, ``(B, *event_shape of the field)``, of points ``(B, 2, ...)``."""
        position, momentum = y.unbind(1)
        return beside(at.onto[..., 0], position) * position + (
            beside(at.onto[..., 1], momentum) * momentum
        )

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        at = self.projection(t)
        return self.moved(at, x, self.field.velocity(at.angle, self.projected(at, x)))

    def moved(self, at: Projection, y: Tensor, w: Tensor) -> Tensor:
        """Return the velocity of points from the angular velocity of the field."""
        position, momentum = y.unbind(1)
        turn = beside(at.turn, position)
        return torch.stack(
            [
                turn * momentum + beside(at.along[..., 0], w) * w,
                -turn * position + beside(at.along[..., 1], w) * w,
            ],
            1,
        )

    def stretch(self, at: Projection) -> Tensor:
        """Return by what the divergence of the field is multiplied here."""
        return (at.onto * at.along).sum(-1)
