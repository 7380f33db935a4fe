"""What a model says of draws: the record of a replay, and how a trace is sorted into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_stad.density import FlowPrior, TruncatedPrior, find_cut, find_flow, to_cut, to_flow
from pyro_stad.model.sites import is_computed, is_factor, sampled

__all__ = ["BY_DRAW", "Replay", "read_sites"]


BY_DRAW = ("log_likelihood", "computed", "inner")


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
            for name, known in ((name, getattr(self, name)) for name in BY_DRAW)
        }
        return replace(self, lp=torch.cat([part.lp for part in parts]), **joined)


def read_sites(trace: Any, draws: Mapping[str, Tensor], later: Mapping[str, Any]) -> Replay:
    """Sort the sites of one run."""
    row = Replay()
    for site in sampled(trace):
        name, fn, value = site["name"], site["fn"], site["value"]
        if name not in later:
            row.lp = row.lp + site["log_prob_sum"]
        if name in draws:
            # A latent site that was conditioned on its draw counts as observed in the trace.
            cut, flow = find_cut(fn), find_flow(fn)
            if cut is not None:
                row.priors[name], row.inner[name] = cut, to_cut(fn, value)
            elif flow is not None:
                row.priors[name], row.inner[name] = flow, to_flow(fn, value)
        elif is_computed(site):
            # pyro.deterministic, and what a reparametrisation computed from its base site.
            row.computed[name] = value
        elif not is_factor(site):
            row.observed[name] = value
            if name not in later:
                row.log_likelihood[name] = site["log_prob"]
    return row
