"""One draw under way: the field, its calls in chunks of rows, and the source of its noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_stad._chunks import CHUNK_SIZE, in_chunks, rows_of
from pyro_stad.ode import time_like

__all__ = ["Walk"]


class Walk:
    """What a sampler needs on its way.

    Arguments:
        field: a field on a Gaussian path, or any field for those who need but a velocity; if it
            depends on a context, it has closed over one.
        generator: source of the noise on the way; None for torch's global one, as Pyro draws.
    """

    def __init__(self, field: Any, generator: torch.Generator | None) -> None:
        self.field, self.generator = field, generator
        # The chunks take their rows of it; see ``velocity``.
        self.context: Tensor | None = field.context

    def velocity(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the velocity at a time ``()``, in own coordinates, with the shape of ``y``."""
        context = self.context
        if context is not None:
            context = rows_of(context, self.field.context_shape, len(y))

        def of_rows(rows: Tensor, known: Tensor | None = None) -> Tensor:
            field = self.field if known is None else self.field.given(known)
            return field.velocity(t, rows)

        return in_chunks(y, of_rows, CHUNK_SIZE, context=context)

    def parts(self, angle: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of data and noise given ``y``: one call of the network."""
        cos, sin = math.cos(angle), math.sin(angle)
        w = self.velocity(time_like(y, angle), y)
        return cos * y - sin * w, sin * y + cos * w

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the shape, dtype and device of ``like``."""
        return torch.randn(
            like.shape, generator=self.generator, dtype=like.dtype, device=like.device
        )
