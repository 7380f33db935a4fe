"""``distil_one_step``: a prior, or a conditional flow, becomes a generator of one network call.

By regression on the flow's own pairs of noise and data, by EM distillation, or by the first and
then the second; see :mod:`pyro_stad.learn.em`. All are judged by draws: the energy distance to
those of the flow, of noise that no training has seen, also decides when to stop. Given a context,
what is compared are pairs of draw and context.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack, overload

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.calibrate import energy_distance
from pyro_stad.density import (
    ConditionalFlow,
    ConditionalGenerator,
    Distilled,
    FlowPrior,
    GivenPrior,
    OneStepGenerator,
)
from pyro_stad.fields import AbstractAngularField, AbstractTrunkField, PathField
from pyro_stad.learn import EMSettings, History, OneStepEM, TrainingSettings, pairs_loss, train
from pyro_stad.ode import RK4
from pyro_stad.paths import VPCosine
from pyro_stad.transport import OneStep

__all__ = ["ONE_STEP_METHODS", "distil_one_step"]

ONE_STEP_METHODS = ("regression", "em", "both")
_BLOCKS, _ROWS = 8, 500
_FINE = RK4(16)  # of the flow whose draws are learned
_WIDTH, _DEPTH = 128, 3  # of a network for a field that shows none
_EM_RATE, _SHARE = 1e-3, 0.5  # the rate of EM, and its share of the steps after regression


class _Options(TypedDict, total=False):
    method: str
    em: EMSettings | None
    steps: int
    batch_size: int
    pairs: int
    contexts: Tensor | None
    seed: int
    progress: bool
    resume: str | os.PathLike[str] | None


@overload
def distil_one_step(prior: FlowPrior, **options: Unpack[_Options]) -> OneStepGenerator: ...
@overload
def distil_one_step(
    prior: ConditionalFlow, **options: Unpack[_Options]
) -> ConditionalGenerator: ...
@own_context()
def distil_one_step(
    prior: FlowPrior | ConditionalFlow,
    *,
    method: str = "regression",
    em: EMSettings | None = None,
    steps: int = 3000,
    batch_size: int = 512,
    pairs: int = 50_000,
    contexts: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> OneStepGenerator | ConditionalGenerator:
    """Distil a prior, or a conditional flow, into a generator of one network call.

    No data are needed: the prior draws them.

    Arguments:
        prior: the prior, or the flow that makes one of any context.
        method: ``"regression"`` on pairs of noise and draws of the flow; ``"em"``, EM distillation,
            for fields on a Gaussian path; ``"both"``, the one and then the other.
        em: how latent variables are inferred, or None for the defaults.
        steps: optimiser steps.
        batch_size: draws a step.
        pairs: of noise and draws, that regression learns from.
        contexts: of a conditional flow, what is to be learned given, ``(N, C)``; None for those of
            its fit that it keeps.
        seed: of everything random.
        progress: whether to show bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Raises:
        TypeError: if ``prior`` is no prior of this package, or was given its context, or its field
            is on no path and ``method`` needs a score.
        ValueError: for settings or contexts that can't be used.
        TrainingError: if nothing finite was reached.

    References:
        Xie et al. (2024), EM Distillation for One-Step Diffusion Models.
    """
    _check(prior, method)
    if em is not None and not isinstance(em, EMSettings):
        raise TypeError(f"`em` must be an EMSettings or None; got {em!r:.80}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("pairs", pairs)):
        check_count(value, name)
    law = _law_of(prior, contexts)
    _check_score(law.field, method)
    run = _Run(law, check_seed(seed), batch_size, resume, progress=progress)
    one_step = _network_for(law.field, run.source("first weights")).to(law.like)
    histories = []
    if method != "em":
        settings = run.settings(steps, 2e-3, "soap")
        histories.append(run.by_pairs(one_step, pairs, settings))
    if method != "regression":
        count = steps if method == "em" else max(1, int(_SHARE * steps))
        settings = run.settings(count, _EM_RATE, "adam")
        histories.append(run.by_em(one_step, em or EMSettings(), settings))
    made = run.judged(one_step, method, histories)
    if isinstance(prior, ConditionalFlow):
        return ConditionalGenerator(prior, one_step, made)
    return OneStepGenerator(prior.expand(torch.Size()), one_step, made)


def _check(prior: Any, method: str) -> None:
    check_choice(method, "method", ONE_STEP_METHODS)
    if isinstance(prior, GivenPrior) or not isinstance(prior, FlowPrior | ConditionalFlow):
        raise TypeError(
            "`prior` must be a FlowPrior without a context, or a ConditionalFlow; got "
            f"{prior!r:.80}"
        )


def _check_score(field: Any, method: str) -> None:
    if method != "regression" and not field.has_score:
        raise TypeError(
            f"`method` {method!r} needs a field on a Gaussian path, whose score is known; this "
            f"prior has a {type(field).__name__}. Use method='regression'"
        )


class _Law(NamedTuple):
    """What is distilled: its name, its flow and field, an event, and the contexts it is given."""

    name: str
    transport: Any
    field: Any
    like: Tensor
    contexts: Tensor | None


def _law_of(prior: Any, contexts: Tensor | None) -> _Law:
    if not isinstance(prior, ConditionalFlow):
        if contexts is not None:
            raise ValueError("`contexts` are for a ConditionalFlow; this prior takes none")
        return _Law(repr(prior), prior.transport, prior.likelihood.field, prior.like, None)
    seen = prior.parts.contexts.seen
    if contexts is not None:
        seen = prior(contexts).encoded.white.reshape(-1, len(prior.context_names))
    field = prior.parts.likelihood.field
    like = seen.new_zeros(prior.event_shape)
    return _Law(repr(prior), prior.parts.transport, field, like, seen.detach())


def _network_for(field: Any, source: torch.Generator) -> OneStep:
    """Return a generator that starts as the denoiser of a field, or from no knowledge of it."""
    if isinstance(field, AbstractAngularField) and isinstance(field, AbstractTrunkField):
        return OneStep(copy.deepcopy(field).requires_grad_(True))
    if len(field.event_shape) != 1:
        raise TypeError("`prior` must be of vectors: there is no network for events of a shape yet")
    return OneStep(PathField(VPCosine(), field.features, _WIDTH, _DEPTH, source))


class _Run:
    """What all trainings of one distillation share."""

    def __init__(
        self, law: _Law, seed: int, batch_size: int, resume: Any, *, progress: bool
    ) -> None:
        self.law, self.seed, self.batch_size = law, seed, batch_size
        self.resume, self.progress = resume, progress

    def source(self, name: str) -> torch.Generator:
        return generator(self.seed, f"one step, {name}", self.law.like.device)

    def noise(self, count: int, name: str) -> Tensor:
        like = self.law.like
        return torch.randn(
            count, *like.shape, generator=self.source(name), dtype=like.dtype, device=like.device
        )

    def context(self, count: int, name: str) -> Tensor | None:
        """Return so many contexts, by lot; None for a law that takes none."""
        known = self.law.contexts
        if known is None:
            return None
        source = self.source(f"{name}, contexts")
        return known[torch.randint(len(known), (count,), generator=source, device=known.device)]

    def drawn(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Return where the flow carries noise, on a fine grid if it has one."""
        transport = self.law.transport
        finer = transport.on_grid(_FINE)
        transport = transport if finer is None else finer
        with torch.no_grad():
            return (transport if context is None else transport.given(context)).push(z)

    def settings(self, steps: int, rate: float, optimiser: str) -> TrainingSettings:
        return TrainingSettings(
            steps=steps, batch_size=self.batch_size, learning_rate=rate, optimiser=optimiser,
            ema_decay=0.995, validate_every=min(250, steps),
        )  # fmt: skip

    def options(self, name: str) -> dict[str, Any]:
        folder = None if self.resume is None else Path(self.resume)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return {
            "generator": self.source(name),
            "progress": self.progress,
            "label": name,
            "resume": folder and folder / f"one_step_{name}.safetensors",
            "purpose": {"stage": name, "seed": self.seed, "prior": self.law.name},
        }

    def by_pairs(self, one_step: OneStep, count: int, settings: TrainingSettings) -> History:
        """Train on pairs of noise and draws; held-out pairs say how it does."""
        z, context = self.noise(count, "pairs"), self.context(count, "pairs")
        x = self.drawn(z, context)
        held = max(1, count // 10)

        def chosen(module: Any, rows: Any) -> Tensor:
            return pairs_loss(module, z[rows], x[rows], None if context is None else context[rows])

        def loss(module: Any, source: torch.Generator) -> Tensor:
            return chosen(
                module,
                torch.randint(
                    count - held, (settings.batch_size,), generator=source, device=z.device
                ),
            )

        def validate(module: Any) -> float:
            return chosen(module, slice(count - held, None)).item()

        return train(one_step, loss, validate, settings, **self.options("regression"))

    def by_em(self, one_step: OneStep, em: EMSettings, settings: TrainingSettings) -> History:
        """Train by EM distillation; a distance of two samples says how it does."""
        both = OneStepEM(one_step, self.law.field, em, self.law.contexts)
        like, z = self.law.like[None], self.noise(_ROWS * 4, "early stop")
        context = self.context(len(z), "early stop")
        truth = self.drawn(self.noise(len(z), "early stop, flow"), context)

        def loss(module: Any, source: torch.Generator) -> Tensor:
            return module.loss(settings.batch_size, source, like)

        def validate(module: Any) -> float:
            with torch.no_grad():
                x = module.generator.draw(z, context)
            return energy_distance(_beside(x, context), _beside(truth, context))

        return train(both, loss, validate, settings, **self.options("em"))

    def judged(self, one_step: OneStep, method: str, histories: list[History]) -> Distilled:
        """Return how true the draws are, of noise that nothing was trained on."""
        z, other = (self.noise(_BLOCKS * _ROWS, f"verdict, {part}") for part in ("own", "flow"))
        context = self.context(len(z), "verdict")
        with torch.no_grad():
            x = (one_step if context is None else one_step.given(context)).push(z)
        truth, others = (self.drawn(each, context) for each in (z, other))
        blocks = zip(*(_beside(each, context).split(_ROWS) for each in (x, others)))
        found = torch.tensor([energy_distance(a, b) for a, b in blocks], dtype=torch.float64)
        return Distilled(
            method=method,
            steps=sum(history.steps[-1] for history in histories),
            seconds=sum(history.seconds for history in histories),
            distance=found.mean().item(),
            distance_error=found.std().item() / math.sqrt(_BLOCKS),
            displacement=(x - truth).double().square().mean().sqrt().item(),
            seed=self.seed,
        )


def _beside(x: Tensor, context: Tensor | None) -> Tensor:
    return x if context is None else torch.cat([x, context], 1)
