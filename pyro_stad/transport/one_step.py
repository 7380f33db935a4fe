r"""Noise to data in one network call: a generator.

.. math:: g(z) = \cos\varphi_*\, z - \sin\varphi_*\, w(\varphi_*, z),

the mean of the data that a field sees in z at a fixed angle :math:`\varphi_*`, by a copy of the
field's network that is trained on until the law of g(z) is that of the data. A diffusion's
denoiser is where that training starts from.

Where a gate closes, far out, the flow moves nothing; there g(z) = z. With the gate's value
:math:`\gamma`, the whole step is :math:`g(z) = z - \gamma\, ((1 - \cos\varphi_*)\, z +
\sin\varphi_*\, w)`. A gate on w alone would leave :math:`\cos\varphi_*\, z`, and fold the tails
back into the cloud.

It is no bijection: it has no way back, and no density.

References:
    Xie et al. (2024), EM Distillation for One-Step Diffusion Models.
"""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor

from pyro_stad._checks import check_between
from pyro_stad._chunks import CHUNK_SIZE, check_chunk_size, in_chunks, rows_of
from pyro_stad._events import beside, event_sum
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.ode import time_like
from pyro_stad.registry import Source, storable
from pyro_stad.transport.base import AbstractTransport

__all__ = ["OneStep"]


@storable("transport", "one-step")
class OneStep(AbstractTransport):
    """A generator of one network call.

    Arguments:
        field: the network, on any Gaussian path: its own, for it is trained.
        angle: at which it is asked.
        chunk_size: rows worked on at a time.
    """

    context: Tensor | None = None

    def __init__(
        self, field: AbstractAngularField, angle: float = 1.0, chunk_size: int = CHUNK_SIZE
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        check_between(angle, "angle", 0, math.pi / 2)
        self.field, self.angle, self.chunk_size = field, float(angle), chunk_size

    def __repr__(self) -> str:
        return f"OneStep({type(self.field).__name__}, angle={self.angle:g})"

    def settings(self) -> dict[str, Any]:
        return {"angle": self.angle, "chunk_size": self.chunk_size}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> OneStep:
        return cls(source.given["field"], **settings)

    def sequential_calls(self) -> int:
        return 1

    def given(self, context: Tensor) -> OneStep:
        """Return the generator given a context, of the same network; see ``Flow.given``."""
        if not self.field.context_shape:
            raise TypeError(f"a {type(self.field).__name__} takes no context")
        new = copy.copy(self)
        new.context = context
        return new

    def push(self, z: Tensor) -> Tensor:
        """Carry standard normal ``z``, shape ``(B, *event_shape)``, to data: one call."""
        context = self.context
        rows = None if context is None else rows_of(context, self.field.context_shape, len(z))
        return in_chunks(z, self.draw, self.chunk_size, context=rows)

    def draw(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return data of noise, given rows of context if it takes one, all at once: what learns."""
        field = self.field if context is None else self.field.given(context)
        w = field.velocity(time_like(z, self.angle), z)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        if field.gate is None:
            return cos * z - sin * w
        gate = beside(field.gate.at(event_sum(z.square())).value, z)
        return (1 - gate * (1 - cos)) * z - sin * w
