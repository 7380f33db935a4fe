"""Groups of ArviZ: arrays by chain, labels and dimensions, and what makes a container of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_stad._arviz import from_dict
from pyro_stad.model.replay import Replay

__all__ = ["as_numpy", "assemble", "grouped", "labels_of", "predictive_groups"]


def predictive_groups(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draws: dict[str, Tensor],
    predictive: int,
    found: Replay,
) -> dict[str, dict[str, Any]]:
    """Return prior, prior_predictive and posterior_predictive draws."""
    observed = list(found.observed)
    free = poutine.uncondition(model)
    before = Predictive(free, num_samples=predictive)(*args, **kwargs)
    after = Predictive(free, posterior_samples=draws, return_sites=observed)(*args, **kwargs)
    shapes = {k: v.shape[1:] for k, v in (draws | found.computed).items()}
    shapes |= {k: v.shape for k, v in found.observed.items()}

    def shaped(values: dict[str, Tensor], sites: Iterable[str]) -> dict[str, Tensor]:
        # Predictive leaves an axis of length one for every plate that a site is not in.
        return {k: values[k].reshape(-1, *shapes[k]) for k in sites if k in values}

    return {
        "prior": shaped(before, [*draws, *found.computed]),
        "prior_predictive": shaped(before, observed),
        "posterior_predictive": shaped(after, observed),
    }


def grouped(value: Tensor, num_chains: int, group: str) -> np.ndarray:
    """Return draws ``(chains * draws, ...)`` as an array by chain."""
    chains = 1 if group.startswith("prior") else num_chains
    array = as_numpy(value)
    return array.reshape(chains, -1, *array.shape[1:])


def as_numpy(value: Tensor) -> np.ndarray:
    """Return a tensor as an array, on the CPU."""
    return value.detach().cpu().numpy()


def labels_of(
    priors: Mapping[str, Any],
    values: Mapping[str, Tensor],
    coords: dict[str, Any],
    dims: dict[str, list[str]],
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Add the names of learned coordinates to what the user gave."""
    for site, prior in priors.items():
        if not prior.names:
            continue
        # Dimensions of plates stand between the draw and the coordinate.
        plates = [f"{site}_plate_{i}" for i in range(values[site].ndim - 2)]
        dims.setdefault(site, [*plates, f"{site}_name"])
        coords.setdefault(f"{site}_name", list(prior.names))
    return coords, dims


def assemble(
    groups: dict[str, dict[str, Any]],
    coords: dict[str, Any],
    dims: dict[str, list[str]],
    attributes: dict[str, Any],
) -> Any:
    """Return a container of groups, with their attributes."""
    data = from_dict(groups, coords=coords, dims=dims)
    if "sample_stats" in groups:
        data["sample_stats"].attrs.update(attributes)
    return data
