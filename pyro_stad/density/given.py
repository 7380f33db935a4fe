"""``GivenPrior``: what a conditional flow says given a context, as a distribution for Pyro.

A context for each member of a batch, and gradients to it: the density of a point, and a draw, are
functions of both. Points are laid out as rows beside the rows of their contexts, and then all is
as for any other prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, NoReturn

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad._checks import check_batch, check_not_nan, check_value
from pyro_stad.calibrate import Calibration, Sampling
from pyro_stad.data import Bounds, Layout, StandardiseRows
from pyro_stad.data.contexts import Contexts
from pyro_stad.density.alarm import FLAGGED, alarm_level
from pyro_stad.density.coordinates import Coordinates
from pyro_stad.density.counts import Counts
from pyro_stad.density.given_flow import GivenFlow
from pyro_stad.density.level import Levels
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.rows import RowDensity
from pyro_stad.drawing import AbstractSampler
from pyro_stad.likelihood import AbstractLikelihood, exact_twin
from pyro_stad.report import FitReport
from pyro_stad.transport import Flow

__all__ = ["ConditionalLaw", "Encoded", "GivenPrior"]


@dataclass(frozen=True, eq=False)
class ConditionalLaw:
    """What all priors of one conditional flow share; the arguments are its parts.

    ``coordinates`` have the whitening of no context; each prior puts its own there.
    """

    likelihood: AbstractLikelihood
    transport: Flow
    coordinates: Coordinates
    contexts: Contexts
    layout: Layout
    bounds: Bounds | None
    report: FitReport | None
    calibration: Calibration | None
    levels: Levels
    counts: Counts

    @cached_property
    def exact(self) -> ConditionalLaw:
        """The same law, with the exact trace on the density's own grid."""
        likelihood = exact_twin(self.likelihood)
        return replace(
            self, likelihood=likelihood, calibration=None, counts=Counts(),
            levels=Levels(likelihood, self.transport, self.contexts.seen),
        )  # fmt: skip


class Encoded(NamedTuple):
    """A context as networks see it, ``(*batch, C)``, and the whitening that it makes.

    Mean ``(*batch, D)`` and Cholesky factor ``(*batch, D, D)``.
    """

    white: Tensor
    loc: Tensor
    scale_tril: Tensor

    @property
    def batch_shape(self) -> torch.Size:
        return self.white.shape[:-1]

    def expand(self, batch: torch.Size) -> Encoded:
        """Return the same for each member of a larger batch; nothing is computed or copied."""
        known = len(self.batch_shape)
        return Encoded(*(part.expand(*batch, *part.shape[known:]) for part in self))

    def rows(self, batch: torch.Size) -> Encoded:
        """Return a row of each for every member of a larger batch."""
        known = len(self.batch_shape)
        large = self.expand(batch)
        return Encoded(*(a.reshape(-1, *b.shape[known:]) for a, b in zip(large, self)))


class GivenPrior(FlowPrior):
    """The density of points given a context, for each member of a batch.

    It is made by calling a ``ConditionalFlow``.

    Arguments:
        law: what priors of all contexts share.
        encoded: the context, as networks see it.
    """

    def __init__(
        self, law: ConditionalLaw, encoded: Encoded, *, validate_args: bool | None = None
    ) -> None:
        self.law, self.encoded = law, encoded
        # One context serves any rows; several do as rows of a batch, which ``_aligned`` makes.
        context = encoded.white if encoded.white.ndim < 3 else encoded.white.flatten(0, -2)
        self.likelihood = law.likelihood.given(context)
        self.transport = law.transport.given(context)
        self.layout, self.bounds = law.layout, law.bounds
        self.report, self.calibration = law.report, law.calibration
        self.counts, self.levels = law.counts, law.levels.given(self.likelihood)
        self.margins = self.reference = self.spread = None
        whitening = StandardiseRows(encoded.loc, encoded.scale_tril)
        self.coordinates = law.coordinates.given(whitening)
        self.stand_in = law.coordinates.stand_in
        self._rows = RowDensity(self.likelihood, self.coordinates, self.counts)
        like = encoded.loc.detach()
        base = dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1)
        transforms = [GivenFlow(law, encoded.white), *self.coordinates.transforms]
        dist.TransformedDistribution.__init__(self, base, transforms, validate_args=validate_args)

    @property
    def like(self) -> Tensor:
        return self.stand_in

    @property
    def alarm_level(self) -> float:
        """The chance below which a level is an alarm, by the number of pairs; see ``FlowPrior``."""
        known = None if self.report is None else self.report.effective
        return FLAGGED if known is None else alarm_level(known)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The box of the bounds, or the real vectors."""
        return self.coordinates.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> GivenPrior:
        """Return the same prior with another batch shape; nothing is encoded again."""
        return self._with(self.encoded.expand(torch.Size(batch_shape)))

    def _with(self, encoded: Encoded) -> GivenPrior:
        new = GivenPrior(self.law, encoded, validate_args=False)
        new._validate_args, new.sampling = self._validate_args, self.sampling
        return new

    def with_sampling(self, sampling: Sampling | None) -> GivenPrior:
        new = self._with(self.encoded)
        new.sampling = sampling
        return new

    def drawn_white(
        self,
        sampler: AbstractSampler,
        z: Tensor,
        generator: torch.Generator | None,
        *,
        progress: bool,
    ) -> Tensor:
        rows, flat, _ = self._aligned(z)
        field = self.law.likelihood.field.given(rows.encoded.white)
        return sampler.draw(field, flat, generator, progress=progress).reshape(z.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value`` given the context, shape ``(..., D)``: ``(...)``.

        See ``FlowPrior.log_prob``; it has a gradient by the context as well.
        """
        rows, x, shape = self._aligned(value)
        refuse = partial(check_not_nan, x, self.names) if self._validate_args else None
        result = rows._rows(x, refuse).reshape(shape)
        return result.to(value.dtype) if value.is_floating_point() else result

    def white_log_prob(self, white: Tensor) -> Tensor:
        """Return the log-density of points in whitened coordinates, ``(..., D)``: ``(...)``."""
        rows, x, shape = self._aligned(white)
        return rows.likelihood.log_prob(x).reshape(shape)

    def _white_draws(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rows, flat, shape = self._aligned(z)
        x, log_prob = rows.likelihood.push_and_log_prob(flat)
        return x.reshape(z.shape), log_prob.reshape(shape)

    def tail_probability(self, value: Tensor) -> Tensor:
        """Return how far out ``value`` lies, or its context if that is more unusual: ``(...)``.

        See ``FlowPrior.tail_probability``, and ``context_level`` for contexts.
        """
        return self._at_most_context(value, FlowPrior.tail_probability)

    def density_level(self, value: Tensor) -> Tensor:
        """Return the share of own draws, of all contexts, with less density: ``(...)``.

        Or the level of the context, if that is less; see ``FlowPrior.density_level``.
        """
        return self._at_most_context(value, FlowPrior.density_level)

    def surrogate_error(self, value: Tensor) -> Tensor:
        """Return a bound on the error of ``log_prob``; see ``FlowPrior.surrogate_error``.

        It holds for data and contexts like those of the calibration.
        """
        rows, x, shape = self._aligned(value)
        return FlowPrior.surrogate_error(rows, x).reshape(shape)

    def context_level(self) -> Tensor:
        """Return the share of contexts of the training that are more unusual: ``batch_shape``.

        Values below ``alarm_level`` mean that the network has seen no context like it; see
        :mod:`pyro_stad.data.contexts`.
        """
        with torch.no_grad():
            white = self.encoded.white
            return self.law.contexts.share(white.flatten(0, -2) if white.ndim > 1 else white[None]
            ).reshape(self.batch_shape)  # fmt: skip

    def _known_spread(self) -> NoReturn:
        raise ValueError(
            "a conditional flow knows no error of learning: it has no members. See how it does on "
            "held-out samples in flow.summary()"
        )

    def _at_most_context(
        self, value: Tensor, measure: Callable[[FlowPrior, Tensor], Tensor]
    ) -> Tensor:
        rows, x, shape = self._aligned(value)
        return torch.minimum(measure(rows, x).reshape(shape), self.context_level())

    def _aligned(self, value: Tensor) -> tuple[GivenPrior, Tensor, torch.Size]:
        """Return a prior of rows of context, as many rows of points, and the shape of both."""
        x = check_value(value, self.like)
        shape = check_batch(x.shape[:-1], self.batch_shape)
        shape = torch.broadcast_shapes(shape, self.batch_shape)
        x = x.expand(*shape, x.shape[-1]).reshape(-1, x.shape[-1])
        return self._with(self.encoded.rows(shape)), x, shape

    def exact(self) -> GivenPrior:
        """Return the exact twin, given the same context; see ``FlowPrior.exact``."""
        new = GivenPrior(self.law.exact, self.encoded, validate_args=False)
        new._validate_args, new.sampling = self._validate_args, self.sampling
        return new

    def truncate(self, region: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(
            "the mass inside a region changes with the context, and a cut knows but one number: "
            "give the flow `bounds`, or cut the prior of the context in the model"
        )

    def with_likelihood(self, likelihood: Any) -> NoReturn:
        _of_the_flow("with_likelihood()", "flow.with_likelihood(likelihood)(context)")

    def calibrate(self, samples: Any, **options: Any) -> NoReturn:
        _of_the_flow("calibrate()", "flow.calibrate(samples, context)(context)")

    def save(self, path: Any) -> NoReturn:
        _of_the_flow("save()", "flow.save(path)")

    def to(self, target: Any) -> NoReturn:
        _of_the_flow("to()", "flow.to(target)(context.to(target))")

    def __repr__(self) -> str:
        return (
            f"GivenPrior(D={len(self.like)}, batch_shape={tuple(self.batch_shape)}, context of "
            f"{', '.join(self.law.contexts.layout.names)}, {self.law.likelihood!r})"
        )


def _of_the_flow(name: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"{name} is for the flow, and not for one context: say {instead}")
