"""A model replayed with draws of its latent sites: what its joint density says of each.

The log-probability of a draw is that of the model's own trace, with its masks and scales, so that
it is what a kernel saw. A model that broadcasts over draws, as a few of them show, runs once for
all of them, in a plate to the left of its own; any other runs draw by draw. A replay that would
have to guess, because a site has no draws or a plate takes other rows every time, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_stad.density import FlowPrior
from pyro_stad.model.replayed import Replay, read_sites
from pyro_stad.model.sites import check_whole, sampled
from pyro_stad.model.together import agree, attempt, together

__all__ = ["replay"]

_CHUNK = 1000  # draws at a time
_EVENLY = 8


def replay(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draws: Mapping[str, Tensor],
) -> Replay:
    """Run ``model`` with every draw.

    Arguments:
        model: a Pyro model, in the form that the kernel saw.
        args, kwargs: what it is called with.
        draws: draws of its latent sites, each ``(N, ...)``.

    Raises:
        ValueError: if a latent site has no draws, draws are of no site, or a plate takes a
            subsample; they are named.
    """
    count = len(next(iter(draws.values())))
    known = _one_by_one(model, args, kwargs, _rows(draws, [0]))
    parts = []
    for at in range(0, count, _CHUNK):
        chunk = {name: value[at : at + _CHUNK] for name, value in draws.items()}
        found = attempt(partial(together, model, args, kwargs, known), chunk)
        if found is None:
            return _one_by_one(model, args, kwargs, draws)
        # What mixes draws up, or asks something of all of them, gives itself away somewhere.
        looked_at = _suspects(found.lp)
        alone = _one_by_one(model, args, kwargs, _rows(chunk, looked_at))
        if not agree(found, alone, looked_at):
            return _one_by_one(model, args, kwargs, draws)
        parts.append(found)
    return known.with_rows(parts)


def _rows(draws: Mapping[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    return {name: value[chosen] for name, value in draws.items()}


def _suspects(lp: Tensor) -> list[int]:
    """Return which draws are run alone too: evenly, and where the model says least and most."""
    evenly = range(0, len(lp), max(1, len(lp) // _EVENLY))
    order = lp.nan_to_num(nan=-torch.inf).argsort()
    return sorted({*evenly, len(lp) - 1, *order[:2].tolist(), *order[-2:].tolist()})


def _one_by_one(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    draws: Mapping[str, Tensor],
) -> Replay:
    """Run the model with one draw after the other: right for any model."""
    count = len(next(iter(draws.values())))
    rows, batched = [], []
    for index in range(count):
        values = {name: value[index] for name, value in draws.items()}
        # A draw that the model can't have is told by its log-probability.
        with torch.no_grad(), pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
            if index == 0:
                _check_sites(trace, draws)
            # Learned densities cost a network call each, and are evaluated together below.
            later = {name: site for name, site in trace.nodes.items() if _is_batched(site)}
            trace.compute_log_prob(partial(_not_in, later))
            depth = max((len(site["fn"].batch_shape) for site in sampled(trace)), default=0)
        rows.append(read_sites(trace, draws, later))
        batched.append(later)
    first = rows[0]
    found = Replay(
        log_likelihood=_stack([row.log_likelihood for row in rows]),
        computed=_stack([row.computed for row in rows]),
        observed=first.observed,
        lp=torch.stack([torch.as_tensor(row.lp) for row in rows]),
        priors=first.priors,
        inner=_stack([row.inner for row in rows]),
        depth=depth,
    )
    for name, log_prob in _learned(batched).items():
        found.lp = found.lp + log_prob.reshape(count, -1).sum(-1)
        if name in found.observed:
            found.log_likelihood[name] = log_prob
    return found


def _check_sites(trace: Any, draws: Mapping[str, Tensor]) -> None:
    """Refuse what could only be guessed."""
    check_whole(trace, "a replay")
    sites = {site["name"]: site for site in sampled(trace)}
    for name, site in sites.items():
        if not site["is_observed"] and name not in draws:
            raise ValueError(
                f"the model's latent site {name!r} has no draws in `source`, which has "
                f"{sorted(draws)}. If the model was reparametrised, pass the model in that form; "
                "if the site was summed out, pass a model without it, or draws of it"
            )
    unknown = [name for name in draws if name not in sites]
    if unknown:
        raise ValueError(
            f"`source` has draws of {unknown}, which the model does not sample; its sites are "
            f"{sorted(sites)}. Pass the model in the form that was sampled"
        )


def _is_batched(site: Any) -> bool:
    """Whether a site is a learned density as it is, without a mask or a law of its own."""
    return (
        site["type"] == "sample" and site.get("mask") is None and isinstance(site["fn"], FlowPrior)
    )


def _not_in(later: Mapping[str, Any], name: str, _: Any) -> bool:
    return name not in later


def _learned(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return log-probabilities of learned densities, all draws of a site at once."""
    found = {}
    for name, site in rows[0].items():
        with torch.no_grad(), pyro.validation_enabled(False):
            if all(row[name]["fn"].likelihood is site["fn"].likelihood for row in rows):
                values = torch.stack([row[name]["value"] for row in rows])
                each = list(site["fn"].log_prob(values))
            else:
                each = [row[name]["fn"].log_prob(row[name]["value"]) for row in rows]
        scaled = [scale_and_mask(one, row[name]["scale"]) for one, row in zip(each, rows)]
        found[name] = torch.stack(scaled)
    return found


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {site: torch.stack([row[site] for row in rows]) for site in rows[0]}
