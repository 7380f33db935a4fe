r"""Goodness of fit: does the density describe samples that the fit has not seen?

A calibration holds the distilled density against the flow's own; here the flow is held against the
samples, in two ways, both in the whitened, unbounded coordinates of the flow, which all densities
below are densities of; angles are unrolled, as the flow sees them.

1. *Held-out log-density*, less that of a normal law and of a Gaussian mixture
   (:mod:`pyro_stad.report.gaussians`) of the training samples. Samples are whitened, so that the
   normal is N(0, I), and whitening's log-determinant is common to all and cancels. It is also what
   an untrained network gives: to be below it is to have learned nothing but mistakes. The mean of
   the differences :math:`g_i` with weights :math:`w_i` has the standard error
   :math:`\mathrm{sd}(g) / \sqrt{n}`, n being what the rows are worth: Kish's size over the
   autocorrelation time.
2. *Draws against samples*, by their nearest neighbours
   (:mod:`pyro_stad.calibrate.two_sample`). That test wants independent rows of equal weight. A
   row is kept with the chance :math:`w_i / \max w`, and of a chain one in two autocorrelation
   times: what is left follows the law exactly, without repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import encode
from pyro_stad._random import generator
from pyro_stad._weights import effective_size
from pyro_stad.calibrate.two_sample import TwoSample, two_sample
from pyro_stad.data import Batches
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.report.gaussians import best_mixture
from pyro_stad.transport import AbstractTransport

__all__ = ["Gain", "Goodness", "goodness"]

_MOST_HELD, _MOST_KEPT = 20_000, 4000
_FEWEST, _FEWEST_COMPARED, _MOST_COMPARED = 20, 50, 1000
# In standard errors, in nats (a time grid alone costs 1e-5, with a smaller error), and a chance.
_WORSE, _LEAST, _REJECTED = 3.0, 0.01, 1e-3
_REMEDY = "Fit with a larger budget, give `bounds` where the samples end abruptly, or more samples"


@dataclass(frozen=True)
class Gain:
    """Mean held-out log-density of the flow, less that of another law, in nats a sample."""

    mean: float
    standard_error: float

    def text(self) -> str:
        """Return it in words."""
        side = "above" if self.mean >= 0 else "below"
        return f"{abs(self.mean):.2g} +- {self.standard_error:.1g} nat a sample {side}"


@dataclass(frozen=True)
class Goodness:
    """How well a prior describes samples that its fit has not seen.

    Attributes:
        rows: number of these samples.
        effective: independent samples of equal weight that they are worth.
        log_density: their mean log-density in whitened coordinates.
        over_normal: the gain over a multivariate normal.
        over_mixture: the gain over a Gaussian mixture, or None without training samples or
            scikit-learn.
        components: number of components of that mixture, or None.
        draws: comparison with draws of the prior, or None for too few samples.
    """

    rows: int
    effective: float
    log_density: float
    over_normal: Gain
    over_mixture: Gain | None = None
    components: int | None = None
    draws: TwoSample | None = None

    def __post_init__(self) -> None:
        check_count(self.rows, "rows")

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is so bad that it has to be said, a sentence or two for each."""
        if not math.isfinite(self.log_density):
            return (f"log_prob is not finite at some of {self.rows} held-out samples. {_REMEDY}",)
        found, gain = [], self.over_normal
        far = max(_WORSE * gain.standard_error, _LEAST)
        if self.effective >= _FEWEST and gain.mean < -far:
            found.append(
                "the prior describes held-out samples worse than a multivariate normal: their "
                f"log-density is {gain.text()} the normal's. {_REMEDY}"
            )
        if self.draws is not None and self.draws.p_value < _REJECTED:
            found.append(
                f"draws of the prior can be told from held-out samples: of their nearest "
                f"neighbours, {_neighbours(self.draws)}. {_REMEDY}"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return encode(self)

    def text(self) -> str:
        """Return it as a plain sentence."""
        words = f"  fit: held-out log-density {self.over_normal.text()} a multivariate normal's"
        if self.over_mixture is not None:
            count = self.components
            other = "one fitted normal" if count == 1 else f"a mixture of {count} normals"
            words += f", {self.over_mixture.text()} that of {other}"
        if self.draws is None:
            return f"{words}; too few samples to compare with draws"
        told = "can" if self.draws.p_value < _REJECTED else "cannot"
        return (
            f"{words}; draws and held-out samples {told} be told apart (of nearest neighbours, "
            f"{_neighbours(self.draws)})"
        )


def _neighbours(draws: TwoSample) -> str:
    return (
        f"{draws.share:.1%} are of the same kind, {draws.chance:.1%} +- {draws.chance_error:.1%} "
        f"by chance, p = {draws.p_value:.2g}"
    )


def goodness(
    likelihood: AbstractLikelihood,
    transport: AbstractTransport,
    held: Batches,
    seed: int,
    *,
    kept: Batches | None = None,
    time: float = 1.0,
) -> Goodness:
    """Hold a density and its draws against samples that its training has not seen.

    Arguments:
        likelihood: the log-density.
        transport: what draws are made by.
        held: these samples, whitened, in the order of their chain if they are of one.
        seed: of everything random.
        kept: the samples of the training, whitened, for a mixture to be compared with.
        time: autocorrelation time of the samples, in rows.
    """
    source = generator(seed, "goodness of fit", held.values.device)
    rows, shares = _thinned(held)
    effective = max(1.0, effective_size(shares).item() / time)
    with torch.no_grad():
        own = likelihood.log_prob(rows).double()
    size = rows.shape[1]
    normal = -0.5 * rows.double().square().sum(-1) - 0.5 * size * math.log(2 * math.pi)
    over_mixture, components = None, None
    if kept is not None:
        worth = max(2.0, min(len(kept), _MOST_KEPT, effective_size(kept.shares).item() / time))
        mixture = best_mixture(kept.subset(_MOST_KEPT, source), worth, source)
        if mixture is not None:
            other = torch.from_numpy(mixture.score_samples(rows.double().cpu().numpy()))
            over_mixture, components = (
                _gain(own - other.to(own), shares, effective),
                mixture.n_components,
            )
    return Goodness(
        rows=len(rows),
        effective=round(effective, 1),
        log_density=(shares @ own).item(),
        over_normal=_gain(own - normal, shares, effective),
        over_mixture=over_mixture,
        components=components,
        draws=_against_draws(transport, rows, shares, time, source),
    )


def _thinned(held: Batches) -> tuple[Tensor, Tensor]:
    """Return rows and their shares of the weight; of very many, some, evenly."""
    step = math.ceil(len(held) / _MOST_HELD)
    shares = held.shares[::step]
    return held.values[::step], shares / shares.sum()


def _gain(difference: Tensor, shares: Tensor, effective: float) -> Gain:
    mean = shares @ difference
    # Of the sample, not of the law: without the factor, one row would have no error at all.
    variance = shares @ (difference - mean).square() * effective / max(effective - 1, 1)
    return Gain(mean.item(), (variance / effective).sqrt().item())


def _against_draws(
    transport: AbstractTransport,
    rows: Tensor,
    shares: Tensor,
    time: float,
    source: torch.Generator,
) -> TwoSample | None:
    step = 1 if time <= 1 else math.ceil(2 * time)
    rows, shares = rows[::step], shares[::step]
    chance = torch.rand(len(rows), generator=source, dtype=torch.float64, device=rows.device)
    rows = rows[chance < shares / shares.max()]
    order = torch.randperm(len(rows), generator=source, device=rows.device)
    rows = rows[order[:_MOST_COMPARED]]
    if len(rows) < _FEWEST_COMPARED:
        return None
    noise = torch.randn(rows.shape, generator=source, dtype=rows.dtype, device=rows.device)
    with torch.no_grad():
        return two_sample(rows, transport.push(noise))
