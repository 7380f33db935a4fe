r"""The families that a recognition network may choose a posterior from.

Each is a small module on top of an embedding of the datum. It returns a law of a vector v of D
numbers that are near N(0, I) under the prior, shifted and scaled to the coordinates of the latent
variable; with untrained weights it is that prior's location and scale.

- mean field: :math:`N(\mu, \mathrm{diag}\,\sigma^2)`.
- low rank: :math:`N(\mu, U U^T + \mathrm{diag}\,\sigma^2)`.
- flow: v is carried through autoregressive rational splines that know the embedding (Pyro's own),
  and then shifted and scaled. Its inverse is not asked for in training: a transform remembers the
  draw that it has just made.

The first two know their divergence from a standard normal in closed form, which estimator B of
Kingma and Welling takes in place of draws (``TraceMeanField_ELBO``).

References:
    Kingma and Welling (2014), Auto-Encoding Variational Bayes; Rezende and Mohamed (2015),
    Variational Inference with Normalizing Flows; Durkan et al. (2019), Neural Spline Flows;
    Ong, Nott and Smith (2018), Gaussian Variational Approximation with a Factor Covariance
    Structure.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import conditional_spline, conditional_spline_autoregressive
from torch import Tensor, nn
from torch.distributions import AffineTransform, Independent, Normal, register_kl
from torch.nn.functional import softplus

from pyro_stad._checks import check_count

__all__ = ["POSTERIORS", "AbstractPosterior", "FlowPosterior", "LowRank", "MeanField"]

_ONE = math.log(math.e - 1)  # softplus of it is one
_LEAST = 1e-4  # of a scale, against the prior's


class AbstractPosterior(nn.Module, ABC):
    """A law of D numbers, given an embedding."""

    @abstractmethod
    def build(self, features: int, width: int) -> AbstractPosterior:
        """Return a new module, with weights, for D = ``features`` and embeddings of ``width``."""

    @abstractmethod
    def law(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Any:
        """Return the law of ``(*batch, D)`` given embeddings ``(*batch, width)``.

        Arguments:
            embedding: what is known of each datum.
            loc, scale: of the prior, ``(D,)``.
        """

    @abstractmethod
    def middle(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Return the median of each number, or the image of the base's median: ``(*batch, D)``."""


class MeanField(AbstractPosterior):
    """Independent normals, with means and scales by one linear map of the embedding."""

    head: nn.Linear

    def build(self, features: int, width: int) -> MeanField:
        new = type(self)()
        new.head = _zero(nn.Linear(width, 2 * features))
        return new

    def law(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Any:
        shift, spread = _shift_and_scale(self.head(embedding))
        return dist.Normal(loc + scale * shift, scale * spread).to_event(1)

    def middle(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return loc + scale * _shift_and_scale(self.head(embedding))[0]


class LowRank(AbstractPosterior):
    """A normal law whose covariance is diagonal but for a few directions.

    Arguments:
        rank: how many directions.
    """

    head: nn.Linear
    factor: nn.Linear

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        check_count(rank, "rank")
        self.rank = rank

    def build(self, features: int, width: int) -> AbstractPosterior:
        if features == 1:  # There is nothing for directions to share.
            return MeanField().build(features, width)
        new = type(self)(self.rank)
        new.head = _zero(nn.Linear(width, 2 * features))
        # Small, and not zero: of a factor of zero the gradient is zero too.
        new.factor = _zero(nn.Linear(width, min(self.rank, features) * features), noise=1e-2)
        return new

    def law(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Any:
        shift, spread = _shift_and_scale(self.head(embedding))
        factor = self.factor(embedding)
        factor = factor.reshape(*factor.shape[:-1], len(loc), -1)
        return _LowRankNormal(
            loc + scale * shift, scale[:, None] * factor, (scale * spread).square()
        )

    def middle(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return loc + scale * _shift_and_scale(self.head(embedding))[0]


class FlowPosterior(AbstractPosterior):
    """Splines around a mean field: several modes and bends, for a price.

    Pyro's splines can't be traced: with it, ``Trace_ELBO`` stands in for ``JitTrace_ELBO``.

    Arguments:
        layers: of splines, each autoregressive in an order of its own.
        width: of their networks.
        bins: of each spline.
    """

    head: nn.Linear
    splines: nn.ModuleList

    def __init__(self, layers: int = 2, width: int = 64, bins: int = 8) -> None:
        super().__init__()
        for name, value in (("layers", layers), ("width", width), ("bins", bins)):
            check_count(value, name)
        self.layers, self.width, self.bins = layers, width, bins

    def build(self, features: int, width: int) -> FlowPosterior:
        new = type(self)(self.layers, self.width, self.bins)
        new.head = _zero(nn.Linear(width, 2 * features))
        hidden = [max(self.width, features + 1)] * 2
        # Of one number, autoregressive and elementwise are the same, and Pyro wants the latter.
        make = conditional_spline if features == 1 else conditional_spline_autoregressive
        new.splines = nn.ModuleList(
            make(features, width, hidden, count_bins=self.bins) for _ in range(self.layers)
        )
        return new

    def law(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Any:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "Pyro's splines look for points outside their box, how many of them changes from "
                "step to step, and a trace can't follow: train with Trace_ELBO in place of "
                'JitTrace_ELBO, or with posterior="mean_field" or "low_rank"'
            )
        shift, spread = _shift_and_scale(self.head(embedding))
        base = dist.Normal(torch.zeros_like(shift), torch.ones_like(shift)).to_event(1)
        # Each remembers its last draw, so that its density is not sought backwards.
        affine = AffineTransform(loc + scale * shift, scale * spread, event_dim=1, cache_size=1)
        splines = [cast(Any, spline).condition(embedding) for spline in self.splines]
        return dist.TransformedDistribution(base, [*splines, affine])

    def middle(self, embedding: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        law = self.law(embedding, loc, scale)
        value = torch.zeros_like(law.base_dist.base_dist.loc)
        for transform in law.transforms:
            value = transform(value)
        return value


POSTERIORS: Mapping[str, AbstractPosterior] = MappingProxyType(
    {"mean_field": MeanField(), "low_rank": LowRank(), "flow": FlowPosterior()}
)


class _LowRankNormal(dist.LowRankMultivariateNormal):
    """A class of our own, so that its divergence is registered for nobody else's."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(_LowRankNormal, _instance)
        return super().expand(batch_shape, _instance=new)


@register_kl(_LowRankNormal, Independent)
def _divergence(q: _LowRankNormal, p: Independent) -> Tensor:
    r"""Return the Kullback-Leibler divergence from independent normals, shape ``(*batch,)``.

    :math:`\frac12 [\sum_i (\Sigma_{ii} + (\mu_i - m_i)^2) / s_i^2 - D + \sum_i \log s_i^2
    - \log\det\Sigma]`, the determinant by the lemma of the same name.
    """
    if not isinstance(p.base_dist, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError
    mean, variance = p.base_dist.loc, p.base_dist.scale.square()
    part = (q.variance + (q.loc - mean).square()) / variance - 1 + variance.log()
    log_det = q._unbroadcasted_cov_diag.log().sum(-1) + 2 * q._capacitance_tril.diagonal(
        dim1=-2, dim2=-1
    ).log().sum(-1)
    return 0.5 * (part.sum(-1) - log_det)


def _zero(layer: nn.Linear, noise: float = 0.0) -> nn.Linear:
    with torch.no_grad():
        layer.weight.mul_(noise)
        layer.bias.normal_(std=noise) if noise else layer.bias.zero_()
    return layer


def _shift_and_scale(raw: Tensor) -> tuple[Tensor, Tensor]:
    shift, spread = raw.chunk(2, -1)
    return shift, softplus(spread + _ONE) + _LEAST
