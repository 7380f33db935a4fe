r"""How probable a point looks: the share of the prior's own draws that have less density.

The norm of a point's noise says how far *out* it lies, and calls the hollow of a banana, or the
valley between two modes, the middle. Its density says that it is low there. So a point is held
against draws of the flow, both by their density in whitened coordinates, on which no choice of
units and no map of a single coordinate bears. A small share means that the flow itself expects
hardly a sample of so little density anywhere.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pyro_stad._joined import log_prob_at, own_draws
from pyro_stad._random import generator
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.transport import AbstractTransport

__all__ = ["Levels"]

_DRAWS = 4096


class Levels:
    """The densities of a flow's own draws, computed when they are first asked for.

    Arguments:
        likelihood: the density, in whitened coordinates.
        transport: what draws are made by.
        context: rows of context ``(N, C)`` that draws are given, if the two depend on one: levels
            are then those among draws of all of them.
    """

    def __init__(
        self,
        likelihood: AbstractLikelihood,
        transport: AbstractTransport,
        context: Tensor | None = None,
    ) -> None:
        self._likelihood, self._transport, self._context = likelihood, transport, context
        self._point = likelihood
        # Sorted, once they are known: one list for all that share the draws.
        self._known: list[Tensor] = []

    def given(self, likelihood: AbstractLikelihood) -> Levels:
        """Return the levels of points whose density is given a context, among the same draws."""
        new = copy.copy(self)
        new._point = likelihood
        return new

    def share(self, white: Tensor) -> Tensor:
        """Return the share of draws with less density than whitened points ``(B, D)``: ``(B,)``."""
        with torch.no_grad():
            return self.of(self._point.log_prob(white))

    def of(self, log_prob: Tensor) -> Tensor:
        """Return the share of draws with a smaller whitened log-density than ``log_prob``."""
        if not self._known:
            self._known.append(self._draws(log_prob))
        (known,) = self._known
        below = torch.searchsorted(known, log_prob.contiguous().to(known))
        share = below.to(log_prob) / len(known)
        # To a search, NaN is larger than all numbers.
        return torch.where(torch.isnan(log_prob), 0.0, share)

    def _draws(self, like: Tensor) -> Tensor:
        shape = _DRAWS, *self._likelihood.field.event_shape
        source = generator(0, "levels", like.device)
        noise = torch.randn(shape, generator=source, dtype=like.dtype, device=like.device)
        draws = own_draws(self._transport, noise, self._context)
        with torch.no_grad():
            log_prob = log_prob_at(self._likelihood, draws)
        return log_prob.nan_to_num().sort().values
