"""``choose_form``: in which coordinates a model is sampled fastest, found out by short runs.

In noise no density is computed, and whitened no scale is in the way; which of them wins depends on
how much the data say, and on the price of both. A pilot of every form measures effective samples a
second, of the worst coordinate, by the same ranks and lags as ArviZ's (bulk).

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
    localization: an improved R-hat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import init_to_sample
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._random import forked, stream
from pyro_stad.data.effective import ess
from pyro_stad.infer.reparam import FORMS, FlowReparam
from pyro_stad.model.vectorised import VectorisedModel

__all__ = ["Pilot", "PilotRun", "choose_form"]

PLAIN = "as it is"
_BAD = 0.02  # share of draws that may diverge


@dataclass(frozen=True)
class PilotRun:
    """A short run of one form.

    Attributes:
        form: ``"as it is"``, ``"noise"`` or ``"whitened"``.
        seconds: wall time of the draws, without the warm-up.
        effective: effective draws of the worst coordinate of the model's latent sites.
        diverging: share of the draws that diverged.
    """

    form: str
    seconds: float
    effective: float
    diverging: float

    @property
    def rate(self) -> float:
        """Effective draws a second; zero where too many diverge."""
        return 0.0 if self.diverging > _BAD else self.effective / self.seconds


@dataclass(frozen=True, eq=False)
class Pilot:
    """What short runs of all forms found.

    Attributes:
        runs: of every form.
        model: the model in the form that won.
    """

    runs: tuple[PilotRun, ...]
    model: Callable[..., Any]

    @property
    def best(self) -> str:
        """The form with the most effective draws a second."""
        return max(self.runs, key=lambda run: run.rate).form

    def summary(self) -> str:
        """Return the runs as a few lines of text."""
        lines = [f"fastest: {self.best}"]
        for run in self.runs:
            lines.append(
                f"  {run.form}: {run.rate:.1f} effective draws a second ({run.effective:.0f} in "
                f"{run.seconds:.1f} s, {run.diverging:.1%} diverging)"
            )
        return "\n".join(lines)


def choose_form(
    model: Callable[..., Any],
    *args: Any,
    warmup: int = 150,
    draws: int = 150,
    seed: int = 0,
    nuts: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Pilot:
    """Run NUTS for a short while in every form of a model, and say which is fastest.

    Arguments:
        model: a Pyro model with learned priors.
        args, kwargs: its arguments, with the observed data.
        warmup, draws: of every run.
        seed: of everything random; the global generator is put back.
        nuts: options of Pyro's ``NUTS``, such as ``{"jit_compile": True}``.

    Raises:
        ValueError: if no form gave a chain without divergences.
    """
    check_count(warmup, "warmup")
    check_count(draws, "draws", least=20)
    forms: dict[str, Callable[..., Any]] = {PLAIN: model}
    forms |= {form: FlowReparam(form)(model) for form in FORMS}
    sites = VectorisedModel(model, args, kwargs).sites
    options = {"init_strategy": init_to_sample, **(nuts or {})}
    runs = []
    with forked(stream(check_seed(seed), "pilot of forms")):
        for name, held in forms.items():
            runs.append(_run(name, held, args, kwargs, warmup, draws, options, list(sites)))
    pilot = Pilot(tuple(runs), model)
    if not any(run.rate > 0 for run in runs):
        raise ValueError(
            f"every form of the model diverges in more than {_BAD:.0%} of {draws} draws; start "
            "longer chains with more warm-up and a higher target_accept_prob, or sample by SMC"
        )
    return Pilot(tuple(runs), forms[pilot.best])


def _run(
    name: str,
    model: Callable[..., Any],
    args: Any,
    kwargs: Any,
    warmup: int,
    draws: int,
    options: dict[str, Any],
    sites: list[str],
) -> PilotRun:
    started: list[float] = []

    def clock(kernel: Any, samples: Any, stage: str, index: int) -> None:
        if stage.lower().startswith("sample") and not started:
            started.append(time.perf_counter())

    mcmc = MCMC(NUTS(model, **options), draws, warmup, disable_progbar=True, hook_fn=clock)
    mcmc.run(*args, **kwargs)
    seconds = time.perf_counter() - started[0]
    found = mcmc.get_samples()
    missing = [site for site in sites if site not in found]
    if missing:
        with torch.no_grad():
            found |= Predictive(model, found, return_sites=missing)(*args, **kwargs)
    effective = min(_worst(found[site].reshape(draws, -1)) for site in sites)
    diverging = sum(map(len, mcmc.diagnostics()["divergences"].values())) / draws
    return PilotRun(name, seconds, effective, diverging)


def _worst(values: Tensor) -> float:
    """Return the effective draws of the worst coordinate of one chain, ``(N, D)``."""
    return min(float(ess(column[None].double())) for column in values.T)
