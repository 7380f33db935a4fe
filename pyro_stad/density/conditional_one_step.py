"""``ConditionalGenerator``: draws of a conditional flow for one network call each.

As a ``ConditionalFlow`` makes a prior of any context, this makes a ``OneStepGenerator`` of it: the
whitening is that of the flow given the context, and between them there is one call.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Self

import torch
from torch import Tensor

from pyro_stad.density.conditional import ConditionalFlow
from pyro_stad.density.one_step import Distilled, OneStepGenerator
from pyro_stad.files.conditional import describe_conditional
from pyro_stad.files.one_step import write_one_step
from pyro_stad.transport import OneStep

__all__ = ["ConditionalGenerator"]


class ConditionalGenerator:
    """Draws of a conditional flow in one network call each; ``distil_one_step`` makes it.

    Arguments:
        flow: what it draws from; ``flow(context)`` has the density.
        transport: the generator of whitened draws, which takes a context.
        distilled: how it came about, or None.

    Example:
        >>> import pyro_stad
        >>> source = torch.Generator().manual_seed(0)
        >>> context = torch.randn(400, 1, generator=source)
        >>> draws = context + 0.5 * torch.randn(400, 2, generator=source)
        >>> flow = pyro_stad.fit(draws, context=context, progress=False, budget="tiny")
        >>> generator = pyro_stad.distil_one_step(flow, steps=20, progress=False)
        >>> generator(torch.zeros(7, 1)).sample((3,)).shape
        torch.Size([3, 7, 2])
    """

    def __init__(
        self, flow: ConditionalFlow, transport: OneStep, distilled: Distilled | None = None
    ) -> None:
        if not isinstance(flow, ConditionalFlow):
            raise TypeError(f"`flow` must be a ConditionalFlow; got {flow!r:.80}")
        if not isinstance(transport, OneStep):
            raise TypeError(f"`transport` must be a OneStep; got {type(transport).__name__}")
        wanted, has = flow.context_shape, transport.field.context_shape
        if has != wanted:
            raise ValueError(
                f"`transport` must take a context of shape {tuple(wanted)}, as the flow does; "
                f"got {tuple(has)}"
            )
        self.flow, self.distilled = flow, distilled
        self.transport = transport.requires_grad_(False).eval()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates of a point."""
        return self.flow.names

    @property
    def context_names(self) -> tuple[str, ...]:
        """Names of the coordinates of a context."""
        return self.flow.context_names

    def __call__(self, context: Tensor | Mapping[str, Tensor] | None = None) -> OneStepGenerator:
        """Return the generator given a context, of batch shape ``context.shape[:-1]``.

        Arguments:
            context: as of a call of the ``ConditionalFlow``, with the same errors.
        """
        return OneStepGenerator(self.flow(context), self.transport, self.distilled)

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """Return a copy on another device or in another dtype."""
        moved = copy.deepcopy(self.transport).to(target)
        return type(self)(self.flow.to(target), moved, self.distilled)

    def summary(self) -> str:
        """Return what it is, how it was distilled and how true it is, as text."""
        made = "  not distilled here" if self.distilled is None else self.distilled.text()
        return f"{self!r}\n{made}\nof {self.flow.summary()}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write generator and flow to ``path``; ``pyro_stad.load`` reads both back."""
        record = None if self.distilled is None else asdict(self.distilled)
        write_one_step(describe_conditional(self.flow.parts), self.transport, record, path)

    def __repr__(self) -> str:
        sizes = f"D={len(self.names)} given {len(self.context_names)}"
        return f"ConditionalGenerator({sizes}, {self.transport!r})"
