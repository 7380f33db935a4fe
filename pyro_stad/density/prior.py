r"""``FlowPrior``: samples, learned, as a distribution for Pyro.

.. math::
    z \sim N(0, I_D), \quad x = \mathrm{flow}(z), \quad v = \mu + L x, \quad u = m^{-1}(v),
    \quad \theta = b(u),

with the whitening :math:`(\mu, L)`, the margins m of coordinates that are far from normal
(:mod:`pyro_stad.data.margins`) and, for bounded parameters, the bijection b; angles are wrapped in
between (:mod:`pyro_stad.data.angles`). A prior is a ``TransformedDistribution``, so that Pyro's
``TransformReparam`` splits it; its ``log_prob`` takes one solve for the state and the
log-determinant, where the stock one would take two.

Shapes follow Pyro: ``sample_shape + batch_shape + event_shape`` with ``event_shape == (D,)``.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad._checks import check_batch, check_not_nan, check_value, is_transformed
from pyro_stad._context import own_context
from pyro_stad._events import beside, event_sum
from pyro_stad.calibrate import Calibration
from pyro_stad.data import (
    Bounds,
    Layout,
    Margins,
    Wrap,
    affine,
    open_box,
    outer_transforms,
    support_of,
    wind,
)
from pyro_stad.data.reference import Reference
from pyro_stad.density.base import AbstractFlowPrior
from pyro_stad.density.calibrated import calibrated
from pyro_stad.density.counts import Counts
from pyro_stad.density.described import described
from pyro_stad.density.level import Levels
from pyro_stad.density.transform import FlowTransform, check_likelihood
from pyro_stad.density.truncated import Region, TruncatedPrior, truncate
from pyro_stad.files import StoredPrior, write
from pyro_stad.learn.spread import Spread
from pyro_stad.likelihood import AbstractLikelihood, exact_twin
from pyro_stad.report.fit import FitReport
from pyro_stad.transport import AbstractInvertible

__all__ = ["FlowPrior"]

# What priors of other batch shapes have in common.
_SHARED = """likelihood transport layout bounds report calibration counts levels margins
    reference spread _support _outer _wrap _low _high stand_in""".split()


class FlowPrior(AbstractFlowPrior):
    """A learned density as a Pyro distribution.

    Arguments:
        likelihood: the log-density in whitened coordinates; its parameters are frozen.
        loc: mean of the whitening, ``(D,)``, or of the shape of an event.
        scale_tril: Cholesky factor of the whitening, ``(D, D)``; for events that are no vectors,
            or vectors that are too long, scales of the shape of an event, or one.
        layout: names of the coordinates and variables; None for events that are no vectors.
        bounds: one ``(low, high)`` pair per coordinate, or ``Periodic`` or an ``Angle``; or None.
        report: how it was fitted, or None.
        calibration: how its density was chosen and how accurate it is, or None.
        transport: what carries noise to whitened draws, or None for the flow that the density is
            one of, on the grid that the density needs.
        margins: the maps of single coordinates before the whitening, or None.
        reference: some of the samples, for checks without the flow, or None.
        spread: how far flows of resampled samples are from this one, or None.
        validate_args: as in Pyro.

    Example:
        >>> import pyro_stad
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(400, 2, generator=generator)
        >>> prior = pyro_stad.fit(draws, names=["a", "b"], progress=False, budget="tiny")
        >>> prior.event_shape, prior.log_prob(torch.zeros(3, 2)).shape
        (torch.Size([2]), torch.Size([3]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        likelihood: AbstractLikelihood,
        loc: Tensor,
        scale_tril: Tensor,
        layout: Layout | None = None,
        bounds: Bounds | None = None,
        report: FitReport | None = None,
        calibration: Calibration | None = None,
        *,
        transport: AbstractInvertible | None = None,
        margins: Margins | None = None,
        reference: Reference | None = None,
        spread: Spread | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_likelihood(likelihood, loc.shape)
        _check_vectors(loc, layout=layout, bounds=bounds, margins=margins, spread=spread)
        # Frozen: jit refuses constants that require grad, and SVI would train the prior away.
        self.likelihood = likelihood = likelihood.requires_grad_(False).eval().freeze()
        transport = likelihood.transport() if transport is None else transport
        self.transport = transport.requires_grad_(False).eval()
        self.layout, self.bounds = layout, bounds and wind(bounds, None, None)
        self.report, self.calibration = report, calibration
        self.counts, self.levels = Counts(), Levels(likelihood, transport)
        self._support = support_of(bounds, loc)
        self.margins, self.reference, self.spread = margins, reference, spread
        bends: list[Any] = [] if margins is None else [margins]
        self._outer = outer_transforms(self.bounds, loc)
        # Made once: log_prob is called for every leapfrog step.
        self._wrap = self._outer[0] if self._outer and isinstance(self._outer[0], Wrap) else None
        self._low, self._high = open_box(bounds, loc)
        self.stand_in = functools.reduce(lambda x, part: part(x), [*bends, *self._outer], loc)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(loc.ndim)
        flow = FlowTransform(transport, likelihood)
        transforms = [flow, affine(loc, scale_tril), *bends, *self._outer]
        super().__init__(base, transforms, validate_args=validate_args)  # type: ignore[arg-type]

    @property
    def is_periodic(self) -> bool:
        """Whether a coordinate is an angle."""
        return self._wrap is not None

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The box of the bounds, or the real vectors; of an angle, the line, as in torch."""
        return self._support

    def expand(self, batch_shape: Any, _instance: FlowPrior | None = None) -> FlowPrior:
        """Return the same prior with another batch shape; nothing is solved or copied."""
        new = self._get_checked_instance(FlowPrior, _instance)
        for name in _SHARED:
            setattr(new, name, getattr(self, name))
        base = self.base_dist.expand(torch.Size(batch_shape))
        super(FlowPrior, new).__init__(base, self.transforms, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, shape ``(..., *event_shape)``.

        Deterministic, independent of batch mates, differentiable. Its error is that of the
        divergence, see ``surrogate_error``, and that of learning, see ``learning_error``. Points
        outside the support, and points whose solve fails, get -inf with a zero gradient and are
        counted in ``counts``.

        Raises:
            TypeError: if ``value`` is not a tensor.
            ValueError: for a wrong shape or device, and, with validation on, for NaN.
        """
        x = check_value(value, self.like)
        batch = x.shape[: x.ndim - self.like.ndim]
        shape = check_batch(batch, self.batch_shape)
        result = self._log_prob(x).reshape(batch)
        if self.batch_shape:
            result = result.expand(shape)  # after the solve: a batch shares one density
        return result.to(value.dtype) if value.is_floating_point() else result

    def _log_prob(self, value: Tensor) -> Tensor:
        """Return the log-densities of points ``(..., D)``, one after the other."""
        theta = value.reshape(-1, *self.like.shape)
        if len(theta) == 0:
            # Not a constant: the graph must reach an empty input too.
            return event_sum(theta)
        if is_transformed(theta):
            inside = self.inside(theta)
            log_prob = self._density(torch.where(beside(inside, theta), theta, self.stand_in))
            return torch.where(inside & torch.isfinite(log_prob), log_prob, -torch.inf)
        # Inside NUTS all is well nearly always, and a look at a sum is cheaper than masks.
        whole = self._all_finite(theta) and (self.bounds is None or self.inside(theta).all())
        if whole:
            log_prob = self._density(theta)
            if self._all_finite(log_prob):
                self.counts.points += len(theta)
                return log_prob
        elif self._validate_args:
            check_not_nan(value, self.names)
        return self._log_prob_where_possible(theta)

    def _log_prob_where_possible(self, theta: Tensor) -> Tensor:
        """Return the log-densities of rows ``theta``, shape ``(B, D)``, some of which have none.

        Those get -inf, and are counted.
        """
        inside = self.inside(theta)
        # A stand-in for bad rows keeps NaN out of the graph, and so out of the gradient; and out
        # of an adaptive solver. Which rows can't be solved, is known only after a try.
        with torch.no_grad():
            log_prob = self._density(torch.where(beside(inside, theta), theta, self.stand_in))
            good = inside & torch.isfinite(log_prob)
        self.counts.points += len(theta)
        self.counts.nonfinite += int((~inside).sum())
        self.counts.failed += int((inside & ~good).sum())
        if torch.is_grad_enabled() and theta.requires_grad:
            log_prob = self._density(torch.where(beside(good, theta), theta, self.stand_in))
        return torch.where(good, log_prob, -torch.inf)

    def _density(self, theta: Tensor) -> Tensor:
        """Return the log-density of rows that have one."""
        u, log_det = theta, self.transforms[1].log_det
        for transform in reversed(self._outer):
            y, u = u, transform.inv(u)
            log_det = log_det + transform.log_abs_det_jacobian(u, y)
        if self._wrap is None:
            return self._on_line(u) - log_det
        return torch.logsumexp(self._wrap.terms(self._on_line, u), 0) - log_det

    def _on_line(self, u: Tensor) -> Tensor:
        """Return the log-density of unbounded, unrolled rows ``u``, but for the whitening's."""
        whitening = self.transforms[1]
        if self.margins is None:
            return self.likelihood.log_prob_before(whitening, u)
        v, log_slope = self.margins.to_normal(u)
        return self.likelihood.log_prob_before(whitening, v) + log_slope

    @staticmethod
    def _all_finite(values: Tensor) -> bool:
        """Whether all are certainly finite: one NaN or infinity, and the sum is not."""
        return math.isfinite(values.detach().sum().item())

    def inside(self, theta: Tensor) -> Tensor:
        """Return which rows of ``theta``, shape ``(B, D)``, have a density."""
        # Open: at a bound the bijection is infinite. NaN and infinity are not inside either.
        return ((theta > self._low) & (theta < self._high)).flatten(1).all(-1)

    def images(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whitened images ``(K, B, D)`` of rows, and their shares of the density."""
        u = self._to_line(theta)
        if self._wrap is None:
            white = self._from_line(u)
            return white[None], white.new_ones(1, len(white))
        share = torch.softmax(self._wrap.terms(self._on_line, u), 0)
        return self._from_line(self._wrap.images(u)[0]), share

    def _to_line(self, value: Tensor) -> Tensor:
        for transform in reversed(self._outer):
            value = transform.inv(value)
        return value

    def _from_line(self, u: Tensor) -> Tensor:
        return self.transforms[1].inv(u if self.margins is None else self.margins.inv(u))

    def whiten(self, value: Tensor) -> Tensor:
        """Carry points ``(..., D)`` to the whitened, unbounded coordinates of the likelihood.

        An angle goes to its principal image, nearest to where the flow has its middle.
        """
        return self._from_line(self._to_line(value))

    def unroll(self, value: Tensor, generator: torch.Generator) -> Tensor:
        """Carry samples ``(N, D)`` to a sample of the law that the flow has learned, whitened.

        That is ``whiten``, but for angles, which go to one of their images by chance.
        """
        u = self._to_line(value)
        return self._from_line(u if self._wrap is None else self._wrap.unroll(u, generator))

    def wrap(self, value: Tensor) -> Tensor:
        """Return points ``(..., D)`` with every angle in the period in which draws are."""
        return value if self._wrap is None else self._wrap(value)

    def truncate(self, region: Region, *, seed: int = 0) -> TruncatedPrior:
        """Return the prior kept to a region, and normalised there.

        Arguments:
            region: a function from tensors by variable, as ``unpack`` gives them, to a bool tensor
                that says which points are inside: ``lambda t: t["w0"] + t["wa"] < 0``.
            seed: of the 100,000 draws from which the mass inside is counted.

        Raises:
            TypeError: if ``region`` is no function, or does not return a bool tensor.
            ValueError: if no draw of the prior is inside, or for a wrong shape.
        """
        return truncate(self, region, seed)

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into the variables that came in, by name."""
        if self.layout is None:
            raise ValueError(f"events of shape {tuple(self.event_shape)} have no names")
        return self.layout.unpack(value)

    @own_context()
    def to(self, target: torch.device | str | torch.dtype) -> FlowPrior:
        """Return a copy on another device or in another dtype; the batch shape is kept."""
        # A module moves itself; one copy of all, for transport and likelihood share a field.
        likelihood, transport = copy.deepcopy((self.likelihood, self.transport))
        new = self.like_this(
            lambda part: copy.deepcopy(part).to(target), likelihood.to(target),
            transport.to(target), self.calibration,
        )  # fmt: skip
        new = new.expand(self.batch_shape) if self.batch_shape else new
        new._validate_args = self._validate_args
        return new

    def with_likelihood(self, likelihood: AbstractLikelihood) -> FlowPrior:
        """Return a prior with the same whitening, names and bounds, and another likelihood.

        It comes without a calibration: what was measured was the other one. This is the way to
        another divergence, solver or estimator, such as
        ``prior.with_likelihood(prior.likelihood.replace(divergence=Hutchinson(4)))``. Draws are
        made as before, but for those of another field.
        """
        check_likelihood(likelihood, self.like.shape)
        if likelihood.field is self.likelihood.field:
            return self.like_this(lambda part: part, likelihood, self.transport, None)
        new = self.like_this(lambda part: part, likelihood, likelihood.transport(), None)
        new.spread = None  # that of another flow
        return new

    def exact(self) -> FlowPrior:
        """Return the exact twin: the same flow, with the exact trace on the density's own grid.

        That is what all other ways to the density are calibrated against.
        """
        twin = self.with_likelihood(exact_twin(self.likelihood))
        return twin.expand(self.batch_shape) if self.batch_shape else twin

    def like_this(
        self,
        moved: Callable[[Any], Any],
        likelihood: AbstractLikelihood,
        transport: AbstractInvertible,
        calibration: Calibration | None,
    ) -> FlowPrior:
        """Return a prior with the same other parts, each of them ``moved``."""
        old = self.stored()
        others = ("loc", "scale_tril", "margins", "reference", "spread")
        parts: dict[str, Any] = {name: getattr(old, name) for name in others}
        parts = {name: part if part is None else moved(part) for name, part in parts.items()}
        parts |= {"likelihood": likelihood, "transport": transport, "calibration": calibration}
        return FlowPrior(**{**old._asdict(), **parts})

    @own_context()
    def calibrate(
        self,
        samples: Tensor,
        *,
        tolerance: float | None = None,
        reference: str = "data",
        seed: int = 0,
    ) -> FlowPrior:
        """Return a prior whose density is the cheapest that is accurate enough on ``samples``.

        ``fit`` has done this on samples that it held out; do it again for another tolerance, or
        for samples from where the prior will be used.

        Arguments:
            samples: points with shape ``(N, D)``, at least 20, which the fit has not seen.
            tolerance: largest standard deviation of log_prob against the exact trace, in nats;
                None as in ``FitSettings``.
            reference: ``"data"`` also takes a density that describes the samples as well as the
                exact trace does, to ``tolerance ** 2 / 2`` nat in the mean and to its error, at
                the most as much again; ``"exact"`` does not.
            seed: of everything random.

        Raises:
            TypeError, ValueError: for samples that can't be used, or no positive tolerance.

        Warns:
            AccuracyWarning: if the tolerance is not met, or the normaliser is off.
        """
        return calibrated(self, samples, tolerance, reference, seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prior to ``path``; see ``pyro_stad.load``."""
        write(self.stored(), path)

    def stored(self) -> StoredPrior:
        """Return what the prior consists of."""
        affine = self.transforms[1]
        return StoredPrior(
            self.likelihood, affine.loc, affine.scale_tril, self.layout, self.bounds, self.report,
            self.calibration, self.transport, self.margins, self.reference, self.spread,
        )  # fmt: skip

    def summary(self) -> str:
        """Return what the prior is, how it was fitted and how accurate it is, as text."""
        return described(self)

    def __repr__(self) -> str:
        likelihood, error = self.likelihood, ""
        size = len(self.like) if self.like.ndim == 1 else tuple(self.like.shape)
        if self.calibration is not None:
            error = f", sd against exact {self.calibration.audit.sd:.2g} nat"
        return (
            f"FlowPrior(D={size}, batch_shape={tuple(self.batch_shape)}, "
            f"{type(likelihood.field).__name__}, {likelihood!r}{error})"
        )


def _check_vectors(loc: Tensor, **parts: Any) -> None:
    """Refuse what only vectors can have, where events are none; and vectors without names."""
    if loc.ndim == 1:
        if parts["layout"] is None:
            raise ValueError("`layout` is missing: a prior of vectors has names")
        return
    found = [name for name, part in parts.items() if part is not None]
    if found:
        raise ValueError(
            f"events of shape {tuple(loc.shape)} can't have {found}: those are for vectors"
        )
