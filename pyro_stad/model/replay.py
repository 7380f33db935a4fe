"""A model replayed with draws of its latent sites: what its joint density says of each.

The log-probability of a draw is that of the model's own trace, with its masks and scales, so that
it is what a kernel saw. A model that broadcasts over draws, as a few of them show, runs once for
all of them, in a plate to the left of its own; any other runs draw by draw. A replay that would
have to guess, because a site has no draws or a plate takes other rows every time, is refused.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_stad.density import FlowPrior, TruncatedPrior, find_cut, find_flow, to_cut, to_flow

__all__ = ["Replay", "replay"]

_BY_DRAW = ("log_likelihood", "computed", "inner")
_CHUNK = 1000  # draws at a time


@dataclass
class Replay:
    """What a model says of draws.

    Attributes:
        log_likelihood: log-probabilities of observed sites, masked and scaled as the model has
            them, each ``(N, ...)``.
        computed: what the model computes from its latent sites, each ``(N, ...)``.
        observed: what it observes.
        lp: log-probability of its trace, ``(N,)``.
        priors: the learned priors inside the laws of latent sites.
        inner: the draws in the coordinates of those, each ``(N, ..., D)``; a law may change from
            draw to draw.
        depth: the most dimensions that a batch of its sites has.
    """

    log_likelihood: dict[str, Tensor] = field(default_factory=dict)
    computed: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)
    lp: Any = 0.0
    priors: dict[str, FlowPrior | TruncatedPrior] = field(default_factory=dict)
    inner: dict[str, Tensor] = field(default_factory=dict)
    depth: int = 0

    def with_rows(self, parts: list[Replay]) -> Replay:
        """Return a replay of the same model, with what ``parts`` say of all draws."""
        joined: dict[str, Any] = {
            name: {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in known}
            for name, known in ((name, getattr(self, name)) for name in _BY_DRAW)
        }
        return replace(self, lp=torch.cat([part.lp for part in parts]), **joined)


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
    few = sorted({0, count // 2, count - 1})
    known = _one_by_one(model, args, kwargs, {name: value[few] for name, value in draws.items()})
    together = partial(_together, model, args, kwargs, known)
    if _agree(together, {name: value[few] for name, value in draws.items()}, known):
        parts = [
            together({name: value[at : at + _CHUNK] for name, value in draws.items()})
            for at in range(0, count, _CHUNK)
        ]
        return known.with_rows(parts)
    return _one_by_one(model, args, kwargs, draws)


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
            depth = max((len(site["fn"].batch_shape) for site in _sampled(trace)), default=0)
        rows.append(_read(trace, draws, later))
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
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    for name, site in sites.items():
        if site_is_subsample(site):
            if site["value"].numel() < site["fn"].size:
                raise ValueError(
                    f"plate {name!r} takes a subsample of {site['value'].numel()} of "
                    f"{site['fn'].size}, which is not the data; pass a model of all of them"
                )
        elif not site["is_observed"] and name not in draws:
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


def _read(trace: Any, draws: Mapping[str, Tensor], later: Mapping[str, Any]) -> Replay:
    """Sort the sites of one run."""
    row = Replay()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        fn, value = site["fn"], site["value"]
        if name not in later:
            row.lp = row.lp + site["log_prob_sum"]
        if name in draws:
            # A latent site that was conditioned on its draw counts as observed in the trace.
            cut, flow = find_cut(fn), find_flow(fn)
            if cut is not None:
                row.priors[name], row.inner[name] = cut, to_cut(fn, value)
            elif flow is not None:
                row.priors[name], row.inner[name] = flow, to_flow(fn, value)
        elif site["infer"].get("_deterministic") or getattr(fn, "_mask", None) is False:
            # pyro.deterministic, and what a reparametrisation computed from its base site.
            row.computed[name] = value
        elif not isinstance(fn, Unit):
            row.observed[name] = value
            if name not in later:
                row.log_likelihood[name] = site["log_prob"]
    return row


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


def _sampled(trace: Any) -> list[Any]:
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
    ]


def _together(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: Replay,
    draws: Mapping[str, Tensor],
) -> Replay:
    """Run the model once, in a plate of all draws to the left of its own.

    Raises:
        ValueError: where a site is not of the shape that it has for one draw.
        RuntimeError, IndexError, TypeError: whatever a model raises that does not broadcast.
    """
    count = len(next(iter(draws.values())))

    def plated() -> None:
        with pyro.plate("_draws", count, dim=-1 - known.depth):
            model(*args, **kwargs)

    with torch.no_grad(), pyro.validation_enabled(False), _Set(draws, known.depth):
        trace = poutine.trace(plated).get_trace()
        trace.compute_log_prob()
    found = _read(trace, draws, {})
    each = (_by_draw(site["log_prob"], count).sum(-1) for site in _sampled(trace))
    lp = functools.reduce(operator.add, each)
    shaped: dict[str, Any] = {
        name: {
            key: _of_shape(value, count, getattr(known, name)[key].shape[1:])
            for key, value in getattr(found, name).items()
        }
        for name in _BY_DRAW
    }
    return replace(found, lp=lp, depth=known.depth, **shaped)


class _Set(Messenger):
    """Sets latent sites to draws, whose batches are made as deep as the model's deepest."""

    def __init__(self, draws: Mapping[str, Tensor], depth: int) -> None:
        super().__init__()
        self.draws, self.depth = draws, depth

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.draws:
            value = self.draws[msg["name"]]
            missing = self.depth + 1 + len(msg["fn"].event_shape) - value.ndim
            msg["value"] = value.reshape(len(value), *[1] * missing, *value.shape[1:])
            msg["is_observed"] = msg["done"] = True


def _by_draw(value: Tensor, count: int) -> Tensor:
    """Return what a site says of all draws, ``(N, ...)``: of one that knows of none, N times."""
    if value.ndim and len(value) == count:
        return value.reshape(count, -1)
    raise ValueError(f"a site has shape {tuple(value.shape)}, expected {count} draws in front")


def _of_shape(value: Tensor, count: int, shape: torch.Size) -> Tensor:
    """Return values of all draws, each of the shape of one; what no draw changes is the same."""
    if value.shape == shape:
        return value.expand(count, *shape)
    return _by_draw(value, count).reshape(count, *shape)


def _agree(
    together: Callable[[Mapping[str, Tensor]], Replay], few: Mapping[str, Tensor], known: Replay
) -> bool:
    """Whether the model broadcasts over draws: a few of them say at once what each says alone."""
    try:
        found = together(few)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError):
        return False
    pairs = [(found.lp, known.lp)]
    for name in _BY_DRAW:
        ours, theirs = getattr(found, name), getattr(known, name)
        if ours.keys() != theirs.keys():
            return False
        pairs += [(ours[key], theirs[key]) for key in theirs]
    return all(
        one.shape == other.shape
        and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4, equal_nan=True)
        for one, other in pairs
    )


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {site: torch.stack([row[site] for row in rows]) for site in rows[0]}
