"""The exact twin of a law that has a learned prior inside, whatever is around it.

In a model a prior stands in plates, behind transforms, masked or cut; its twin stands in its place,
with all else as it is.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import pyro.distributions as dist
from torch.distributions import Independent, TransformedDistribution

from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.truncated import TruncatedPrior
from pyro_stad.density.whitened import WhitenedPrior

__all__ = ["exactly"]


@singledispatch
def exactly(fn: Any) -> Any:
    """Return ``fn`` with exact traces in place of distilled divergences; itself if it has none."""
    return fn


@exactly.register
def _(fn: FlowPrior) -> Any:
    return fn if fn.likelihood.is_exact else fn.exact()


@exactly.register
def _(fn: WhitenedPrior) -> Any:
    return _around(fn, fn.prior, WhitenedPrior)


@exactly.register
def _(fn: TruncatedPrior) -> Any:
    # The share of the draws that is inside is that of the flow, whatever its density is taken by.
    return _around(fn, fn.prior, lambda x: TruncatedPrior(x, fn.region, fn.mass, fn.probes))


@exactly.register
def _(fn: Independent) -> Any:
    return _around(fn, fn.base_dist, lambda x: x.to_event(fn.reinterpreted_batch_ndims))


@exactly.register
def _(fn: TransformedDistribution) -> Any:
    return _around(fn, fn.base_dist, lambda x: dist.TransformedDistribution(x, fn.transforms))


@exactly.register
def _(fn: dist.ExpandedDistribution) -> Any:
    return _around(fn, fn.base_dist, lambda x: dist.ExpandedDistribution(x, fn.batch_shape))


@exactly.register
def _(fn: dist.MaskedDistribution) -> Any:
    return _around(fn, fn.base_dist, lambda x: x.mask(fn._mask))


def _around(fn: Any, inner: Any, make: Any) -> Any:
    exact = exactly(inner)
    return fn if exact is inner else make(exact)
