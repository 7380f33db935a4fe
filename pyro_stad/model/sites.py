"""What the sites of a model are, and a plate of draws around all of them: for all who run one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from pyro.distributions import Unit
from pyro.poutine.util import site_is_subsample

__all__ = [
    "check_whole",
    "in_plate",
    "is_computed",
    "is_data",
    "is_factor",
    "is_latent",
    "sampled",
]

_PLATE = "_draws"


def sampled(trace: Any) -> list[Any]:
    """Return the sites of a trace that have a law, observed ones too."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
    ]


def is_latent(site: Any) -> bool:
    """Whether a sample site is to be integrated over."""
    return not (site["is_observed"] or is_computed(site) or site_is_subsample(site))


def is_data(site: Any) -> bool:
    """Whether a sample site is an observation."""
    return bool(site["is_observed"]) and not (is_computed(site) or site_is_subsample(site))


def is_computed(site: Any) -> bool:
    """Whether a site is deterministic, as what a reparametrisation leaves of the original is."""
    return bool(site["infer"].get("_deterministic") or getattr(site["fn"], "_mask", None) is False)


def is_factor(site: Any) -> bool:
    """Whether a site only adds a factor, and observes nothing."""
    return isinstance(site["fn"], Unit)


def check_whole(trace: Any, wanted: str) -> None:
    """Refuse a plate that takes other rows in every run.

    Arguments:
        trace: of the model.
        wanted: what needs all of the data, for the message.

    Raises:
        ValueError: if a plate takes a subsample; it is named.
    """
    for name, site in trace.nodes.items():
        whole = not site_is_subsample(site) or site["value"].numel() == site["fn"].size
        if not whole:
            raise ValueError(
                f"plate {name!r} takes a subsample of {site['value'].numel()} of "
                f"{site['fn'].size} and scales its likelihood up; {wanted} needs all of the data, "
                "without `subsample_size` or `subsample`"
            )


def in_plate(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int,
    depth: int,
) -> Callable[[], None]:
    """Return the model in a plate of ``count`` draws to the left of its own, ``depth`` deep."""

    def run() -> None:
        with pyro.plate(_PLATE, count, dim=-1 - depth):
            model(*args, **kwargs)

    return run
