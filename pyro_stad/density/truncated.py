r"""Cuts that are no box: a learned prior kept to a region.

.. math:: p(\theta \,|\, R) = p(\theta)\, 1[\theta \in R] / M, \qquad M = P(\theta \in R),

where the mass M is the share of the flow's own draws inside. Draws come by rejection. It is no
transformed distribution, on purpose: Pyro's ``TransformReparam`` would take one apart into its
noise, and drop the cut without a word.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_stad._checks import check_seed
from pyro_stad._random import generator
from pyro_stad.calibrate import Calibration
from pyro_stad.density.base import AbstractFlowPrior, draws_of
from pyro_stad.density.counts import Counts
from pyro_stad.density.trust import Learned
from pyro_stad.files import StoredRegion, write
from pyro_stad.files.region import Mass
from pyro_stad.learn.spread import shifts

__all__ = ["Region", "TruncatedPrior", "check_region", "contains", "truncate"]

Region = Callable[[dict[str, Tensor]], Tensor]
Unpack = Callable[[Tensor], dict[str, Tensor]]

_DRAWS = 100_000
_PROBES = 500  # of either side, for the file and for members
_ROUND = 100_000
_MOST_TRIES = 100  # times as many draws as the mass says


def check_region(region: Any) -> None:
    """Raise ``TypeError`` unless ``region`` can be called."""
    if not callable(region):
        raise TypeError(f"`region` must be a function of named tensors; got {region!r}")


def contains(region: Region, unpack: Unpack, value: Tensor) -> Tensor:
    """Return which points ``(..., D)`` are inside ``region``, shape ``(...)``.

    Raises:
        TypeError: if the region does not return a bool tensor.
        ValueError: if it does not return one truth value for each point, or asks for a variable
            that there is not.
    """
    variables = unpack(value)
    try:
        inside = region(variables)
    except KeyError as error:
        raise ValueError(
            f"`region` asks for {error}; the variables are {list(variables)}"
        ) from error
    if not isinstance(inside, Tensor) or inside.dtype != torch.bool:
        kind = inside.dtype if isinstance(inside, Tensor) else type(inside).__name__
        raise TypeError(f"`region` must return a bool tensor, as a comparison does; got {kind}")
    if inside.shape != value.shape[:-1]:
        raise ValueError(
            f"`region` must return one truth value for each point, shape "
            f"{tuple(value.shape[:-1])}; got {tuple(inside.shape)}. Index vectors from the right, "
            "as in t['x'][..., 0], and combine conditions with & and |"
        )
    return inside


def truncate(prior: AbstractFlowPrior, region: Region, seed: int = 0) -> TruncatedPrior:
    """Return ``prior`` kept to ``region``; see ``FlowPrior.truncate``.

    Raises:
        TypeError: if the region is no function, or does not return a bool tensor, or the seed is
            no integer.
        ValueError: if no draw of the prior is inside, or for a wrong shape.
    """
    check_region(region)
    if not prior.names:
        raise ValueError("a region is one of named variables: events that are no vectors have none")
    like = prior.like
    source = generator(check_seed(seed), "mass of a region", like.device)
    with torch.no_grad():
        draws = draws_of(prior, _DRAWS, source)
        inside = contains(region, prior.unpack, draws)
    share = inside.double().mean().item()
    if share == 0:
        raise ValueError(f"none of {_DRAWS:,} draws of the prior is inside `region`")
    error = math.sqrt(share * (1 - share) / _DRAWS)
    probes = torch.cat([draws[inside][:_PROBES], draws[~inside][:_PROBES]])
    return TruncatedPrior(prior, region, Mass(share, error, _DRAWS), probes)


class TruncatedPrior(Learned, dist.TorchDistribution):
    """A learned density, kept to a region and normalised there.

    Made by ``FlowPrior.truncate``.

    Arguments:
        prior: the density without the cut.
        region: which points are inside: from tensors by variable, each ``(..., *shape)``, to a bool
            tensor ``(...)``.
        mass: what ``prior`` has inside.
        probes: points on both sides of the cut with shape ``(n, D)``, by which a file knows the
            region again.
        validate_args: as in Pyro.

    Example:
        >>> import pyro_stad
        >>> generator = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(400, 2, generator=generator)
        >>> prior = pyro_stad.fit(draws, names=["a", "b"], progress=False, budget="tiny")
        >>> cut = prior.truncate(lambda t: t["a"] + t["b"] < 0)
        >>> bool((cut.sample((100,)).sum(-1) < 0).all())
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        prior: AbstractFlowPrior,
        region: Region,
        mass: Mass,
        probes: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.prior, self.region, self.mass, self.probes = prior, region, mass, probes
        self.spread = prior.spread
        super().__init__(prior.batch_shape, prior.event_shape, validate_args=validate_args)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return self.prior.names

    @property
    def counts(self) -> Counts:
        """Points that ``log_prob`` has seen, on both sides of the cut."""
        return self.prior.counts

    @property
    def calibration(self) -> Calibration | None:
        """How the density without the cut was chosen, and how accurate it is, or None."""
        return self.prior.calibration

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The support without the cut, checked with it; its bijection does not know the cut."""
        # biject_to goes by the type of a constraint, so it has to be the same one.
        support: Any = copy.copy(self.prior.support)
        support.check = _BothHold(self.prior.support, self)
        return support

    def expand(self, batch_shape: Any, _instance: TruncatedPrior | None = None) -> TruncatedPrior:
        """Return the same prior with another batch shape; nothing is solved or copied."""
        new = self._get_checked_instance(TruncatedPrior, _instance)
        prior = self.prior.expand(batch_shape)
        new.prior, new.region, new.mass, new.probes = prior, self.region, self.mass, self.probes
        new.spread = self.spread
        super(TruncatedPrior, new).__init__(prior.batch_shape, self.event_shape, False)
        new._validate_args = self._validate_args
        return new

    def contains(self, value: Tensor) -> Tensor:
        """Return which points ``(..., D)`` are inside the region, shape ``(...)``."""
        return contains(self.region, self.prior.unpack, self.prior.wrap(value))

    def log_cut(self, value: Tensor) -> Tensor:
        """Return what the cut adds to the log-density of points ``(..., D)``: ``(...)``.

        That is minus the logarithm of the mass inside, and minus infinity outside.
        """
        inside = self.contains(value)
        return torch.where(inside, -math.log(self.mass.value), -torch.inf).to(value.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, shape ``(..., D)``; -inf outside the region.

        See ``FlowPrior.log_prob``. Inside NUTS a step over the edge is rejected; if the posterior
        leans on it, expect divergences there.
        """
        log_prob = self.prior.log_prob(value)
        inside = self.contains(value)
        return torch.where(inside, log_prob - math.log(self.mass.value), -torch.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws with shape ``sample_shape + batch_shape + (D,)``, by rejection.

        Raises:
            ValueError: if far fewer draws of the prior are inside than the mass says.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        count = math.prod(shape[:-1])
        kept = [self.probes[:0]]
        found = tried = 0
        with torch.no_grad():
            while found < count:
                if tried * self.mass.value > _MOST_TRIES * (count + 1):
                    raise ValueError(
                        f"{found} of {tried:,} draws of the prior were inside `region`, of which "
                        f"its mass is {self.mass}: is it still the same function?"
                    )
                missing = count - found
                # One standard error more than is needed on average.
                wanted = (missing + math.sqrt(missing) + 1) / self.mass.value
                draws = draws_of(self.prior, min(_ROUND, math.ceil(wanted)))
                kept.append(draws[self.contains(draws)])
                found, tried = found + len(kept[-1]), tried + len(draws)
        return torch.cat(kept)[:count].reshape(shape)

    @property
    def alarm_level(self) -> float:
        """The chance below which the prior inside takes a point for extrapolated."""
        return self.prior.alarm_level

    def tail_probability(self, value: Tensor) -> Tensor:
        """Return how far out ``value`` lies under the prior without the cut, shape ``(...)``."""
        return self.prior.tail_probability(value)

    def density_level(self, value: Tensor) -> Tensor:
        """Return the share of draws with less density, without the cut, shape ``(...)``."""
        return self.prior.density_level(value)

    def surrogate_error(self, value: Tensor) -> Tensor:
        """Return a bound on the error of ``log_prob``, shape ``(...)``; infinite outside.

        The error of the mass, the same everywhere, is not in it.
        """
        error = self.prior.surrogate_error(value)
        return torch.where(self.contains(value), error, torch.inf)

    def deviations(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return members' log-densities, less the prior's, ``(..., K)``, and where there are any.

        Each has the mass divided out that it has inside.
        """
        found, there = self.prior.deviations(value)
        there = there & self.contains(value)
        return torch.where(there[..., None], found - self.log_shares(), 0.0), there

    def log_shares(self) -> Tensor:
        """Return how much more of their mass members have inside than the prior, ``(K,)``, logs.

        By the draws that the cut is known again by.
        """
        within = self.probes[self.contains(self.probes)]
        if not len(within):
            raise ValueError("none of the draws of the prior that were inside `region` is inside")
        return shifts(self.prior.deviations(within)[0])

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into the variables that came in, by name."""
        return self.prior.unpack(value)

    def to(self, target: torch.device | str | torch.dtype) -> TruncatedPrior:
        """Return a copy on another device or in another dtype."""
        return TruncatedPrior(self.prior.to(target), self.region, self.mass, self.probes.to(target))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all but the function to ``path``; ``pyro_stad.load(path, region=...)`` reads it."""
        region = StoredRegion(self.mass, self.probes, self.contains(self.probes))
        write(self.prior.stored(), path, region)

    def summary(self) -> str:
        """Return what the prior is, how it was fitted and how accurate it is, as text."""
        return f"{self.prior.summary()}\n  cut to a region that holds {self.mass}"

    def __repr__(self) -> str:
        return f"TruncatedPrior(mass={self.mass.value:.4g}, {self.prior!r})"


class _BothHold:
    """The check of a support, and of the cut."""

    def __init__(self, support: constraints.Constraint, cut: TruncatedPrior) -> None:
        self.support, self.cut = support, cut

    def __call__(self, value: Tensor) -> Tensor:
        return self.support.check(value) & self.cut.contains(value)
