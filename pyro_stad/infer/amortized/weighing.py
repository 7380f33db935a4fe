r"""The draws of a recognition guide, weighed to the posterior of each datum.

.. math:: \log w_{si} = \log p(x_i, z_{si}) - \log q(z_{si} \mid x_i),

for draw s of datum i. The mean of the weights is the evidence of the datum, without any sampling by
chains; their Pareto shape says, datum by datum, whether the network did well enough there.

References:
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling; Burda,
    Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._progress import progress_bar
from pyro_stad._random import forked, generator, stream
from pyro_stad._weights import WORST_SHAPE, believable, log_mean_exp, smoothed
from pyro_stad.errors import AccuracyWarning
from pyro_stad.model.sites import check_whole, is_data, is_latent, sampled

__all__ = ["WeighedPosteriors", "weigh"]


@dataclass(frozen=True, eq=False)
class WeighedPosteriors:
    """Weighed draws of the posterior of every datum of a plate, N of them.

    Attributes:
        plate: name of the plate.
        draws: by site, each ``(S, ...)`` with the plate's dimension where the model has it.
        log_weights: ``(S, N)``, Pareto-smoothed; the weights of each datum sum to one.
        log_z: logarithm of the evidence of each datum, ``(N,)``.
        log_z_err: its standard error, ``(N,)``.
        khat: Pareto shape of each datum's weights, ``(N,)``; from 0.7 on don't believe them.
        ess: draws of equal weight that those of each datum are worth, ``(N,)``.
        dims: which dimension of each site's draws is the plate's.
    """

    plate: str
    draws: dict[str, Tensor]
    log_weights: Tensor
    log_z: Tensor
    log_z_err: Tensor
    khat: Tensor
    ess: Tensor
    dims: dict[str, int]

    @property
    def is_reliable(self) -> Tensor:
        """Whether the weights of each datum can be believed, ``(N,)``."""
        return believable(self.khat, self.ess, len(self.log_weights))

    def mean(self) -> dict[str, Tensor]:
        """Return the posterior mean of each datum, by site, ``(...)``."""
        return {name: self._sum(name, value) for name, value in self.draws.items()}

    def sd(self) -> dict[str, Tensor]:
        """Return the posterior standard deviation of each datum, by site, ``(...)``."""
        means = self.mean()
        return {
            name: self._sum(name, (value - means[name]).square()).sqrt()
            for name, value in self.draws.items()
        }

    def resampled(self, *, seed: int = 0) -> dict[str, Tensor]:
        """Return as many draws of equal weight for each datum, by site.

        Arguments:
            seed: of the choice.
        """
        source = generator(check_seed(seed), "resampled data")
        weights = self.log_weights.exp().T
        count = len(self.log_weights)
        chosen = torch.multinomial(weights, count, replacement=True, generator=source).T
        found = {}
        for name, value in self.draws.items():
            index = self._like(name, chosen.to(value.device)).expand(value.shape)
            found[name] = value.gather(0, index)
        return found

    def summary(self) -> str:
        """Return how many data can be believed, and what their evidence comes to, as text."""
        good, count = int(self.is_reliable.sum()), len(self.khat)
        return (
            f"{count} data of plate {self.plate!r}: weights of {good} can be believed, worst "
            f"Pareto shape {self.khat.max():.2f}; {self.ess.median():.0f} effective of "
            f"{len(self.log_weights)} draws (median), {self.ess.min():.0f} at worst; log Z in all "
            f"{self.log_z.sum():.2f} +- {self.log_z_err.square().sum().sqrt():.2g}"
        )

    def __repr__(self) -> str:
        return f"WeighedPosteriors({self.summary()})"

    def _like(self, name: str, value: Tensor) -> Tensor:
        """Return ``(S, N)`` with as many dimensions as the draws of a site, for broadcasting."""
        shape = [1] * self.draws[name].ndim
        shape[0], shape[self.dims[name]] = value.shape
        return value.reshape(shape)

    def _sum(self, name: str, value: Tensor) -> Tensor:
        return (self._like(name, self.log_weights.exp().to(value)) * value).sum(0)


def weigh(
    guide: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    draws: int,
    seed: int,
    progress: bool,
) -> WeighedPosteriors:
    """Weigh draws of a guide; see ``AmortizedGuide.importance``."""
    check_count(draws, "draws", least=100)
    training = guide.training
    guide.eval()  # networks that count batches are not to count these
    try:
        with forked(stream(check_seed(seed), "draws of a guide")), torch.no_grad():
            return _summed_up(*_weights(guide, args, kwargs, draws, progress=progress))
    finally:
        guide.train(training)


def _weights(
    guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], draws: int, *, progress: bool
) -> tuple[str, dict[str, Tensor], Tensor, dict[str, int]]:
    """Return the plate, draws by site, their log-weights, and the plate's dimension in each."""
    rows, log_weights = [], []
    with progress_bar("weighing", draws, shown=progress) as bar:
        for index in range(draws):
            q = poutine.trace(guide).get_trace(*args, **kwargs)
            p = poutine.trace(poutine.replay(guide.model, q)).get_trace(*args, **kwargs)
            if index == 0:
                plate, dim = _common_plate(p, _fixed_sites(guide.model, args, kwargs))
            log_weights.append(_by_member(p, plate, dim) - _by_member(q, plate, dim))
            rows.append({s["name"]: s["value"] for s in sampled(q)})
            bar.update()
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    # Dimensions of the event stand behind the plate's.
    dims = {s["name"]: dim - len(s["fn"].event_shape) for s in sampled(p) if is_latent(s)}
    return plate, values, torch.stack(log_weights).double(), dims


def _summed_up(
    plate: str, values: dict[str, Tensor], log_weights: Tensor, dims: dict[str, int]
) -> WeighedPosteriors:
    smooth, khat, effective = smoothed(log_weights.T)
    log_z = log_mean_exp(log_weights, 0)
    spread = (log_weights - log_z).exp().std(0) / math.sqrt(len(log_weights))
    found = WeighedPosteriors(plate, values, smooth.T, log_z, spread, khat, effective, dims)
    bad = int((~found.is_reliable).sum())
    if bad:
        warnings.warn(
            f"the weights of {bad} of {len(khat)} data have a Pareto shape of {WORST_SHAPE} or "
            "more: there the guide is too far from the posterior. See `khat`; train it for longer, "
            'or with posterior="flow"',
            AccuracyWarning,
            stacklevel=4,
        )
    return found


def _fixed_sites(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> set[str]:
    """Return observed sites that depend on no latent variable: globals that are conditioned on.

    Their densities are the same for all draws of all data, and are left out of the evidence, which
    is that given them.
    """
    with poutine.block():
        above: Any = get_dependencies(model, args, kwargs)["prior_dependencies"]
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return {s["name"] for s in sampled(trace) if is_data(s) and len(above[s["name"]]) == 1}


def _common_plate(trace: Any, fixed: Collection[str]) -> tuple[str, int]:
    """Return the outermost plate that all sites with a law are in, and its dimension.

    Arguments:
        trace: of the model.
        fixed: names of sites that may be outside.

    Raises:
        ValueError: if there is none, as in a model with global latent variables.
    """
    check_whole(trace, "a weight for each datum")
    stacks = []
    for site in sampled(trace):
        if site["name"] not in fixed and (is_latent(site) or site["is_observed"]):
            stack = {f.name: f.dim for f in site["cond_indep_stack"] if f.vectorized}
            stacks.append((site, stack))
    common = set.intersection(*(set(stack) for _, stack in stacks))
    if not common:
        alone = [site["name"] for site, stack in stacks if not stack]
        if not alone:
            plates = {site["name"]: list(stack) for site, stack in stacks}
            raise ValueError(
                f"weights for each datum need one plate around all sites; here each has others, "
                f"{plates}. Weigh all data at once by `correct`"
            )
        raise ValueError(
            f"weights for each datum need one plate around all sites; {alone} are outside. Fix "
            "global variables by pyro.condition(model, ...), train a guide of that model, and "
            "weigh it; or weigh all data at once by `correct`"
        )
    dims = stacks[0][1]
    name = min(common, key=lambda each: dims[each])
    return name, dims[name]


def _by_member(trace: Any, plate: str, dim: int) -> Tensor:
    """Return the log-probability of the plate's sites for each member of it."""
    trace.compute_log_prob()
    total: Any = 0.0
    for site in sampled(trace):
        if all(frame.name != plate for frame in site["cond_indep_stack"]):
            continue  # a global that is conditioned on
        if not is_latent(site) and not site["is_observed"]:
            continue
        value = site["log_prob"]
        value = value.flatten(value.ndim + dim + 1) if dim < -1 else value[..., None]
        total = total + value.sum(-1).reshape(-1, value.shape[-2]).sum(0)
    return total
