"""Posterior draws that the user has: from Pyro's MCMC, ArviZ, or a dictionary, chain by chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.infer import MCMC
from torch import Tensor

__all__ = ["by_chain", "chains_of"]

_FEWEST = 100


def chains_of(source: Any, sites: Mapping[str, tuple[int, ...]], like: Tensor) -> dict[str, Tensor]:
    """Return draws of latent sites, each ``(chains, draws, ...)``.

    Arguments:
        source: an ``MCMC`` that has run, what ``sample_posterior`` returns, an ArviZ
            ``InferenceData`` or ``DataTree`` with a posterior, or a dictionary of draws by site,
            each ``(draws, ...)``.
        sites: shapes of the latent sites by name.
        like: a tensor of the dtype and device that is wanted.

    Raises:
        TypeError: if it is none of them.
        ValueError: if sites are missing, of another shape, not finite, or too few.
    """
    found = by_chain(source, "draws")
    missing = [name for name in sites if name not in found]
    if missing:
        raise ValueError(
            f"`draws` has no {missing}, which the model samples; it has {sorted(found)}. Draws of "
            "a reparametrised model belong to that model"
        )
    draws = {name: found[name].to(like) for name in sites}
    for name, shape in sites.items():
        value = draws[name]
        if tuple(value.shape[2:]) != shape:
            raise ValueError(
                f"`draws` of {name!r} must have shape (chains, draws) + {shape}; got "
                f"{tuple(value.shape)}"
            )
        if not torch.isfinite(value).all():
            raise ValueError(f"`draws` of {name!r} are not all finite")
    sizes = {tuple(value.shape[:2]) for value in draws.values()}
    chains, count = next(iter(sizes))
    if len(sizes) > 1 or count < 4 or chains * count < _FEWEST:
        raise ValueError(
            f"`draws` must be at least {_FEWEST}, equally many of every site; got (chains, draws) "
            f"of {sorted(sizes)}"
        )
    return draws


def by_chain(source: Any, argument: str) -> dict[str, Tensor]:
    """Return draws by site, each ``(chains, draws, ...)``: of a dictionary, as one chain.

    Arguments:
        source: an ``MCMC`` that has run, what ``sample_posterior`` returns, ArviZ data with a
            posterior, or tensors or arrays by site.
        argument: what the caller calls it.

    Raises:
        TypeError: if it is none of them.
        ValueError: if an ``MCMC`` has not run, or a site has a single number.
    """
    if isinstance(source, MCMC):
        if not source._samples:
            raise ValueError(f"`{argument}` is an MCMC that has not run; call mcmc.run(...) first")
        return source.get_samples(group_by_chain=True)
    if callable(getattr(source, "get_samples", None)):  # what sample_posterior returns
        return source.get_samples(group_by_chain=True)
    # InferenceData is a mapping too, of groups.
    if isinstance(source, Mapping) and source and "posterior" not in source:
        return {str(name): _rows(value, name, argument)[None] for name, value in source.items()}
    try:
        posterior = source["posterior"]
        return {str(name): torch.as_tensor(posterior[name].values) for name in posterior.data_vars}
    except (AttributeError, KeyError, TypeError) as error:
        raise TypeError(
            f"`{argument}` must be an MCMC, ArviZ data with a posterior, or draws by site; got "
            f"{type(source).__name__}"
        ) from error


def _rows(value: Any, name: Any, argument: str) -> Tensor:
    """Return the draws of a site, which may be an array, as a tensor with a first axis."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{argument}` must hold tensors or arrays of numbers; {name!r} is "
            f"{type(value).__name__}"
        ) from error
    if tensor.ndim == 0:
        raise ValueError(f"`{argument}` must hold one row per draw; {name!r} is a single number")
    return tensor
