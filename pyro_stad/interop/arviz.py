r"""Pyro's draws to ArviZ, for ArviZ 0.x and 1.x, from one dictionary of groups.

ArviZ 1.x has no Pyro converter any more, so everything goes through its ``from_dict``. The model,
if given, is replayed with every draw (:mod:`pyro_stad.model.replay`): what it observes becomes
log-likelihood and observed data, what it computes joins the posterior, and the log-probability of
its trace is ``lp``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.api import _MultiSampler
from torch import Tensor

from pyro_stad.density import FlowPrior, TruncatedPrior, extrapolation
from pyro_stad.errors import OutOfDistributionWarning
from pyro_stad.evidence import EvidenceResult, sample_support
from pyro_stad.interop.groups import as_numpy, assemble, grouped, labels_of, predictive_groups
from pyro_stad.interop.summary import LEARNING
from pyro_stad.learn import joint_log_weights
from pyro_stad.model.draws import by_chain
from pyro_stad.model.replay import replay
from pyro_stad.model.replayed import Replay

__all__ = ["to_arviz"]

LearnedPrior = FlowPrior | TruncatedPrior
# What tells that a prior is extrapolated, and what the count of such draws is called.
_ALARMS = {"tail_probability": "tail", "density_level": "level"}


def to_arviz(
    source: MCMC | Mapping[str, Tensor] | EvidenceResult,
    *,
    model: Callable[..., Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    prior: LearnedPrior | Mapping[str, LearnedPrior] | None = None,
    num_chains: int = 1,
    predictive: int = 0,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
) -> Any:
    """Convert draws to ArviZ's ``InferenceData`` (0.x) or ``DataTree`` (1.x).

    Arguments:
        source: a Pyro ``MCMC`` that has run, draws by site with shape ``(chains * draws, ...)``, or
            an estimate of the evidence, whose numbers become attributes of the posterior.
        model: the model that was sampled, in the form that the kernel saw (reparametrised or not).
        args, kwargs: its arguments, with the observed data. Masks and scales of the model count.
        prior: the learned prior of a site, or priors by site, for names, tail probabilities and
            counts; found by itself if ``model`` is given.
        num_chains: chains in a mapping of draws; an ``MCMC`` knows its own.
        predictive: if positive, draws of the ``prior`` and ``prior_predictive`` groups; a
            ``posterior_predictive`` group with one draw per posterior draw comes with them.
        coords, dims: as in ArviZ; learned priors name their coordinates themselves.

    Returns:
        Groups ``posterior`` and ``sample_stats`` and, with a model, ``log_likelihood``,
        ``observed_data`` and the predictive groups. ``sample_stats`` holds ``diverging``,
        ``acceptance_rate`` (Pyro keeps one number per chain), ``lp`` (with a model: the
        log-probability of its trace, in the model's own coordinates), ``tail_probability`` and
        ``density_level`` of learned priors and ``surrogate_error``, the bound on the error of
        theirs, in nats, ``learning_log_weights``, for the error of learning (see
        ``posterior_summary``), and, as attributes, their counts of failed solves (``"unknown"``
        where chains ran in other processes, or draws came from elsewhere) and of draws with either
        below the ``alarm_level`` of the prior.

    Raises:
        TypeError, ValueError: for a source or prior that does not fit, or a model that can't be
            replayed: with a latent site that has no draws, or a subsample of the data.

    Warns:
        OutOfDistributionWarning: if more draws than ten times its ``alarm_level`` lie where a
            learned prior has hardly seen samples; or, with a model, if the samples of its learned
            priors, reweighted by the likelihood, do not agree with them (``sample_support``, whose
            numbers are attributes of ``sample_stats``).
    """
    evidence = source if isinstance(source, EvidenceResult) else None
    draws, num_chains = _draws(source if evidence is None else evidence.draws, num_chains)
    count = len(next(iter(draws.values())))
    found = Replay()
    if model is not None:
        found = replay(model, args, dict(kwargs or {}), draws)
    priors = _priors_by_site(prior, found.priors, {**draws, **found.computed})
    inner = {**draws, **found.computed, **found.inner}
    groups: dict[str, dict[str, Any]] = {"posterior": {**draws, **found.computed}}
    groups["sample_stats"] = _statistics(source, num_chains, count)
    if model is not None:
        groups["sample_stats"]["lp"] = found.lp
        groups["log_likelihood"] = found.log_likelihood
    elif evidence is not None:
        groups["log_likelihood"] = dict(evidence.log_likelihood)
    attributes: dict[str, int | float | str] = dict(_counts(priors, source))
    for alarm, short in _ALARMS.items():
        found_by_site = _alarms(priors, inner, alarm)
        if found_by_site:
            groups["sample_stats"][alarm] = torch.stack([*found_by_site.values()]).amin(0)
            attributes |= {
                f"{site}_{short}": int((level < priors[site].alarm_level).sum())
                for site, level in found_by_site.items()
            }
    if model is not None and priors and evidence is None:
        attributes |= _support(model, args, dict(kwargs or {}))
    errors = _errors(priors, inner)
    if errors is not None:
        groups["sample_stats"]["surrogate_error"] = errors
    learning = _learning(priors, inner) if evidence is None else evidence.learning
    if learning is not None and learning.shape[1]:
        groups["sample_stats"][LEARNING] = learning
        dims = {LEARNING: ["learning_member"], **(dims or {})}
    if model is not None and predictive > 0:
        groups |= predictive_groups(model, args, dict(kwargs or {}), draws, predictive, found)
    shaped = {
        name: {site: grouped(value, num_chains, name) for site, value in group.items()}
        for name, group in groups.items()
    }
    if found.observed:
        shaped["observed_data"] = {k: as_numpy(v) for k, v in found.observed.items()}
    labels, axes = labels_of(priors, groups["posterior"], dict(coords or {}), dict(dims or {}))
    shaped = {name: group for name, group in shaped.items() if group}
    data = assemble(shaped, labels, axes, attributes)
    if evidence is not None:
        data["posterior"].attrs.update(evidence.attributes())
    return data


def _draws(source: Any, num_chains: int) -> tuple[dict[str, Tensor], int]:
    """Return draws ``(chains * draws, ...)``, chain by chain, and the number of chains."""
    chains = by_chain(source, "source")
    draws = {name: value.flatten(0, 1) for name, value in chains.items()}
    lengths = {name: len(value) for name, value in draws.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all sites of `source` must have as many draws; got {lengths}")
    count = next(iter(chains.values())).shape[0]
    # Draws by site are one chain after the other; everything else knows its chains.
    number = num_chains if count == 1 else count
    if next(iter(lengths.values())) % number:
        raise ValueError(f"`num_chains` = {num_chains} does not divide the draws, {lengths}")
    return draws, number


def _priors_by_site(
    prior: LearnedPrior | Mapping[str, LearnedPrior] | None,
    found: dict[str, LearnedPrior],
    values: dict[str, Tensor],
) -> dict[str, LearnedPrior]:
    """Return the learned priors of sites: the model's, and those given."""
    if prior is None:
        return found
    if isinstance(prior, Mapping):
        unknown = [site for site in prior if site not in values]
        if unknown:
            raise ValueError(f"`prior` names sites {unknown}; the draws have {sorted(values)}")
        return {**prior, **found}
    if found:
        return found
    fitting = [
        site
        for site, value in values.items()
        # Under a reparametrisation the base site has the same shape as the site itself.
        if value.shape[1:][-prior.like.ndim :] == prior.like.shape and not site.endswith("_base")
    ]
    if not fitting:
        shapes = {site: tuple(value.shape[1:]) for site, value in values.items()}
        raise ValueError(
            f"`prior` is of {prior.like.numel()} coordinates, {', '.join(prior.names)}; no site "
            f"has as many in its last dimension: {shapes}"
        )
    if len(fitting) != 1:
        raise ValueError(f"`prior` fits the sites {fitting}; pass it as a mapping of site to prior")
    return {fitting[0]: prior}


def _statistics(source: Any, num_chains: int, count: int) -> dict[str, Any]:
    if not isinstance(source, MCMC):
        return {}
    per_chain = count // num_chains
    diagnostics = source.diagnostics()
    diverging = np.zeros((num_chains, per_chain), dtype=bool)
    for chain, indices in enumerate(diagnostics.get("divergences", {}).values()):
        diverging[chain, indices] = True
    statistics = {"diverging": torch.from_numpy(diverging.reshape(-1))}
    if "acceptance rate" in diagnostics:
        rates = torch.tensor(list(diagnostics["acceptance rate"].values()))
        statistics["acceptance_rate"] = rates.repeat_interleave(per_chain)
    return statistics


def _alarms(
    priors: dict[str, LearnedPrior], values: Mapping[str, Any], alarm: str
) -> dict[str, Tensor]:
    """Return each draw's alarm under each learned prior; warn if many go off."""
    found = {}
    for site, prior in priors.items():
        level = getattr(prior, alarm)(values[site])
        level = level.reshape(len(level), -1)
        found[site] = level.amin(-1)
        # Of several draws of a prior in a plate, the one that is out most often.
        much = extrapolation(prior.alarm_level, level < prior.alarm_level)
        if much.too_many:
            warnings.warn(
                f"{much.share:.1%} of the draws of {site!r} lie where its learned prior has hardly "
                f"seen samples ({alarm.replace('_', ' ')} below {prior.alarm_level:.2g}); its "
                "log_prob is extrapolated there",
                OutOfDistributionWarning,
                stacklevel=3,
            )
    return found


def _support(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, float | str]:
    """Return what the posterior of a model owes to samples; warn if they do not agree."""
    try:
        with warnings.catch_warnings():
            # The replay of the draws has run draw by draw as well, without a word.
            warnings.filterwarnings("ignore", message="the model does not broadcast")
            owed = sample_support(model, *args, **kwargs)
    except (TypeError, ValueError) as error:
        # Not a map of noise, or without likelihood: there is no such check of this model.
        return {"support": f"unknown: {error}"}
    if owed is None:
        return {"support": "unknown: a learned prior has kept no samples"}
    if owed.trouble is not None:
        warnings.warn(owed.trouble, OutOfDistributionWarning, stacklevel=3)
    return dict(owed.attributes())


def _counts(priors: dict[str, LearnedPrior], source: Any) -> dict[str, int | str]:
    """Return what the priors counted, or that nobody here knows.

    Chains that ran in workers were counted there, and the counts went with them; draws by site may
    come from anywhere.
    """
    here = isinstance(source, MCMC) and not isinstance(source.sampler, _MultiSampler)
    return {
        f"{site}_{name}": getattr(prior.counts, name) if here else "unknown"
        for site, prior in priors.items()
        for name in ("points", "nonfinite", "failed")
    }


def _errors(priors: dict[str, LearnedPrior], values: Mapping[str, Any]) -> Tensor | None:
    """Return the bound on the error of the learned log-densities of each draw, if all have one."""
    if not priors or any(prior.calibration is None for prior in priors.values()):
        return None
    bounds = []
    for site, prior in priors.items():
        bound = prior.surrogate_error(values[site])
        bounds.append(bound.reshape(len(bound), -1).sum(-1))
    return torch.stack(bounds).sum(0)


def _learning(priors: dict[str, LearnedPrior], values: Mapping[str, Any]) -> Tensor | None:
    """Return log-weights of the draws for the error of learning, if all priors know theirs."""
    parts = []
    for site, prior in priors.items():
        if prior.spread is None:
            return None
        parts.append((prior.spread, prior.deviations(values[site])[0]))
    return joint_log_weights(parts) if parts else None
