r"""``FlowPrior``: samples, learned, as a distribution for Pyro.

.. math::
    z \sim N(0, I_D), \qquad x = \mathrm{flow}(z), \qquad u = \mu + L x, \qquad \theta = b(u),

with the whitening :math:`(\mu, L)` and, for bounded parameters, the bijection b. A prior is a
``TransformedDistribution``, so that Pyro's ``TransformReparam`` splits it; its ``log_prob`` takes
one solve for the state and the log-determinant, where the stock one would take two.

Shapes follow Pyro: ``sample_shape + batch_shape + event_shape`` with ``event_shape == (D,)``.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_stad._checks import (
    check_batch,
    check_choice,
    check_finite,
    check_not_nan,
    check_positive,
    check_seed,
    check_value,
    is_transformed,
)
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.data import Batches, Bounds, Layout, Standardise, support_of
from pyro_stad.density.flow import FlowTransform
from pyro_stad.density.report import FitReport
from pyro_stad.density.tail import noise_tail
from pyro_stad.divergence.distil import cloud_for
from pyro_stad.likelihood import REFERENCES, AbstractLikelihood, Calibration, calibrate
from pyro_stad.likelihood.calibrate import disagreement

__all__ = ["Counts", "FlowPrior"]

_FEWEST = 20  # points for a calibration; the 95 percent bound needs as many


@dataclass
class Counts:
    """Points that ``log_prob`` has seen; shared by a prior and its expansions.

    Attributes:
        points: points in all.
        nonfinite: points given as NaN or infinity, or outside the support; they got -inf.
        failed: points whose solve was not finite; they got -inf.
    """

    points: int = 0
    nonfinite: int = 0
    failed: int = 0


class FlowPrior(dist.TransformedDistribution, dist.TorchDistribution):
    """A learned density as a Pyro distribution.

    Arguments:
        likelihood: flow, divergence and solver, in whitened coordinates; its parameters are
            frozen.
        loc: mean of the whitening with shape ``(D,)``.
        scale_tril: Cholesky factor of the whitening with shape ``(D, D)``.
        layout: names of the coordinates and variables.
        bounds: one ``(low, high)`` pair per coordinate, or None.
        report: how it was fitted, or None.
        calibration: how its density was chosen and how accurate it is, or None.
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
        layout: Layout,
        bounds: Bounds | None = None,
        report: FitReport | None = None,
        calibration: Calibration | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        _check_likelihood(likelihood, len(loc))
        # Frozen: jit refuses constants that require grad, and SVI would train the prior away.
        self.likelihood = likelihood.requires_grad_(False).eval()
        self.layout, self.bounds = layout, bounds
        self.report, self.calibration = report, calibration
        self.counts = Counts()
        self._support = support_of(bounds, loc)
        transforms: list[Any] = [FlowTransform(self.likelihood), Standardise(loc, scale_tril)]
        if bounds is not None:
            transforms.append(biject_to(self._support))
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        # Made once: log_prob is called for every leapfrog step.
        sides = bounds or ((-torch.inf, torch.inf),) * len(loc)
        self._low, self._high = (
            torch.tensor(side, dtype=torch.float64, device="cpu").to(loc) for side in zip(*sides)
        )
        # Next to zero, numbers lose their digits and one over them is infinite, and a gradient too.
        below_normal = torch.nextafter(*loc.new_tensor([torch.finfo(loc.dtype).tiny, 0.0]))
        self._low = torch.where(self._low == 0, below_normal, self._low)
        self._high = torch.where(self._high == 0, -below_normal, self._high)
        self._stand_in = loc if bounds is None else transforms[2](loc)
        super().__init__(base, transforms, validate_args=validate_args)  # type: ignore[arg-type]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return self.layout.names

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The box of the bounds, or the real vectors."""
        return self._support

    @property
    def _like(self) -> Tensor:
        """A tensor of the prior's dtype and device."""
        return self.transforms[1].loc

    def expand(self, batch_shape: Any, _instance: FlowPrior | None = None) -> FlowPrior:
        """Return the same prior with another batch shape; nothing is solved or copied."""
        new = self._get_checked_instance(FlowPrior, _instance)
        parts = ("likelihood", "layout", "bounds", "report", "calibration", "counts")
        made_once = ("_support", "_low", "_high", "_stand_in")
        for name in (*parts, *made_once):
            setattr(new, name, getattr(self, name))
        base = self.base_dist.expand(torch.Size(batch_shape))
        super(FlowPrior, new).__init__(base, self.transforms, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, shape ``(..., D)``.

        Deterministic, independent of batch mates, differentiable. Its error is that of the
        divergence, see ``summary()`` and ``log_prob_error``. Points outside the support, and points
        whose solve fails, get -inf with a zero gradient and are counted in ``counts``.

        Raises:
            TypeError: if ``value`` is not a tensor.
            ValueError: for a wrong shape or device, and, with validation on, for NaN.
        """
        x = check_value(value, len(self.names), self._like)
        shape = check_batch(x.shape[:-1], self.batch_shape)
        result = self._log_prob(x).reshape(x.shape[:-1])
        if self.batch_shape:
            result = result.expand(shape)  # after the solve: a batch shares one density
        return result.to(value.dtype) if value.is_floating_point() else result

    def _log_prob(self, value: Tensor) -> Tensor:
        """Return the log-densities of points ``(..., D)``, one after the other."""
        theta = value.reshape(-1, value.shape[-1])
        if len(theta) == 0:
            # Not a constant: the graph must reach an empty input too.
            return theta.sum(-1)
        if is_transformed(theta):
            inside = self._inside(theta)
            log_prob = self._density(torch.where(inside[:, None], theta, self._stand_in))
            return torch.where(inside & torch.isfinite(log_prob), log_prob, -torch.inf)
        # Inside NUTS all is well nearly always, and a look at a sum is cheaper than masks.
        whole = self._all_finite(theta) and (self.bounds is None or self._inside(theta).all())
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
        inside = self._inside(theta)
        # A stand-in for bad rows keeps NaN out of the graph, and so out of the gradient; and out
        # of an adaptive solver. Which rows can't be solved, is known only after a try.
        with torch.no_grad():
            log_prob = self._density(torch.where(inside[:, None], theta, self._stand_in))
            good = inside & torch.isfinite(log_prob)
        self.counts.points += len(theta)
        self.counts.nonfinite += int((~inside).sum())
        self.counts.failed += int((inside & ~good).sum())
        if torch.is_grad_enabled() and theta.requires_grad:
            log_prob = self._density(torch.where(good[:, None], theta, self._stand_in))
        return torch.where(good, log_prob, -torch.inf)

    def _density(self, theta: Tensor) -> Tensor:
        """Return the log-density of rows that have one."""
        flow, *outer = self.transforms
        x, log_det = theta, None
        for transform in reversed(outer):
            y, x = x, transform.inv(x)
            step = transform.log_abs_det_jacobian(x, y)
            log_det = step if log_det is None else log_det + step
        return flow.likelihood.log_prob(x) - log_det

    @staticmethod
    def _all_finite(values: Tensor) -> bool:
        """Whether all are certainly finite: one NaN or infinity, and the sum is not."""
        return math.isfinite(values.detach().sum().item())

    def _inside(self, theta: Tensor) -> Tensor:
        """Return which rows of ``theta``, shape ``(B, D)``, have a density."""
        # Open: at a bound the bijection is infinite. NaN and infinity are not inside either.
        return ((theta > self._low) & (theta < self._high)).all(-1)

    def tail_probability(self, value: Tensor) -> Tensor:
        """Return how far out ``value`` lies, shape ``(...)``: the chance of a larger noise norm.

        Values below 0.001 (``density.FLAGGED``) mean that the network has hardly seen such points;
        the distilled divergence, and with it ``log_prob``, is not to be trusted there. What has no
        density, such as points outside the bounds, lies beyond everything: zero.

        Arguments:
            value: points with shape ``(..., D)``.
        """
        x = check_value(value, len(self.names), self._like).reshape(-1, len(self.names))
        with torch.no_grad():
            inside = self._inside(x)
            safe = torch.where(inside[:, None], x, self._stand_in)
            tail = noise_tail(self.likelihood.pull(self.whiten(safe)))
            tail = torch.where(inside & ~torch.isnan(tail), tail, 0.0)
        return tail.reshape(value.shape[:-1])

    def whiten(self, value: Tensor) -> Tensor:
        """Carry points ``(..., D)`` to the whitened, unbounded coordinates of the likelihood."""
        for transform in reversed(self.transforms[1:]):
            value = transform.inv(value)
        return value

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into the variables that came in, by name."""
        return self.layout.unpack(value)

    @own_context()
    def to(self, target: torch.device | str | torch.dtype) -> FlowPrior:
        """Return a copy on another device or in another dtype; the batch shape is kept."""
        new = FlowPrior(
            copy.deepcopy(self.likelihood).to(target),
            self.transforms[1].loc.to(target),
            self.transforms[1].scale_tril.to(target),
            self.layout,
            self.bounds,
            self.report,
            self.calibration,
        )
        new = new.expand(self.batch_shape) if self.batch_shape else new
        new._validate_args = self._validate_args
        return new

    def with_likelihood(self, likelihood: AbstractLikelihood) -> FlowPrior:
        """Return a prior with the same whitening, names and bounds, and another likelihood.

        It comes without a calibration: what was measured was the other one. This is the way to
        another divergence, solver or estimator, such as the exact trace:
        ``prior.with_likelihood(FlowODE(prior.likelihood.field, Exact(), RK4(32)))``.
        """
        affine = self.transforms[1]
        return FlowPrior(
            likelihood, affine.loc, affine.scale_tril, self.layout, self.bounds, self.report
        )

    @own_context()
    def calibrate(
        self,
        samples: Tensor,
        *,
        tolerance: float = 0.1,
        reference: str = "data",
        seed: int = 0,
    ) -> FlowPrior:
        """Return a prior whose density is the cheapest that is accurate enough on ``samples``.

        ``fit`` has done this on samples that it held out; do it again for another tolerance, or
        for samples from where the prior will be used.

        Arguments:
            samples: points with shape ``(N, D)``, at least 20, which the fit has not seen.
            tolerance: largest standard deviation of log_prob against the exact trace, in nats.
            reference: ``"data"`` also takes a density that describes the samples as well as the
                exact trace does, to ``tolerance ** 2 / 2`` nat in the mean; ``"exact"`` does not.
            seed: of everything random.

        Raises:
            TypeError, ValueError: for samples that can't be used, or no positive tolerance.
        """
        check_positive(tolerance, "tolerance", " of nats")
        check_choice(reference, "reference", REFERENCES)
        seed = check_seed(seed)
        points = check_value(samples, len(self.names), self._like, argument="samples")
        points = points.reshape(-1, len(self.names))
        check_finite(points, self.names, argument="samples")
        distinct, outside = len(points.unique(dim=0)), int((~self.support.check(points)).sum())
        if distinct < _FEWEST or outside:
            raise ValueError(
                f"`samples` must be at least {_FEWEST} distinct points inside the bounds; got "
                f"{len(points)} points, {distinct} of them distinct and {outside} outside"
            )
        points = self.whiten(points)
        source = generator(seed, "calibration", points.device)
        cloud = cloud_for(self.likelihood.field, Batches(points), source)
        chosen, calibration = calibrate(
            self.likelihood, points, cloud, tolerance, source, reference=reference
        )
        if math.isnan(calibration.audit.sd):
            raise ValueError(
                "no way to the density is finite at the samples of the calibration; are they from "
                "the law that was fitted?"
            )
        new = self.with_likelihood(chosen)
        new.calibration = calibration
        return new.expand(self.batch_shape) if self.batch_shape else new

    def log_prob_error(self, value: Tensor) -> Tensor:
        """Return a bound on the error of ``log_prob``, shape ``(...)``, in nats.

        It bounds the difference from the exact trace of the same flow, for 95 percent of data like
        those of the calibration, and grows where two ways to the density disagree. How far the flow
        itself is from the law of the samples, it can't know.

        Arguments:
            value: points with shape ``(..., D)``. Outside the bounds the bound is infinite.

        Raises:
            ValueError: if the prior is not calibrated, or for a wrong shape or device.
        """
        if self.calibration is None:
            raise ValueError("this prior is not calibrated; use prior.calibrate(samples)")
        x = check_value(value, len(self.names), self._like).reshape(-1, len(self.names))
        with torch.no_grad():
            bound = self.calibration.bound.at(disagreement(self.likelihood, self.whiten(x)))
            # Where log_prob is -inf, nothing is known.
            bound = torch.where(self._inside(x) & torch.isfinite(bound), bound, torch.inf)
        return bound.reshape(value.shape[:-1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prior to ``path``; see ``pyro_stad.load``."""
        from pyro_stad.density.save import save_prior

        save_prior(self, path)

    def summary(self) -> str:
        """Return what the prior is, how it was fitted and how accurate it is, as text."""
        lines = [repr(self), f"  parameters: {', '.join(self.names)}"]
        if self.bounds is not None:
            lines.append(f"  bounds: {dict(zip(self.names, self.bounds))}")
        lines.append("  not fitted here" if self.report is None else self.report.text())
        known = self.calibration
        lines.append("  not calibrated" if known is None else known.text())
        return "\n".join(lines)

    def __repr__(self) -> str:
        likelihood, error = self.likelihood, ""
        if self.calibration is not None:
            error = f", sd against exact {self.calibration.audit.sd:.2g} nat"
        return (
            f"FlowPrior(D={len(self.names)}, batch_shape={tuple(self.batch_shape)}, "
            f"{type(likelihood.field).__name__}, {likelihood!r}{error})"
        )


def _check_likelihood(likelihood: Any, features: int) -> None:
    """Refuse what is not the density of ``features`` coordinates, which could be broadcast."""
    if not isinstance(likelihood, AbstractLikelihood):
        raise TypeError(
            f"`likelihood` must be FlowODE or SteinPath; got {type(likelihood).__name__}"
        )
    if likelihood.field.features != features:
        raise ValueError(
            f"`likelihood` has a field of {likelihood.field.features} features, the prior has "
            f"{features} coordinates"
        )
