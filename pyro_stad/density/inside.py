"""A learned prior inside other distributions: where it is, and what it is asked there.

In a model a prior may stand under ``to_event``, in a plate, behind further transforms, cut to a
region, or all of that. What is known of it, its tail and the error of its density, is known of the
site all the same; and so is the cut.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyro_stad.density.given import GivenPrior
from pyro_stad.density.one_step import OneStepGenerator
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.truncated import TruncatedPrior

__all__ = [
    "NOISE_OF",
    "find_cut",
    "find_flow",
    "find_generator",
    "law_of",
    "to_cut",
    "to_flow",
    "unwrap",
]

Kind = TypeVar("Kind")

# Where a site of noise keeps the law that the noise is of: a key of its ``infer``.
NOISE_OF = "noise_of"


def law_of(site: Any) -> Any:
    """Return the law of a site of a trace; of the noise of a reparametrised one, its own."""
    return site["infer"].get(NOISE_OF, site["fn"])


def find_flow(fn: Any) -> FlowPrior | None:
    """Return the learned prior inside ``fn``, at any depth, or None if there is none.

    One that was given a context is none: it is another one for every draw of the context, and what
    is asked of the first would be told of all.
    """
    found = _find(fn, FlowPrior)
    return None if isinstance(found, GivenPrior) else found


def find_cut(fn: Any) -> TruncatedPrior | None:
    """Return the learned prior inside ``fn`` that is cut to a region, or None if there is none."""
    return _find(fn, TruncatedPrior)


def find_generator(fn: Any) -> OneStepGenerator | None:
    """Return the generator of one step inside ``fn``, at any depth, or None if there is none."""
    return _find(fn, OneStepGenerator)


def to_flow(fn: Any, value: Tensor) -> Tensor:
    """Return a value of ``fn`` in the coordinates of the learned prior inside, ``(..., D)``.

    Arguments:
        fn: a distribution for which ``find_flow`` finds a prior.
        value: shape ``(..., *fn.event_shape)``.

    Raises:
        NotImplementedError: if a transform on the way has no inverse.
    """
    return _carry(fn, value, FlowPrior)


def to_cut(fn: Any, value: Tensor) -> Tensor:
    """Return a value of ``fn`` in the coordinates of the cut inside, as ``to_flow`` does."""
    return _carry(fn, value, TruncatedPrior)


def _find(fn: Any, kind: type[Kind]) -> Kind | None:
    while not isinstance(fn, kind):
        fn = unwrap(fn)
        if fn is None:
            return None
    return fn


def _carry(fn: Any, value: Tensor, kind: type) -> Tensor:
    with torch.no_grad():
        while not isinstance(fn, kind):
            for transform in reversed(getattr(fn, "transforms", ())):
                value = transform.inv(value)
            fn = unwrap(fn)
    return value


@singledispatch
def unwrap(fn: Any) -> Any:
    """Return the law that ``fn`` is made from, one step inside; None if it is made from none."""
    return None


@unwrap.register(Independent)
@unwrap.register(TransformedDistribution)
@unwrap.register(dist.ExpandedDistribution)
@unwrap.register(dist.MaskedDistribution)
def _(fn: Any) -> Any:
    return fn.base_dist


@unwrap.register
def _(fn: TruncatedPrior) -> Any:
    return fn.prior


@unwrap.register
def _(fn: FlowPrior) -> Any:
    return None  # Its base is noise.
