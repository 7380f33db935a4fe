"""A latent variable as numbers that are near N(0, 1) under its prior.

Unbounded by the bijection that torch has for its support, then centred at the median of the prior's
draws, over their spread between quartiles: a prior in noise is left nearly as it is, and one with
heavy tails gets the scale of its middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import ReshapeTransform, Transform, biject_to

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

    def maps(self) -> list[Transform]:
        """Return what carries vectors ``(..., D)`` to the support; none where nothing is to do."""
        maps: list[Transform] = []
        if self.shape != (self.features,):
            vector = torch.Size((self.features,))
            maps.append(ReshapeTransform(vector, self.shape, cache_size=1))
        # The identity has no parts, and a normal law that stays one has closed forms.
        if getattr(self.transform, "parts", True):
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
    found: dict[str, tuple[Transform, torch.Size, torch.Size]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for _ in range(_RUNS):
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
            for site in sampled(trace):
                if not is_latent(site):
                    continue
                transform = _bijection(site)
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


def _bijection(site: Any) -> Transform:
    fn = site["fn"]
    if not fn.has_rsample and fn.support.is_discrete:
        raise ValueError(
            f"latent site {site['name']!r} is discrete ({type(fn).__name__}): a guide that is "
            "trained by gradients can't draw it. Sum it out (infer={'enumerate': 'parallel'}), or "
            "write the mixture as one law"
        )
    try:
        return biject_to(fn.support)
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {site['name']!r} has support {fn.support}, which torch maps to no "
            "unbounded coordinates; write it as a transform of one that has them"
        ) from error
