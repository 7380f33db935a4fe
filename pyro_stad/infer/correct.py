r"""``correct``: a posterior under distilled densities, carried to the exact ones.

The draws of a posterior with log joint density :math:`\hat\ell(\theta)` get the log-weights

.. math:: \log w = \ell(\theta) - \hat\ell(\theta),

with :math:`\ell` that of the same model with exact traces in place of every distilled divergence,
of priors, of conditional flows as likelihoods, observed or not. About a thousand draws are enough:
an expectation is as good as the draws that are used, thinned evenly. Draws of a variational guide
are weighted by :math:`\ell - \log q` in place of that, which takes its own error away as well.

A generator of one step has no density. In noise it needs none: with prior N(0, I) in both models,
:math:`\ell - \hat\ell` is the log-likelihood of the data by the flow less that by the generator, of
the same noise. That it takes a solve and no trace, and holds where a generator folds.

The weights are Pareto-smoothed; their shape :math:`\hat k` says whether a mean with them can be
believed: not from 0.7 on, unless they are nearly alike, nor if they leave less than a fifth of the
draws.

References:
    Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling; Yao,
    Vehtari, Simpson and Gelman (2018), Yes, but Did It Work? Evaluating Variational Inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._random import forked, generator, stream
from pyro_stad._weights import WORST_SHAPE, believable
from pyro_stad.density import drawn_by_flow, exactly, find_generator, law_of
from pyro_stad.errors import AccuracyWarning
from pyro_stad.evidence.correction import thinned, weighed
from pyro_stad.model.draws import by_chain
from pyro_stad.model.replay import replay
from pyro_stad.model.sites import is_computed, sampled

__all__ = ["CorrectedPosterior", "correct"]

_LEAST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class CorrectedPosterior:
    """Weighted draws of the posterior under exact densities.

    Attributes:
        draws: those that were used, by site, each ``(chains, n, ...)``; with what a model that was
            reparametrised computes from them, by the exact law.
        log_weights: of these, ``(chains, n)``; the weights sum to one.
        khat: Pareto shape of the weights; see ``is_reliable``.
        ess: draws of equal weight that they are worth, before they were smoothed.
        log_z, log_z_err: what the correction adds to the logarithm of the evidence, in nats; of a
            guide's draws, the logarithm of the evidence itself.
        sites: the learned sites whose densities were corrected.
    """

    draws: dict[str, Tensor]
    log_weights: Tensor
    khat: float
    ess: float
    log_z: float
    log_z_err: float
    sites: tuple[str, ...] = field(default=())

    @property
    def is_reliable(self) -> bool:
        """Whether means with these weights can be believed.

        The shape alone does not tell: of draws that are far too narrow for the posterior, whose
        weights grow without a heavy tail among them, it was 0.63 where log Z was 2.7 nats off.
        """
        count = self.log_weights.numel()
        return bool(believable(self.khat, self.ess, count)) and self.ess >= _LEAST_SHARE * count

    def mean(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return weighted means of draws, or of other ``values`` ``(chains, n, ...)``."""
        return {name: self._sum(value) for name, value in (values or self.draws).items()}

    def sd(self) -> dict[str, Tensor]:
        """Return weighted standard deviations of the draws."""
        means = self.mean()
        squares = {name: (value - means[name]).square() for name, value in self.draws.items()}
        return {name: value.sqrt() for name, value in self.mean(squares).items()}

    def resampled(self, *, seed: int = 0) -> dict[str, Tensor]:
        """Return as many draws of equal weight, by site, each ``(chains * n, ...)``.

        By one comb over the weights, so that none comes more often than it has to.

        Arguments:
            seed: of the comb, and of the order of the draws.
        """
        weights = self.log_weights.reshape(-1).exp()
        source = generator(check_seed(seed), "resampled posterior")
        offset = torch.rand((), generator=source, dtype=weights.dtype)
        comb = (torch.arange(len(weights), dtype=weights.dtype) + offset) / len(weights)
        chosen = torch.searchsorted(weights.cumsum(0), comb).clamp_max(len(weights) - 1)
        chosen = chosen[torch.randperm(len(chosen), generator=source)]
        return {name: value.flatten(0, 1)[chosen] for name, value in self.draws.items()}

    def summary(self) -> str:
        """Return what the correction moved, as text: means and sds, before and after."""
        trouble = "" if self.is_reliable else ": NOT to be believed"
        # Of a guide's draws of a model without learned laws, only the guide was put right.
        names = f"exact laws of {', '.join(self.sites)}" if self.sites else "the model's own law"
        lines = [
            f"corrected to {names}: Pareto shape "
            f"{self.khat:.2f}{trouble}, {self.ess:.0f} effective of {self.log_weights.numel()} "
            f"draws, log Z {self.log_z:+.3f} +- {self.log_z_err:.2g}"
        ]
        means, sds = self.mean(), self.sd()
        for name, value in self.draws.items():
            flat = value.flatten(0, 1).reshape(value.shape[0] * value.shape[1], -1)
            columns = zip(flat.mean(0), means[name].reshape(-1), flat.std(0), sds[name].reshape(-1))
            for index, (before, after, spread, now) in enumerate(columns):
                lines.append(
                    f"  {name}[{index}]: mean {before:.4g} -> {after:.4g}, "
                    f"sd {spread:.3g} -> {now:.3g}"
                )
        return "\n".join(lines)

    def _sum(self, value: Tensor) -> Tensor:
        # A share of draws is a mean too: of what is true or false, or counted.
        numbers = value if value.is_floating_point() else value.double()
        return torch.tensordot(self.log_weights.exp().to(numbers), numbers, dims=2)


def correct(
    source: Any,
    model: Callable[..., Any],
    *args: Any,
    draws: int = 1000,
    num_chains: int = 1,
    seed: int = 0,
    **kwargs: Any,
) -> CorrectedPosterior:
    """Carry a posterior to the exact densities of its learned priors and likelihoods.

    Arguments:
        source: a Pyro ``MCMC`` that has run, ArviZ data with a posterior, draws by site, each
            ``(chains * draws, ...)``; or a guide that was trained by SVI.
        model: the model, in the form that was sampled (reparametrised or not).
        args, kwargs: its arguments, with the observed data.
        draws: at how many draws exact traces are computed, about.
        num_chains: chains in a mapping of draws; other sources know theirs.
        seed: of draws from a guide.

    Raises:
        TypeError, ValueError: for a source or a model that can't be used.

    Warns:
        AccuracyWarning: if the weights are so uneven that their means can't be believed.
    """
    if not callable(model):
        raise TypeError(
            f"`model` must be a Pyro model, after the draws; got {type(model).__name__}"
        )
    check_count(draws, "draws", least=100)
    is_guide = callable(source) and not isinstance(source, Mapping)
    if is_guide:
        used, log_q = _of_guide(source, args, kwargs, draws, check_seed(seed))
        _check_spread(used)
        places, chains = torch.arange(draws), 1
    else:
        used, places, chains = _of_chains(source, draws, num_chains)
    twin, computed = _Exactly(), _computed(model, args, kwargs, used)
    # What a model computes is computed anew: by the exact law it comes out otherwise.
    free = {name: value for name, value in used.items() if name not in computed}
    if not free:
        raise ValueError(
            f"`source` has draws of {sorted(used)} alone, which the model computes from its latent "
            "sites; it needs draws of those"
        )
    exact = replay(partial(_held, twin, model), args, kwargs, free)
    plain = log_q if is_guide else replay(model, args, kwargs, free).lp
    found = weighed((exact.lp.double() - plain.double()).cpu(), places, chains)
    used = free | _anew(exact.computed, computed, used)
    shaped = {name: value.reshape(chains, -1, *value.shape[1:]) for name, value in used.items()}
    log_weights = found.weights.log().reshape(chains, -1)
    result = CorrectedPosterior(
        shaped, log_weights, found.khat, found.effective, found.value,
        found.error, tuple(twin.sites),
    )  # fmt: skip
    if not result.is_reliable:
        warnings.warn(
            f"the correction's weights have a Pareto shape of {result.khat:.2f} and leave "
            f"{result.ess:.0f} of {result.log_weights.numel()} draws, expected less than "
            f"{WORST_SHAPE} and a fifth: what the draws are of is too far from the exact density. "
            "Sample again in noise (FlowReparam) or with the exact twin; train a guide for longer",
            AccuracyWarning,
            stacklevel=2,
        )
    return result


def _computed(
    model: Callable[..., Any], args: Any, kwargs: Any, used: dict[str, Tensor]
) -> dict[str, bool]:
    """Return which sites a model computes, and whether each is what a latent one was before.

    By a run with the first of the draws: of some priors nothing can be drawn.
    """
    first = poutine.condition(model, data={name: value[0] for name, value in used.items()})
    with forked(0), torch.no_grad(), poutine.block(), pyro.validation_enabled(False):
        trace = poutine.trace(first).get_trace(*args, **kwargs)
    return {
        site["name"]: not site["infer"].get("_deterministic")
        for site in sampled(trace)
        if is_computed(site)
    }


def _anew(
    found: Mapping[str, Tensor], computed: Mapping[str, bool], used: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what a model computed: what was a latent site, and what there were draws of."""
    shown = [name for name, was_latent in computed.items() if was_latent or name in used]
    missing = [name for name in shown if name not in found]
    if missing:
        raise ValueError(f"the model computes {missing} in some of its runs only; leave them out")
    return {name: found[name] for name in shown}


def _check_spread(used: dict[str, Tensor]) -> None:
    """Refuse a guide of one point, which has no density to weigh by."""
    still = [name for name, value in used.items() if bool((value == value[0]).all())]
    if still:
        raise ValueError(
            f"the guide draws the same {still} every time, as AutoDelta does: it has no density, "
            "and is no proposal. Take a guide with a scale, such as AutoNormal"
        )


def _held(messenger: Messenger, model: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with messenger, drawn_by_flow():
        return model(*args, **kwargs)


class _Exactly(Messenger):
    """Puts the exact twin of every learned law in its place, and keeps the names of the sites.

    Generators of one step draw by their flow, of the same noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, None] = {}
        # The laws are kept too: another one may get the address of one that is gone.
        self._twins: dict[int, tuple[Any, Any]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if find_generator(law_of(msg)) is not None:
            self.sites[msg["name"]] = None
        if id(fn) not in self._twins:
            self._twins[id(fn)] = fn, exactly(fn)
        twin = self._twins[id(fn)][1]
        if twin is not fn:
            msg["fn"] = twin
            self.sites[msg["name"]] = None


def _of_chains(source: Any, draws: int, num_chains: int) -> tuple[dict[str, Tensor], Tensor, int]:
    """Return evenly thinned draws ``(n, ...)``, their places, and the number of chains."""
    chains = by_chain(source, "source")
    count, length = next(iter(chains.values())).shape[:2]
    if count == 1 and num_chains > 1:
        if length % num_chains:
            raise ValueError(f"`num_chains` = {num_chains} does not divide {length} draws")
        count, length = num_chains, length // num_chains
    places = thinned(count, length, draws)
    used = {name: value.flatten(0, 1)[places.to(value.device)] for name, value in chains.items()}
    return used, places, count


def _of_guide(
    guide: Callable[..., Any], args: Any, kwargs: Any, draws: int, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Return draws of the latent sites of a guide, ``(n, ...)``, and their log-densities."""
    rows: list[dict[str, Tensor]] = []
    log_q = []
    with forked(stream(seed, "draws of a guide")), torch.no_grad():
        for _ in range(draws):
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            log_q.append(torch.as_tensor(trace.log_prob_sum()))
            sites = [s for s in sampled(trace) if not s["infer"].get("is_auxiliary")]
            rows.append({site["name"]: site["value"] for site in sites})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}, torch.stack(log_q)
