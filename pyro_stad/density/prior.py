r"""``FlowPrior``: samples, learned, as a distribution for Pyro.

.. math:: z \sim N(0, I), \quad x = \mathrm{flow}(z), \quad \theta = \mathrm{coordinates}^{-1}(x),

with the flow in whitened, unbounded coordinates (:mod:`pyro_stad.density.coordinates`). A prior is
a ``TransformedDistribution``, so that Pyro's ``TransformReparam`` splits it; its ``log_prob`` asks
the likelihood once, where the stock one would solve twice.

Shapes follow Pyro: ``sample_shape + batch_shape + event_shape`` with ``event_shape == (D,)`` for
vectors.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_stad._checks import check_batch, check_not_nan, check_value
from pyro_stad.calibrate import Calibration, Sampling
from pyro_stad.data import (
    Bounds,
    Layout,
    Margins,
    affine,
    wind,
)
from pyro_stad.data.reference import Reference
from pyro_stad.density.coordinates import Coordinates
from pyro_stad.density.counts import Counts
from pyro_stad.density.level import Levels
from pyro_stad.density.remade import Remade
from pyro_stad.density.rows import RowDensity
from pyro_stad.density.summary import summarise
from pyro_stad.density.transform import FlowTransform, check_likelihood, check_transport
from pyro_stad.learn.spread import Spread
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.report.fit import FitReport
from pyro_stad.transport import AbstractInvertible

__all__ = ["FlowPrior"]

# What priors of other batch shapes have in common.
_SHARED = """likelihood transport layout bounds report calibration counts levels margins
    reference spread sampling coordinates stand_in _rows""".split()


class FlowPrior(Remade):
    """A learned density as a Pyro distribution.

    Arguments:
        likelihood: the log-density in whitened coordinates. One that is still trained is copied,
            and the prior's own is not.
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
        sampling: what draws, and how it was chosen, or None for the transport.
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
        sampling: Sampling | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_likelihood(likelihood, loc.shape)
        _check_vectors(loc, layout=layout, bounds=bounds, margins=margins, spread=spread)
        transport = likelihood.transport() if transport is None else transport
        check_transport(transport)
        likelihood, transport = _settled(likelihood, transport)
        self.likelihood, self.transport = likelihood.freeze(), transport
        self.layout, self.bounds = layout, bounds and wind(bounds, None, None)
        self.report, self.calibration = report, calibration
        self.counts, self.levels = Counts(), Levels(self.likelihood, transport)
        self.coordinates = coordinates = Coordinates(affine(loc, scale_tril), self.bounds, margins)
        self.margins, self.reference, self.spread = margins, reference, spread
        self.sampling = sampling
        self.stand_in = coordinates.stand_in
        self._rows = RowDensity(self.likelihood, coordinates, self.counts)
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(loc.ndim)
        transforms = [FlowTransform(transport, self.likelihood), *coordinates.transforms]
        super().__init__(base, transforms, validate_args=validate_args)  # type: ignore[arg-type]

    @property
    def is_periodic(self) -> bool:
        """Whether a coordinate is an angle."""
        return self.coordinates.wrap is not None

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The box of the bounds, or the real vectors; of an angle, the line, as in torch."""
        return self.coordinates.support

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
        refuse = partial(check_not_nan, x, self.names) if self._validate_args else None
        result = self._rows(x.reshape(-1, *self.like.shape), refuse).reshape(batch)
        if self.batch_shape:
            result = result.expand(shape)  # after the solve: a batch shares one density
        return result.to(value.dtype) if value.is_floating_point() else result

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Return draws, and their log-densities, for the price of one solve.

        A density that is solved for comes with the draws, on its own grid, as for a flow with an
        exact trace; one that is a network costs a call of it. Of angles it is a sum over images,
        which one solve does not know, and is computed afterwards.

        Returns:
            Draws ``sample_shape + batch_shape + event_shape``, and ``sample_shape + batch_shape``.
        """
        z = self.base_dist.rsample(torch.Size(sample_shape))
        batch = z.shape[: z.ndim - self.like.ndim]
        x, log_prob = self._white_draws(z)
        for transform in self.transforms[1:]:
            before, x = x, transform(x)
            log_prob = log_prob - _log_det(transform, before, x, len(batch))
        if self.is_periodic:
            log_prob = self.log_prob(x)
        return x, log_prob

    def _white_draws(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return whitened draws, and log-densities, of noise ``(*batch, *event_shape)``."""
        x, log_prob = self.likelihood.push_and_log_prob(z.reshape(-1, *self.like.shape))
        return x.reshape(z.shape), log_prob.reshape(z.shape[: z.ndim - self.like.ndim])

    def white_log_prob(self, white: Tensor) -> Tensor:
        """Return the log-density of points in whitened coordinates, ``(..., D)``: ``(...)``."""
        batch = white.shape[: white.ndim - self.like.ndim]
        found = self.likelihood.log_prob(white.reshape(-1, *self.like.shape)).reshape(batch)
        return found.expand(check_batch(batch, self.batch_shape))

    def inside(self, theta: Tensor) -> Tensor:
        """Return which rows of ``theta``, shape ``(B, *event_shape)``, have a density."""
        return self.coordinates.inside(theta)

    def images(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the whitened images ``(K, B, ...)`` of rows, and their shares of the density."""
        return self.coordinates.images(self.likelihood, theta)

    def whiten(self, value: Tensor) -> Tensor:
        """Carry points ``(..., D)`` to the whitened, unbounded coordinates of the likelihood.

        An angle goes to its principal image, nearest to where the flow has its middle.
        """
        return self.coordinates.whiten(value)

    def unroll(self, value: Tensor, generator: torch.Generator) -> Tensor:
        """Carry samples ``(N, D)`` to a sample of the law that the flow has learned, whitened.

        That is ``whiten``, but for angles, which go to one of their images by chance.
        """
        return self.coordinates.unroll(value, generator)

    def wrap(self, value: Tensor) -> Tensor:
        """Return points ``(..., D)`` with every angle in the period in which draws are."""
        wrap = self.coordinates.wrap
        return value if wrap is None else wrap(value)

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into the variables that came in, by name."""
        if self.layout is None:
            raise ValueError(f"events of shape {tuple(self.event_shape)} have no names")
        return self.layout.unpack(value)

    def summary(self) -> str:
        """Return what the prior is, how it was fitted and how accurate it is, as text."""
        return summarise(self)

    def __repr__(self) -> str:
        likelihood, error = self.likelihood, ""
        size = len(self.like) if self.like.ndim == 1 else tuple(self.like.shape)
        if self.calibration is not None:
            error = f", sd against exact {self.calibration.audit.sd:.2g} nat"
        return (
            f"FlowPrior(D={size}, batch_shape={tuple(self.batch_shape)}, "
            f"{type(likelihood.field).__name__}, {likelihood!r}{error})"
        )


def _log_det(transform: Transform, before: Tensor, after: Tensor, batch: int) -> Tensor:
    """Return the log-determinant of a map of whole events, summed over what it does to parts."""
    found = transform.log_abs_det_jacobian(before, after)
    return found.flatten(batch).sum(-1) if found.ndim > batch else found


def _settled(
    likelihood: AbstractLikelihood, transport: AbstractInvertible
) -> tuple[AbstractLikelihood, AbstractInvertible]:
    """Return both with networks that are trained no more: copies, of one field, if they are.

    jit refuses constants that require a gradient, and SVI would train the prior away.
    """
    parts = nn.ModuleList([likelihood, transport])
    trained = any(parameter.requires_grad for parameter in parts.parameters())
    # What was made around networks that rest says that it is in training; it has no mode.
    if trained or any(module.training for module in likelihood.field.modules()):
        likelihood, transport = copy.deepcopy((likelihood, transport))
    for part in (likelihood, transport):
        part.requires_grad_(False).eval()
    return likelihood, transport


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
