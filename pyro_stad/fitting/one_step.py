"""``distil_one_step``: a prior becomes a generator of one network call.

By regression on the flow's own pairs of noise and data, by EM distillation, or by the first and
then the second; see :mod:`pyro_stad.learn.em`. All are judged by draws: the energy distance to
those of the flow, of noise that no training has seen, also decides when to stop.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_seed
from pyro_stad._context import own_context
from pyro_stad._random import generator
from pyro_stad.calibrate import energy_distance
from pyro_stad.density import Distilled, FlowPrior, GivenPrior, OneStepGenerator
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


@own_context()
def distil_one_step(
    prior: FlowPrior,
    *,
    method: str = "regression",
    em: EMSettings | None = None,
    steps: int = 3000,
    batch_size: int = 512,
    pairs: int = 20_000,
    seed: int = 0,
    progress: bool = True,
    resume: str | os.PathLike[str] | None = None,
) -> OneStepGenerator:
    """Distil a prior into a generator of one network call.

    No data are needed: the prior draws them.

    Arguments:
        prior: the prior.
        method: ``"regression"`` on pairs of noise and draws of the flow; ``"em"``, EM distillation,
            for fields on a Gaussian path; ``"both"``, the one and then the other.
        em: how latent variables are inferred, or None for the defaults.
        steps: optimiser steps.
        batch_size: draws a step.
        pairs: of noise and draws, that regression learns from.
        seed: of everything random.
        progress: whether to show bars.
        resume: folder for the state of an unfinished run; one that was killed goes on from it.

    Raises:
        TypeError: if ``prior`` is no prior of this package, or given a context, or its field is on
            no path and ``method`` needs a score.
        ValueError: for settings that can't be used.
        TrainingError: if nothing finite was reached.

    References:
        Xie et al. (2024), EM Distillation for One-Step Diffusion Models.
    """
    _check(prior, method)
    if em is not None and not isinstance(em, EMSettings):
        raise TypeError(f"`em` must be an EMSettings or None; got {em!r:.80}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("pairs", pairs)):
        check_count(value, name)
    prior = prior.expand(torch.Size()) if prior.batch_shape else prior
    run = _Run(prior, check_seed(seed), batch_size, resume, progress=progress)
    one_step = _network_for(prior.likelihood.field, run.source("first weights"))
    one_step = one_step.to(prior.like)
    histories = []
    if method != "em":
        settings = run.settings(steps, 2e-3, "soap")
        histories.append(run.by_pairs(one_step, pairs, settings))
    if method != "regression":
        count = steps if method == "em" else max(1, int(_SHARE * steps))
        settings = run.settings(count, _EM_RATE, "adam")
        histories.append(run.by_em(one_step, em or EMSettings(), settings))
    return OneStepGenerator(prior, one_step, run.judged(one_step, method, histories))


def _check(prior: Any, method: str) -> None:
    check_choice(method, "method", ONE_STEP_METHODS)
    if not isinstance(prior, FlowPrior) or isinstance(prior, GivenPrior):
        raise TypeError(f"`prior` must be a FlowPrior without a context; got {prior!r:.80}")
    if method != "regression" and not prior.likelihood.field.has_score:
        raise TypeError(
            f"`method` {method!r} needs a field on a Gaussian path, whose score is known; this "
            f"prior has a {type(prior.likelihood.field).__name__}. Use method='regression'"
        )


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
        self, prior: FlowPrior, seed: int, batch_size: int, resume: Any, *, progress: bool
    ) -> None:
        self.prior, self.seed, self.batch_size = prior, seed, batch_size
        self.resume, self.progress = resume, progress

    def source(self, name: str) -> torch.Generator:
        return generator(self.seed, f"one step, {name}", self.prior.like.device)

    def noise(self, count: int, name: str) -> Tensor:
        like = self.prior.like
        return torch.randn(
            count, *like.shape, generator=self.source(name), dtype=like.dtype, device=like.device
        )

    def drawn(self, z: Tensor) -> Tensor:
        """Return where the flow carries noise, on a fine grid if it has one."""
        transport: Any = self.prior.transport
        finer = transport.on_grid(_FINE)
        with torch.no_grad():
            return (transport if finer is None else finer).push(z)

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
            "purpose": {"stage": name, "seed": self.seed, "prior": repr(self.prior)},
        }

    def by_pairs(self, one_step: OneStep, count: int, settings: TrainingSettings) -> History:
        """Train on pairs of noise and draws; held-out pairs say how it does."""
        z = self.noise(count, "pairs")
        x = self.drawn(z)
        held = max(1, count // 10)

        def loss(module: Any, source: torch.Generator) -> Tensor:
            rows = torch.randint(
                count - held, (settings.batch_size,), generator=source, device=z.device
            )
            return pairs_loss(module, z[rows], x[rows])

        def validate(module: Any) -> float:
            return pairs_loss(module, z[count - held :], x[count - held :]).item()

        return train(one_step, loss, validate, settings, **self.options("regression"))

    def by_em(self, one_step: OneStep, em: EMSettings, settings: TrainingSettings) -> History:
        """Train by EM distillation; a distance of two samples says how it does."""
        teacher: Any = self.prior.likelihood.field
        both = OneStepEM(one_step, teacher, em)
        like, z = self.prior.like[None], self.noise(_ROWS * 4, "early stop")
        truth = self.drawn(self.noise(_ROWS * 4, "early stop, flow"))

        def loss(module: Any, source: torch.Generator) -> Tensor:
            return module.loss(settings.batch_size, source, like)

        def validate(module: Any) -> float:
            with torch.no_grad():
                return energy_distance(module.generator.draw(z), truth)

        return train(both, loss, validate, settings, **self.options("em"))

    def judged(self, one_step: OneStep, method: str, histories: list[History]) -> Distilled:
        """Return how true the draws are, of noise that nothing was trained on."""
        z, other = (self.noise(_BLOCKS * _ROWS, f"verdict, {part}") for part in ("own", "flow"))
        with torch.no_grad():
            x = one_step.push(z)
        truth, others = self.drawn(z), self.drawn(other)
        blocks = zip(x.split(_ROWS), others.split(_ROWS))
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
