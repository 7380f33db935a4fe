"""A learned prior inside other distributions: where it is, and what it is asked there.

In a model a prior may stand under ``to_event``, in a plate, behind further transforms, or all of
that. What is known of it, its tail and the error of its density, is known of the site all the same.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from pyro_stad.density.prior import FlowPrior

__all__ = ["find_flow", "to_flow"]

# Wrappers that leave the values of their base as they are.
_PLAIN = (Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


def find_flow(fn: Any) -> FlowPrior | None:
    """Return the learned prior inside ``fn``, at any depth, or None if there is none."""
    while not isinstance(fn, FlowPrior):
        if not isinstance(fn, (*_PLAIN, TransformedDistribution)):
            return None
        fn = fn.base_dist
    return fn


def to_flow(fn: Any, value: Tensor) -> Tensor:
    """Return a value of ``fn`` in the coordinates of the learned prior inside, ``(..., D)``.

    Arguments:
        fn: a distribution for which ``find_flow`` finds a prior.
        value: shape ``(..., *fn.event_shape)``.

    Raises:
        NotImplementedError: if a transform on the way has no inverse.
    """
    with torch.no_grad():
        while not isinstance(fn, FlowPrior):
            if isinstance(fn, TransformedDistribution):
                for transform in reversed(fn.transforms):
                    value = transform.inv(value)
            fn = fn.base_dist
    return value
