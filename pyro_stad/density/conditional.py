r"""``ConditionalFlow``: a law of points given a context, learned from pairs of both.

.. math:: z \sim N(0, I), \quad x = \mathrm{flow}(z; c), \quad \theta = b(\mu(c) + L(c)\, x),

with a whitening that depends on the context itself
(:mod:`pyro_stad.fields.networks.location_scale`), and the bijection b of bounded parameters.
``flow(context)`` is a prior like any other: in a model it may be a hierarchy, the likelihood of a
simulator, or the noise of an instrument.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_finite, check_value, is_transformed
from pyro_stad._chunks import padded
from pyro_stad._context import own_context
from pyro_stad._rows import ROWS
from pyro_stad.data import Standardise
from pyro_stad.density.calibrated_flow import calibrated_flow
from pyro_stad.density.coordinates import Coordinates
from pyro_stad.density.counts import Counts
from pyro_stad.density.given import ConditionalLaw, Encoded, GivenPrior
from pyro_stad.density.level import Levels
from pyro_stad.files.conditional import StoredConditional, write_conditional
from pyro_stad.likelihood import AbstractLikelihood, exact_twin

__all__ = ["ConditionalFlow"]


class ConditionalFlow:
    """A learned law of points given a context; ``pyro_stad.fit(samples, context=...)`` makes one.

    Arguments:
        parts: what it consists of.

    Example:
        >>> import pyro_stad
        >>> source = torch.Generator().manual_seed(0)
        >>> context = torch.randn(400, 1, generator=source)
        >>> draws = context + 0.5 * torch.randn(400, 2, generator=source)
        >>> flow = pyro_stad.fit(draws, context=context, progress=False, budget="tiny")
        >>> prior = flow(torch.zeros(7, 1))
        >>> prior.batch_shape, prior.event_shape, prior.sample((3,)).shape
        (torch.Size([7]), torch.Size([2]), torch.Size([3, 7, 2]))
    """

    def __init__(self, parts: StoredConditional) -> None:
        for part in (parts.likelihood, parts.transport, parts.location):
            part.requires_grad_(False).eval()
        likelihood = parts.likelihood.freeze()
        self.parts = parts = parts._replace(likelihood=likelihood)
        features = likelihood.field.features
        like = parts.contexts.loc
        none = Standardise(like.new_zeros(features), torch.eye(features).to(like))
        self._law = ConditionalLaw(
            likelihood,
            parts.transport,
            Coordinates(none, parts.bounds, None),
            parts.contexts,
            parts.layout,
            parts.bounds,
            parts.report,
            parts.calibration,
            Levels(likelihood, parts.transport, parts.contexts.seen),
            Counts(),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates of a point."""
        return self.parts.layout.names

    @property
    def context_names(self) -> tuple[str, ...]:
        """Names of the coordinates of a context."""
        return self.parts.contexts.layout.names

    @property
    def event_shape(self) -> torch.Size:
        """Shape of a point, ``(D,)``."""
        return torch.Size([len(self.names)])

    @property
    def context_shape(self) -> torch.Size:
        """Shape of a context, ``(C,)``."""
        return torch.Size([len(self.context_names)])

    def __call__(self, context: Tensor | Mapping[str, Tensor] | None = None) -> GivenPrior:
        """Return the prior given a context, of batch shape ``context.shape[:-1]``.

        Arguments:
            context: a tensor of shape ``(..., C)``, or tensors by the names of the context's
                variables, each ``(..., *shape)``. Gradients go through it.

        Raises:
            TypeError: if it is missing, or no tensor.
            ValueError: for a wrong width, dtype or device, for values that are not finite or
                outside their bounds, or names that are not those of the context.
        """
        values = self._checked(context)
        white = self.parts.contexts.standardise(values)
        rows = white.reshape(-1, white.shape[-1])
        batch, size = white.shape[:-1], len(self.names)
        # Mean and factor side by side: padding takes one tensor.
        both = padded(self._side_by_side, ROWS, rows)
        loc, tril = both[:, :size], both[:, size:]
        encoded = Encoded(white, loc.reshape(*batch, size), tril.reshape(*batch, size, size))
        return GivenPrior(self._law, encoded)

    def _side_by_side(self, white: Tensor) -> Tensor:
        loc, tril = self.parts.location(white)
        return torch.cat([loc, tril.flatten(1)], 1)

    def _checked(self, context: Any) -> Tensor:
        """Return a context as one tensor ``(..., C)``, or say what is wrong with it."""
        names, like = self.context_names, self.parts.contexts.loc
        if context is None:
            raise TypeError(
                f"the context is missing: say flow(context) with a tensor of shape (..., "
                f"{len(names)}) that holds {', '.join(names)}"
            )
        if not isinstance(context, Tensor):
            context = self._by_name(context)
        if context.ndim == 0 or context.shape[-1] != len(names):
            raise ValueError(
                f"`context` must have shape (..., {len(names)}), for {', '.join(names)}; got "
                f"{tuple(context.shape)}. A number becomes one by value[..., None]"
            )
        if context.device != like.device:
            raise ValueError(
                f"`context` is on {context.device}, the flow on {like.device}; move one of them "
                "with `.to(device)`"
            )
        context = context.to(like.dtype)
        if is_transformed(context):
            return context  # no look at values inside vmap or grad
        bad = ~self.parts.contexts.inside(context.detach())
        if bad.any():
            row = [int(i) for i in bad.nonzero()[0]]
            raise ValueError(
                f"`context` must be finite and within its bounds, "
                f"{self.parts.contexts.bounds or 'none'}; got {context[tuple(row)].tolist()} at "
                f"index {tuple(row)}; {int(bad.sum())} contexts are affected"
            )
        return context

    def _by_name(self, context: Any) -> Tensor:
        variables = dict(self.parts.contexts.layout.variables)
        if not isinstance(context, Mapping):
            raise TypeError(
                f"`context` must be a tensor or a mapping of names to tensors; got "
                f"{type(context).__name__}. Convert it with torch.as_tensor(...)"
            )
        if context.keys() != variables.keys():
            raise ValueError(
                f"`context` must have the variables {list(variables)}; got {list(context)}"
            )
        parts = []
        for name, shape in variables.items():
            value = torch.as_tensor(context[name])
            batch = value.shape[: value.ndim - len(shape)]
            if tuple(value.shape[len(batch) :]) != shape:
                raise ValueError(
                    f"`context` of {name!r} must have shape (..., {', '.join(map(str, shape))}); "
                    f"got {tuple(value.shape)}"
                )
            parts.append(value.reshape(*batch, math.prod(shape)))
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)

    def with_likelihood(self, likelihood: AbstractLikelihood) -> ConditionalFlow:
        """Return a flow whose density is computed in another way; it comes uncalibrated.

        Arguments:
            likelihood: a way to the density of the same field, such as
                ``FlowODE.of(flow.parts.likelihood, divergence=Exact())``.

        Raises:
            ValueError: if it is of another field.
        """
        if getattr(likelihood, "field", None) is not self.parts.likelihood.field:
            raise ValueError(
                "`likelihood` must be a way to the density of this flow's own field, such as "
                f"FlowODE.of(flow.parts.likelihood, ...); got {likelihood!r:.80}"
            )
        return ConditionalFlow(self.parts._replace(likelihood=likelihood, calibration=None))

    def exact(self) -> ConditionalFlow:
        """Return the exact twin: the same flow, with the exact trace on the density's own grid."""
        return self.with_likelihood(exact_twin(self.parts.likelihood))

    @own_context()
    def calibrate(
        self,
        samples: Tensor,
        context: Tensor | Mapping[str, Tensor],
        *,
        tolerance: float | None = None,
        reference: str = "data",
        seed: int = 0,
    ) -> ConditionalFlow:
        """Return a flow whose density is the cheapest that is accurate enough on pairs.

        Arguments:
            samples: points ``(N, D)`` that the fit has not seen, at least 20.
            context: a context for each, as of a call.
            tolerance, reference, seed: as of ``FlowPrior.calibrate``.

        Raises:
            TypeError, ValueError: for pairs that can't be used, or no positive tolerance.

        Warns:
            AccuracyWarning: if the tolerance is not met, or the normaliser is off.
        """
        given = self._checked(context)
        points = check_value(samples, given.new_zeros(len(self.names)), argument="samples")
        if points.shape[:-1] != given.shape[:-1] or points.ndim != 2:
            raise ValueError(
                f"`samples` and `context` must be rows of pairs; got shapes "
                f"{tuple(points.shape)} and {tuple(given.shape)}"
            )
        check_finite(points, self.names, argument="samples")
        outside = int((~self._law.coordinates.inside(points)).sum())
        if outside:
            raise ValueError(f"`samples` must lie inside the bounds; {outside} do not")
        parts = calibrated_flow(self.parts, points, given, tolerance, reference, seed)
        return ConditionalFlow(parts)

    @own_context()
    def to(self, target: torch.device | str | torch.dtype) -> ConditionalFlow:
        """Return a copy on another device or in another dtype."""
        # One copy of all: likelihood and transport share a field.
        parts = copy.deepcopy(self.parts)
        return ConditionalFlow(
            parts._replace(
                likelihood=parts.likelihood.to(target),
                transport=parts.transport.to(target),
                location=parts.location.to(target),
                contexts=parts.contexts.to(target),
            )
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the flow to ``path``; ``pyro_stad.load`` reads it."""
        write_conditional(self.parts, path)

    def summary(self) -> str:
        """Return what the flow is, how it was fitted and how accurate it is, as text."""
        parts = self.parts
        lines = [repr(self), f"  parameters: {', '.join(self.names)}"]
        if parts.bounds is not None:
            lines.append(f"  bounds: {dict(zip(self.names, parts.bounds))}")
        lines.append(f"  given: {', '.join(self.context_names)}")
        if parts.contexts.bounds is not None:
            lines.append(f"  their bounds: {dict(zip(self.context_names, parts.contexts.bounds))}")
        lines.append("  not fitted here" if parts.report is None else parts.report.text())
        known = parts.calibration
        lines.append("  not calibrated" if known is None else known.text())
        if parts.accuracy is not None and known is not None:
            lines.append(parts.accuracy.text())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"ConditionalFlow(D={len(self.names)} given {len(self.context_names)}, "
            f"{self.parts.likelihood!r})"
        )
