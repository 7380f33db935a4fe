r"""A Pyro model as a likelihood of standard normal noise.

Every latent site is a map of standard normal noise (:mod:`pyro_stad.model.maps`), site by site,
in the order of the model, so that priors may depend on earlier sites. With u all the noise of all
the sites,

.. math:: Z = \int p(y|\theta)\, p(\theta)\, d\theta = E_{u \sim N(0, I)}[L(u)],

in which no prior density occurs: of a flow prior it takes the flow, and never its divergence. A
prior that is cut to a region is the flow without the cut, and L is zero outside and divided by the
mass inside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_stad.density import (
    Extrapolation,
    OneStepGenerator,
    drawn_by_flow,
    extrapolation,
    find_cut,
    is_extrapolated,
    to_cut,
)
from pyro_stad.errors import EvidenceError
from pyro_stad.learn import joint_log_weights
from pyro_stad.model.learned import generators_in, learned_in, owed_to
from pyro_stad.model.maps import from_normal, noise_limit
from pyro_stad.model.sites import is_data, is_latent
from pyro_stad.model.vectorised import AbstractSetter, VectorisedModel

__all__ = ["LatentProblem", "NoMapError", "failures"]

_MOST_FAILED = 0.01


class NoMapError(ValueError):
    """A prior is no map of normal noise, so that the model has no form in noise."""


def failures(failed: int, calls: int) -> tuple[str, ...]:
    """Return what is to be said of likelihoods that were NaN.

    Raises:
        EvidenceError: if they are more than one percent.
    """
    if not failed:
        return ()
    text = f"{failed:,} of {calls:,} likelihoods were NaN, and count as zero"
    if failed > _MOST_FAILED * calls:
        raise EvidenceError(f"{text}: posterior and evidence would be those of another model")
    return (text,)


class _FromNormal(AbstractSetter):
    """Sets latent sites from standard normal noise."""

    def value(self, name: str, fn: Any) -> Tensor:
        return from_normal(fn, self.take(fn.batch_shape + fn.event_shape))

    def split(self) -> list[_FromNormal]:
        return [_FromNormal(row[None]) for row in self.rows]


class LatentProblem:
    """The log-likelihood of a model as a function of standard normal noise.

    Arguments:
        model: a Pyro model whose latent sites are continuous.
        args, kwargs: what it is called with.

    Attributes:
        model: the model, vectorised.
        size: number D of noise variables.
        flows: where flow priors take their noise.
        generators: which latent sites are drawn by a generator of one step.
        generated: the same problem by its generators, of one in which the flows of their priors
            are in place of them, see ``exactly``; else None.
        calls: likelihoods that were evaluated; ``failed``: those that were NaN.
        objects: number of data sets, one.

    Raises:
        TypeError: if the model is not callable.
        ValueError: if the model has no latent site, no observation, or a latent site that is
            discrete; the site is named.
        NoMapError: if a latent site is not a map of normal noise; also a ValueError.
    """

    objects = 1

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.model = VectorisedModel(model, args, kwargs)
        self.like = self.model.like
        self.data: tuple[str, ...] = (self.model.data,)
        self.size = sum(site["value"].numel() for site in self.model.latent)
        for site in self.model.latent:
            _check_map(site)
        self.generated: LatentProblem | None = None
        self.generators = generators_in(self.model.latent)
        self.flows = learned_in(self.model.latent, by_flow=False)
        self._limits = _limits(self.model.latent, self.like)
        self.calls = self.failed = 0
        self.model.check_rows(self.unchecked, self.size)

    def exactly(self) -> LatentProblem:
        """Return the problem with the flow of its prior in place of every generator.

        Both are of the same noise.
        """
        new = copy.copy(self)
        new.generated, new.calls, new.failed = self, 0, 0
        new.flows = learned_in(self.model.latent, by_flow=True)
        return new

    @property
    def _one_step(self) -> dict[str, OneStepGenerator]:
        """The generators that are in use."""
        return self.generators if self.generated is None else {}

    def unchecked(self, u: Tensor, args: tuple[Any, ...] | None = None) -> Tensor:
        """Return the log-likelihood of noise ``u``, shape ``(N, D)``, whatever it is: ``(N,)``."""
        trace = self._trace(u, args)
        sites = self.model.log_probs(trace, len(u), is_data)
        total = _log_cuts(trace, u)
        for log_prob in sites.values():
            total = total + log_prob.reshape(len(u), -1).sum(-1)
        return total

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Return the log-likelihood of noise ``u``, shape ``(N, D)``: ``(N,)``.

        NaN is counted, and minus infinity: a point at which the model can't be evaluated has no
        mass.

        Raises:
            ValueError: if it is infinite.
        """
        return self.checked(self.unchecked(u))

    def _trace(self, u: Tensor, args: tuple[Any, ...] | None = None) -> list[Any]:
        with nullcontext() if self.generated is None else drawn_by_flow():
            return self.model.trace(_FromNormal(u), args)

    def of_objects(self, which: Tensor, u: Tensor) -> Tensor:
        """Return the log-likelihoods of objects, of which there is one: ``(1, N)``."""
        return self.log_likelihood(u[0])[None]

    def checked(self, fit: Tensor) -> Tensor:
        """Count log-likelihoods, and replace NaN."""
        self.calls += fit.numel()
        self.failed += int(torch.isnan(fit).sum())
        if bool((fit == math.inf).any()):
            raise ValueError(
                "the log-likelihood is infinite at some draws from the prior, so that there is no "
                "evidence; let the model's observations have a scale above zero"
            )
        return torch.nan_to_num(fit, nan=-math.inf, neginf=-math.inf)

    def warnings(self) -> tuple[str, ...]:
        """Return what is to be said of generators, and of likelihoods that failed.

        Raises:
            EvidenceError: if more than one percent of likelihoods could not be evaluated.
        """
        told = tuple(owed_to(name, each) for name, each in self._one_step.items())
        # Those by the generators, on the way, are of this evidence too.
        parts = [self] if self.generated is None else [self, self.generated]
        failed, calls = sum(part.failed for part in parts), sum(part.calls for part in parts)
        return (*told, *failures(failed, calls))

    def network_calls(self, likelihoods: int) -> int | None:
        """Return the network calls, row by row, of so many likelihoods; None if they vary."""
        calls = [flow.calls for flow in self.flows]
        for name, each in self._one_step.items():
            calls.append(math.prod(self.model.sites[name]) // each.prior.like.numel())
        return None if None in calls else likelihoods * sum(calls)  # type: ignore[arg-type]

    def values_and_log_likelihoods(self, u: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the latent sites, and the log-likelihoods of the observed ones, at noise ``u``.

        Each has shape ``(N, ...)``; flows are solved once for both.
        """
        trace = self._trace(u)
        return self.model.values(trace, len(u)), self.model.log_probs(trace, len(u), is_data)

    def values(self, u: Tensor, args: tuple[Any, ...] | None = None) -> dict[str, Tensor]:
        """Return the latent sites at noise ``u``, shape ``(N, D)``, each ``(N, ...)``."""
        return self.model.values(self._trace(u, args), len(u))

    def white(self, u: Tensor) -> list[Tensor]:
        """Return what each flow makes of noise ``(N, D)``, in its whitened coordinates."""
        with torch.no_grad():
            return [flow.prior.transport.push(flow.noise(u)) for flow in self.flows]

    def extrapolations(self, u: Tensor, white: list[Tensor]) -> list[Extrapolation]:
        """Return how many rows of noise ``(N, D)`` are where each flow prior is extrapolated."""
        return [
            extrapolation(
                flow.prior.alarm_level,
                is_extrapolated(flow.prior, flow.noise(u), points).reshape(len(u), -1),
            )
            for flow, points in zip(self.flows, white)
        ]

    def learning(self, u: Tensor, white: list[Tensor]) -> Tensor | None:
        """Return log-weights ``(N, K)`` of noise ``(N, D)`` for the error of learning.

        None if a flow prior does not know its own, or there is none.
        """
        parts = []
        for flow, points in zip(self.flows, white):
            spread = flow.prior.spread
            if spread is None:
                return None
            with torch.no_grad():
                found = spread(points).reshape(len(u), -1, spread.members)
            parts.append((spread, found if flow.cut is None else found - flow.cut.log_shares()))
        return joint_log_weights(parts) if parts else None

    def unresolved(self, u: Tensor) -> Tensor:
        """Return which rows of noise are beyond what a law's own ``icdf`` resolves, ``(N,)``."""
        return (u > self._limits).any(-1)


def _limits(latent: list[Any], like: Tensor) -> Tensor:
    """Return the noise up to which each column is carried rightly, shape ``(D,)``."""
    each = [(site["value"].numel(), noise_limit(site["fn"], like.dtype)) for site in latent]
    return torch.cat([like.new_full((size,), limit) for size, limit in each])


def _log_cuts(traces: list[Any], u: Tensor) -> Tensor:
    """Return what the cuts of latent sites add to the log-likelihood at noise ``u``, ``(N,)``."""
    total = u.new_zeros(len(u))
    for name, site in traces[0].nodes.items():
        if site["type"] != "sample" or not is_latent(site) or find_cut(site["fn"]) is None:
            continue
        each = []
        for trace in traces:
            fn, value = trace.nodes[name]["fn"], trace.nodes[name]["value"]
            cut = find_cut(fn)
            if cut is not None:
                each.append(cut.log_cut(to_cut(fn, value)).flatten())
        total = total + torch.cat(each).reshape(len(u), -1).sum(-1)
    return total


def _check_map(site: Any) -> None:
    fn = site["fn"]
    try:
        with torch.no_grad():
            value = from_normal(fn, torch.zeros_like(site["value"]))
    except NotImplementedError as error:
        raise NoMapError(
            f"latent site {site['name']!r} has a {type(fn).__name__} for a prior, which is neither "
            "a map of normal noise nor has quantiles; write it as a transformed normal or uniform"
        ) from error
    if value.shape != site["value"].shape:
        raise NoMapError(
            f"latent site {site['name']!r} has shape {tuple(site['value'].shape)}, but its prior, "
            f"as a map of normal noise, {tuple(value.shape)}; a {type(fn).__name__} that changes "
            "the number of coordinates can't be used"
        )
