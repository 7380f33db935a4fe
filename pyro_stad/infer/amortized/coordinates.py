"""A latent variable as numbers that are near N(0, 1) under its prior.

Unbounded by the bijection that torch has for its support, then centred at the median of the prior's
draws, over their spread between quartiles: a prior in noise is left nearly as it is, and one with
heavy tails gets the scale of its middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import (
    ComposeTransform,
    Independent,
    IndependentTransform,
    Normal,
    ReshapeTransform,
    Transform,
    biject_to,
    constraints,
)

from pyro_stad.infer.amortized.refusals import bounds_of
from pyro_stad.model.sites import is_latent, sampled

__all__ = ["Unbounded", "unbounded_sites"]

_RUNS, _MOST = 24, 4096
_NORMAL_QUARTILES = 1.349  # distance of the quartiles of N(0, 1)


class Unbounded(nn.Module):
    """The coordinates of one latent variable.

    Arguments:
        transform: from unbounded coordinates to the support.
        shape: of one event, in unbounded coordinates.
        event: shape of the event itself.
        draws: of the prior, ``(n, D)``, in unbounded coordinates.
    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self, transform: Transform, shape: torch.Size, event: torch.Size, draws: Tensor
    ) -> None:
        super().__init__()
        self.transform, self.shape, self.event = transform, shape, event
        quartiles = draws.quantile(draws.new_tensor([0.25, 0.5, 0.75]), dim=0)
        spread = (quartiles[2] - quartiles[0]) / _NORMAL_QUARTILES
        self.register_buffer("loc", quartiles[1])
        self.register_buffer("scale", torch.where(spread > 0, spread, torch.ones_like(spread)))

    @property
    def features(self) -> int:
        return len(self.loc)

    def carried(self, law: Any) -> Any:
        """Return the law on the support of one of vectors ``(..., D)`` in these coordinates.

        A normal law of which nothing is to be bent stays one, of the event's shape: its divergence
        from the prior is in closed form.
        """
        if self.is_identity and isinstance(law, Independent) and isinstance(law.base_dist, Normal):
            base = law.base_dist
            shape = (*base.loc.shape[:-1], *self.shape)
            normal = dist.Normal(base.loc.reshape(shape), base.scale.reshape(shape))
            return normal.to_event(len(self.shape))
        maps = self.maps()
        return dist.TransformedDistribution(law, maps) if maps else law

    @property
    def is_identity(self) -> bool:
        """Whether the variable is unbounded as it is."""
        inner = self.transform
        while isinstance(inner, IndependentTransform):
            inner = inner.base_transform
        return isinstance(inner, ComposeTransform) and not inner.parts

    def maps(self) -> list[Transform]:
        """Return what carries vectors ``(..., D)`` to the support; none where nothing is to do."""
        maps: list[Transform] = []
        if self.shape != (self.features,):
            vector = torch.Size((self.features,))
            maps.append(ReshapeTransform(vector, self.shape, cache_size=1))
        if not self.is_identity:
            maps.append(self.transform.with_cache())
        return maps

    def standardised(self, value: Tensor) -> Tensor:
        """Return values ``(*batch, *event)`` as numbers ``(*batch, D)`` near N(0, 1)."""
        batch = value.shape[: value.ndim - len(self.event)]
        flat = self.transform.inv(value).reshape(*batch, self.features)
        return (flat - self.loc) / self.scale


def unbounded_sites(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Unbounded]:
    """Return the coordinates of every latent variable of a model, by draws of the model itself."""
    draws: dict[str, list[Tensor]] = {}
    supports: dict[str, list[Any]] = {}
    found: dict[str, tuple[Transform, torch.Size, torch.Size]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for _ in range(_RUNS):
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
            for site in sampled(trace):
                if not is_latent(site):
                    continue
                transform = _bijection(site)
                _check_still(site, supports)
                value = transform.inv(site["value"])
                events = value.ndim - (site["value"].ndim - len(site["fn"].event_shape))
                shape = value.shape[value.ndim - events :]
                flat = value.reshape(-1, max(1, shape.numel()))
                draws.setdefault(site["name"], []).append(flat[:_MOST])
                found[site["name"]] = transform, shape, site["fn"].event_shape
    return {
        name: Unbounded(transform, shape, event, torch.cat(draws[name]))
        for name, (transform, shape, event) in found.items()
    }


def _check_still(site: Any, seen: dict[str, list[Any]]) -> None:
    """Refuse a support that another latent variable moves."""
    bounds = [torch.as_tensor(bound) for bound in bounds_of(site)]
    before = seen.setdefault(site["name"], bounds)
    if any(a.shape != b.shape or not bool((a == b).all()) for a, b in zip(before, bounds)):
        raise ValueError(
            f"the support of latent site {site['name']!r} changes from run to run: the guide would "
            "keep the bounds that it was made with. Write it as low + (high - low) * u with u from "
            "Uniform(0, 1)"
        )


def _bijection(site: Any) -> Transform:
    fn = site["fn"]
    if not fn.has_rsample and fn.support.is_discrete:
        raise ValueError(
            f"latent site {site['name']!r} is discrete ({type(fn).__name__}): a guide that is "
            "trained by gradients can't draw it. Hide it, AmortizedGuide(poutine.block(model, "
            f"hide=[{site['name']!r}])), and sum it out by TraceEnum_ELBO; or write the mixture as "
            "one law"
        )
    try:
        return biject_to(_for_any_number(site))
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {site['name']!r} has support {fn.support}, which torch maps to no "
            "unbounded coordinates; write it as a transform of one that has them"
        ) from error


def _for_any_number(site: Any) -> constraints.Constraint:
    """Return the support with the bounds of one member of a plate: it may have more of them later.

    Raises:
        ValueError: if members have bounds of their own.
    """
    support, event = site["fn"].support, tuple(site["fn"].event_shape)
    bounds = bounds_of(site)
    batched = [b for b in bounds if isinstance(b, Tensor) and b.ndim > len(event)]
    if not batched:
        return support
    rows = [b.expand(*site["fn"].batch_shape, *event).reshape(-1, *event) for b in batched]
    if any(not bool((each == each[:1]).all()) for each in rows):
        raise ValueError(
            f"the members of a plate have supports of their own in latent site {site['name']!r}: "
            "write it as low + (high - low) * u with u from Uniform(0, 1)"
        )
    one = [
        b
        if not isinstance(b, Tensor) or b.ndim <= len(event)
        else b.expand(*site["fn"].batch_shape, *event).reshape(-1, *event)[0]
        for b in bounds
    ]
    inner = support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    if len(one) == 2:
        found: constraints.Constraint = constraints.interval(*one)
    elif hasattr(inner, "lower_bound"):
        found = constraints.greater_than(one[0])
    else:
        found = constraints.less_than(one[0])
    return constraints.independent(found, len(event)) if event else found
