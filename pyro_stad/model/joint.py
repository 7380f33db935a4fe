r"""A Pyro model as a log-density of unconstrained numbers: that of its x-space form.

Site by site, in the order of the model, an unconstrained vector z is carried into the support by
Pyro's bijection, :math:`\theta = b(z)`, and

.. math:: \log q(z) = \log p(y|\theta) + \log p(\theta) + \log|\det \partial\theta/\partial z| .

An angle has no such density: it is the same in every period, so that its integral is infinite.

Prior densities occur here, and with them the distilled divergence of a flow prior.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to

from pyro_stad._checks import is_transformed
from pyro_stad.density import FlowPrior, drawn_by_flow, find_flow, to_flow
from pyro_stad.model.sites import is_data, is_latent
from pyro_stad.model.vectorised import AbstractSetter, VectorisedModel

__all__ = ["JointDensity", "angles", "checked_joint"]


def angles(latent: list[Any]) -> list[str]:
    """Return the names of the latent sites with a periodic density on the line."""
    flows = {site["name"]: find_flow(site["fn"]) for site in latent}
    return [name for name, flow in flows.items() if flow is not None and flow.is_periodic]


class _FromReals(AbstractSetter):
    """Sets latent sites from unconstrained numbers, and keeps the log-determinants."""

    log_det: Any

    def value(self, name: str, fn: Any) -> Tensor:
        transform = biject_to(fn.support)
        z = self.take(transform.inverse_shape(fn.batch_shape + fn.event_shape))
        x = transform(z)
        step = transform.log_abs_det_jacobian(z, x)
        self.log_det = self.log_det + step.reshape(len(self.rows), -1).sum(-1)
        return x

    def __enter__(self) -> Any:
        self.log_det = 0.0
        return super().__enter__()

    def split(self) -> list[_FromReals]:
        return [_FromReals(row[None]) for row in self.rows]

    def join(self, parts: list[_FromReals]) -> None:
        self.log_det = torch.cat([part.log_det for part in parts])


class _ToReals(AbstractSetter):
    """Sets latent sites to given values, and keeps what they are unconstrained.

    Arguments:
        values: values of the sites by name, each ``(N, ...)``.
    """

    def __init__(self, values: dict[str, Tensor], rows: Tensor) -> None:
        super().__init__(rows)
        self.values = values

    def __enter__(self) -> Any:
        self.found: list[Tensor] = []
        return super().__enter__()

    def split(self) -> list[_ToReals]:
        each = range(len(self.rows))
        return [
            _ToReals({name: value[i] for name, value in self.values.items()}, self.rows[i : i + 1])
            for i in each
        ]

    def join(self, parts: list[_ToReals]) -> None:
        self.found = [torch.cat(site) for site in zip(*(part.found for part in parts))]

    def value(self, name: str, fn: Any) -> Tensor:
        x = self.values[name].reshape(fn.batch_shape + fn.event_shape)
        self.found.append(biject_to(fn.support).inv(x).reshape(len(self.rows), -1))
        return x


class JointDensity:
    """The log joint density of a model, of unconstrained numbers.

    Arguments:
        model: the model, vectorised.
        by_flow: whether flows are in the place of generators of one step.

    Attributes:
        calls: points at which it was evaluated; ``failed``: where the likelihood was NaN.
    """

    def __init__(self, model: VectorisedModel, *, by_flow: bool = False) -> None:
        self.model, self.by_flow, self.calls, self.failed = model, by_flow, 0, 0

    def _trace(self, setter: AbstractSetter, args: tuple[Any, ...] | None = None) -> list[Any]:
        with drawn_by_flow() if self.by_flow else nullcontext():
            return self.model.trace(setter, args)

    def unconstrain(self, values: dict[str, Tensor], args: tuple[Any, ...] | None = None) -> Tensor:
        """Return values of the latent sites, each ``(N, ...)``, as rows of numbers, ``(N, K)``.

        ``args`` take the place of the model's.
        """
        points = len(next(iter(values.values())))
        setter = _ToReals(values, self.model.like.new_zeros(points, 0))
        self._trace(setter, args)
        return torch.cat(setter.found, dim=-1)

    def values(self, z: Tensor, args: tuple[Any, ...] | None = None) -> dict[str, Tensor]:
        """Return the latent sites at ``z``, shape ``(N, K)``, each ``(N, ...)``.

        ``args`` take the place of the model's.
        """
        return self.model.values(self._trace(_FromReals(z), args), len(z))

    def flows(self, values: dict[str, Tensor]) -> dict[str, tuple[FlowPrior, Tensor]]:
        """Return the learned priors inside the laws of sites, with ``values`` in their coordinates.

        Each is ``(N, ..., D)``. A law may depend on other sites, and so differ from draw to draw.
        """
        points = len(next(iter(values.values())))
        found: dict[str, tuple[FlowPrior, Tensor]] = {}
        with torch.no_grad():
            traces = self._trace(_ToReals(values, self.model.like.new_zeros(points, 0)))
        for name in self.model.sites:
            flow = find_flow(traces[0].nodes[name]["fn"])
            if flow is not None:
                sites = [trace.nodes[name] for trace in traces]
                inner = torch.cat([to_flow(s["fn"], s["value"]).flatten() for s in sites])
                found[name] = (flow, inner.reshape(points, -1, *flow.like.shape))
        return found

    def pointwise(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the log-likelihoods of the observed sites at ``values``, each ``(N, ...)``."""
        points = len(next(iter(values.values())))
        with torch.no_grad():
            trace = self._trace(_ToReals(values, self.model.like.new_zeros(points, 0)))
            return self.model.log_probs(trace, points, is_data)

    def log_joint(self, z: Tensor, args: tuple[Any, ...] | None = None) -> Tensor:
        """Return the log joint density of rows ``z``, shape ``(N, K)``: ``(N,)``.

        What is not finite is minus infinity. ``args`` take the place of the model's.
        """
        prior, fit = self.parts(z, args)
        return _finite(prior + fit)

    def parts(self, z: Tensor, args: tuple[Any, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Return log-densities of the priors at rows ``z``, and log-likelihoods, each ``(N,)``.

        What is not finite is minus infinity.
        """
        self.calls += len(z)
        setter = _FromReals(z)
        trace = self._trace(setter, args)
        total = [setter.log_det, z.new_zeros(len(z))]
        for index, which in enumerate((is_latent, is_data)):
            for log_prob in self.model.log_probs(trace, len(z), which).values():
                total[index] = total[index] + log_prob.reshape(len(z), -1).sum(-1)
        if not is_transformed(total[1]):
            self.failed += int(torch.isnan(total[1]).sum())
        return _finite(total[0]), _finite(total[1])


def _finite(log_density: Tensor) -> Tensor:
    # Infinite is a density at a bound to which a parameter was rounded, as that of a Gamma law at
    # zero: its logarithm and that of the Jacobian are opposite, and what they add up to is lost.
    return torch.nan_to_num(log_density, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def checked_joint(model: VectorisedModel, *, by_flow: bool = False) -> JointDensity:
    """Return the joint density of a model of which nobody knows yet if it broadcasts over draws.

    Raises:
        ValueError: if the model draws random numbers of its own.

    Warns:
        UserWarning: if it does not broadcast, with how to make it.
    """
    density = JointDensity(model, by_flow=by_flow)
    model.loops = True  # as long as nobody knows better
    with torch.no_grad():
        first = {site["name"]: site["value"][None] for site in model.latent}
        size = density.unconstrain(first).shape[1]
    model.check_rows(density.log_joint, size)
    return density
