r"""Fields: what a teacher is to the rest of the package.

A field is a velocity :math:`v(t, x)` in its own time and coordinates, whose flow carries standard
normal noise at ``t_max`` into scaled data at ``t_min``. Divergences, solvers and likelihoods see
nothing else.

For a field on a Gaussian path the own time is the angle and the own coordinates are
:math:`y = x_t / c(t)` (:mod:`pyro_stad.paths.base`): its velocity there is the angular velocity w,
bounded at both ends and zero for standardised Gaussian data. The path itself, clock and scale, is
needed only to show the field's four faces in path time, and to read foreign networks.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_stad._config import decode
from pyro_stad._events import beside, event_sum
from pyro_stad._joined import repeat_rows
from pyro_stad.fields.gate import Gate
from pyro_stad.fields.networks.perceptron import Hidden, Trunk, trunk_sizes
from pyro_stad.fields.products import jacobian_products
from pyro_stad.paths import AbstractPath, convert
from pyro_stad.registry import Source

__all__ = ["AbstractAngularField", "AbstractField", "AbstractTrunkField"]


class AbstractField(nn.Module, ABC):
    """A velocity field between data at ``t_min`` and N(0, I) at ``t_max``.

    Class attributes:
        has_score: whether the score of the law at every time follows from the velocity.

    Attributes every leaf provides:
        event_shape: shape of a point.
        context_shape: shape of what a point depends on besides, empty for nothing.
        context: the rows of it that the field has closed over, or None.
        t_min, t_max: the data end and the noise end, in the field's own time.
        data_scale: the field's variable at ``t_min`` is ``data_scale`` times the data.
        gate: what holds the field to zero far out, or None.
    """

    has_score: ClassVar[bool] = False

    event_shape: torch.Size
    context_shape: torch.Size = torch.Size()
    context: Tensor | None = None
    t_min: float
    t_max: float
    data_scale: float
    gate: Gate | None = None

    @abstractmethod
    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`v(t, x)`: ``t`` is ``()`` or ``(B,)``, ``x`` is ``(B, *state_shape)``."""

    @property
    def state_shape(self) -> torch.Size:
        """Shape of what moves, which is that of a point unless more is put beside it."""
        return self.event_shape

    @property
    def features(self) -> int:
        """Number of coordinates of a point, its dimension D."""
        return self.event_shape.numel()

    def given(self, context: Tensor) -> AbstractField:
        """Return the field that has closed over rows of a context.

        Arguments:
            context: a row for each point, shape ``(B, *context_shape)``, or one for all.

        Raises:
            TypeError: if the field takes no context.
        """
        raise TypeError(f"a {type(self).__name__} takes no context")

    def repeated(self, count: int) -> AbstractField:
        """Return the field for points that come ``count`` times each, side by side.

        What it was given is repeated with them; without a context, it is the same field.
        """
        if self.context is None:
            return self
        return self.given(repeat_rows(self.context, count))

    def jacobian_products(self, t: Tensor, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity ``(B, *event_shape)`` and ``J u`` for each tangent ``u``.

        Arguments:
            t: times with shape ``()`` or ``(B,)``.
            x: points with shape ``(B, *event_shape)``.
            tangents: directions with shape ``(K, B, *event_shape)`` or ``(K, 1, *event_shape)``.

        Returns:
            The velocity, and products with shape ``(K, B, *event_shape)``.
        """
        return jacobian_products(lambda y: self.velocity(t, y), x, tangents)

    def ungated(self) -> AbstractField:
        """Return the field without its gate, with the same network: what networks learn from."""
        if self.gate is None:
            return self
        field = copy.copy(self)
        field.gate = None
        return field

    def gated(self, x: Tensor, velocity: Tensor, divergence: Tensor) -> tuple[Tensor, Tensor]:
        """Return velocity and divergence, ``(B,)``, of the field from those without its gate."""
        if self.gate is None:
            return velocity, divergence
        gate = self.gate.at(event_sum(x.square()))
        across = event_sum(x * velocity)
        return beside(gate.value, x) * velocity, gate.value * divergence + 2 * gate.slope * across

    def at_fraction(self, fraction: Tensor) -> Tensor:
        """Return the times that lie at ``fraction`` of the way from data to noise."""
        return self.t_min + (self.t_max - self.t_min) * fraction


class AbstractAngularField(AbstractField):
    """A field on a Gaussian path: own time is the angle, the velocity is the angular velocity.

    Leaves define ``velocity(angle, y)``; the four faces below take *path* time and *path*
    coordinates, ``t`` with shape ``()`` or ``(B,)`` and ``x`` with shape ``(B, *event_shape)``.
    """

    has_score = True
    path: AbstractPath

    def path_velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the probability-flow velocity :math:`dx/dt` along the path."""
        return convert.angular_to_velocity(self.path, t, x, self._angular(t, x))

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`\nabla \log p_t(x)`."""
        return convert.angular_to_score(self.path, t, x, self._angular(t, x))

    def noise(self, t: Tensor, x: Tensor) -> Tensor:
        r"""Return :math:`E[\epsilon | x_t = x]`."""
        return convert.angular_to_noise(self.path, t, x, self._angular(t, x))

    def denoised(self, t: Tensor, x: Tensor) -> Tensor:
        """Return :math:`E[x_0 | x_t = x]`."""
        return convert.angular_to_denoised(self.path, t, x, self._angular(t, x))

    def own_score(self, angle: Tensor, y: Tensor, velocity: Tensor) -> Tensor:
        r"""Return the score in own time and coordinates, :math:`-(y + \cot\varphi\, w)`.

        Arguments:
            angle: angles with shape ``(B,)``.
            y: points with shape ``(B, *event_shape)``.
            velocity: the angular velocity there.
        """
        return -(y + velocity / beside(torch.tan(angle), y))

    def _angular(self, t: Tensor, x: Tensor) -> Tensor:
        p = self.path.polar(t)
        return self.velocity(p.angle, x / beside(p.scale, x))

    def _set_path(self, path: AbstractPath, event_shape: Sequence[int]) -> None:
        """Fill in what the path determines."""
        self.path, self.event_shape = path, torch.Size(event_shape)
        self.t_min, self.t_max = path.angles()
        self.data_scale = math.cos(self.t_min)


class AbstractTrunkField(AbstractField):
    """A field that is one network, so that a divergence head can share its hidden layers."""

    trunk: Trunk

    def sizes(self) -> dict[str, Any]:
        """Return what a file says of the network and its gate."""
        gate = self.gate and asdict(self.gate)
        return {"width": self.trunk.width, "depth": self.trunk.depth, "gate": gate}

    @staticmethod
    def parts_from(settings: dict[str, Any], source: Source) -> dict[str, Any]:
        """Return the arguments of a constructor that ``sizes`` has described."""
        return {
            "features": source.given["features"],
            **trunk_sizes(settings, source.under("trunk")),
            # A file brings its own weights: none are to be drawn from the global generator.
            "generator": torch.Generator(),
            "gate": decode(Gate | None, settings.get("gate"), "gate"),
        }

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        velocity = self.trunk(t, x)
        if self.gate is None:
            return velocity
        return beside(self.gate.at(event_sum(x.square())).value, x) * velocity

    def jacobian_products(self, t: Tensor, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        # A subclass with another velocity must not get the trunk's derivatives.
        if type(self).velocity is not AbstractTrunkField.velocity:
            return super().jacobian_products(t, x, tangents)
        velocity, products = self.trunk.with_tangents(t, x, tangents)
        if self.gate is None:
            return velocity, products
        gate = self.gate.at(event_sum(x.square()))
        outward = (tangents * x).sum(-1, keepdim=True)
        slope = 2 * outward * (beside(gate.slope, x) * velocity)
        return beside(gate.value, x) * velocity, beside(gate.value, x) * products + slope

    def velocity_and_hidden(self, t: Tensor, x: Tensor) -> tuple[Tensor, Hidden]:
        """Return the velocity without a gate, shape ``(B, D)``, and the trunk's hidden layers."""
        return self.trunk.with_hidden(t, x)
