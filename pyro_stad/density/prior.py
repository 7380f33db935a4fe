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
import os
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_stad._checks import check_finite, check_value, is_transformed
from pyro_stad.data import Bounds, Layout, Standardise, support_of
from pyro_stad.density.flow import FlowTransform
from pyro_stad.density.report import FitReport
from pyro_stad.likelihood import AbstractLikelihood

__all__ = ["Counts", "FlowPrior"]


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
        report: how it was fitted and how accurate it is, or None.
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
        *,
        validate_args: bool | None = None,
    ) -> None:
        _check_likelihood(likelihood, len(loc))
        # Frozen: jit refuses constants that require grad, and SVI would train the prior away.
        self.likelihood = likelihood.requires_grad_(False).eval()
        self.layout, self.bounds, self.report = layout, bounds, report
        self.counts = Counts()
        self._support = support_of(bounds, loc)
        transforms: list[Any] = [FlowTransform(self.likelihood), Standardise(loc, scale_tril)]
        if bounds is not None:
            transforms.append(biject_to(self._support))
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        # Made once: log_prob is called for every leapfrog step.
        sides = bounds or ((-torch.inf, torch.inf),) * len(loc)
        self._low, self._high = (torch.tensor(side).to(loc) for side in zip(*sides))
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
        parts = ("likelihood", "layout", "bounds", "report", "counts")
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
        divergence, see ``summary()``. Points outside the support, and points whose solve fails,
        get -inf with a zero gradient and are counted in ``counts``.

        Raises:
            TypeError: if ``value`` is not a tensor.
            ValueError: for a wrong shape or device, and, with validation on, for NaN.
        """
        x = check_value(value, len(self.names), self._like)
        if self._validate_args and not is_transformed(x):
            check_finite(x, self.names)
        shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        log_prob = self._log_prob(x.reshape(-1, x.shape[-1]))
        # Broadcast after the solve: expanded batches share one density.
        result = log_prob.reshape(x.shape[:-1]).expand(shape)
        return result.to(value.dtype) if value.is_floating_point() else result

    def _log_prob(self, theta: Tensor) -> Tensor:
        """Return the log-density of rows ``theta``, shape ``(B, D)``."""
        if len(theta) == 0:
            # Not a constant: the graph must reach an empty input too.
            return theta.sum(-1)
        # Open: at a bound the bijection is infinite. NaN and infinity are not inside either.
        inside = ((theta > self._low) & (theta < self._high)).all(-1)
        # A stand-in for bad rows keeps NaN out of the graph, and so out of the gradient.
        safe = torch.where(inside[:, None], theta, self._stand_in)
        flow, *outer = self.transforms
        x, log_det = safe, torch.zeros_like(safe[:, 0])
        for transform in reversed(outer):
            y, x = x, transform.inv(x)
            log_det = log_det + transform.log_abs_det_jacobian(x, y)
        log_prob = flow.likelihood.log_prob(x) - log_det
        solved = torch.isfinite(log_prob)
        if not is_transformed(theta):
            self._count(inside, solved)
            if safe.requires_grad and not bool(solved.all()):
                safe.register_hook(lambda grad: torch.where(solved[:, None], grad, 0.0))
        return torch.where(inside & solved, log_prob, -torch.inf)

    def _count(self, inside: Tensor, solved: Tensor) -> None:
        self.counts.points += len(inside)
        self.counts.nonfinite += int((~inside).sum())
        self.counts.failed += int((inside & ~solved).sum())

    def tail_probability(self, value: Tensor) -> Tensor:
        """Return how far out ``value`` lies, shape ``(...)``: the chance of a larger noise norm.

        Values below 0.001 mean that the network has hardly seen such points; the distilled
        divergence, and with it ``log_prob``, is not to be trusted there.

        Arguments:
            value: points with shape ``(..., D)``.
        """
        x = check_value(value, len(self.names), self._like).reshape(-1, len(self.names))
        with torch.no_grad():
            for transform in reversed(self.transforms):
                x = transform.inv(x)
            half = x.new_tensor(0.5 * x.shape[-1])
            tail = torch.special.gammaincc(half, 0.5 * x.square().sum(-1))
        return tail.reshape(value.shape[:-1])

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into the variables that came in, by name."""
        return self.layout.unpack(value)

    def to(self, target: torch.device | str | torch.dtype) -> FlowPrior:
        """Return a copy on another device or in another dtype; the batch shape is kept."""
        new = FlowPrior(
            copy.deepcopy(self.likelihood).to(target),
            self.transforms[1].loc.to(target),
            self.transforms[1].scale_tril.to(target),
            self.layout,
            self.bounds,
            self.report,
        )
        new = new.expand(self.batch_shape) if self.batch_shape else new
        new._validate_args = self._validate_args
        return new

    def with_likelihood(self, likelihood: AbstractLikelihood) -> FlowPrior:
        """Return a prior with the same whitening, names and bounds, and another likelihood.

        It comes without a report: what was audited was the other one. This is the way to another
        divergence, solver or estimator, such as the exact trace:
        ``prior.with_likelihood(FlowODE(prior.likelihood.field, Exact(), RK4(32)))``.
        """
        affine = self.transforms[1]
        return FlowPrior(likelihood, affine.loc, affine.scale_tril, self.layout, self.bounds)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prior to ``path``; see ``pyro_stad.load``."""
        from pyro_stad.density.save import save_prior

        save_prior(self, path)

    def summary(self) -> str:
        """Return what the prior is, how it was fitted and how accurate it is, as text."""
        lines = [repr(self), f"  parameters: {', '.join(self.names)}"]
        if self.bounds is not None:
            lines.append(f"  bounds: {dict(zip(self.names, self.bounds))}")
        lines.append("  not audited" if self.report is None else self.report.text())
        return "\n".join(lines)

    def __repr__(self) -> str:
        likelihood, error = self.likelihood, ""
        if self.report is not None:
            error = f", sd against exact {self.report.audit.sd:.2g} nat"
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
