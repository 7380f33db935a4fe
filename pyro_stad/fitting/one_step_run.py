"""The trainings of a generator of one step, and the verdict on it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.calibrate import energy_distance
from pyro_stad.density import ConditionalFlow, Distilled
from pyro_stad.learn import EMSettings, History, OneStepEM, TrainingSettings, pairs_loss, train
from pyro_stad.ode import RK4
from pyro_stad.transport import OneStep

__all__ = ["OneStepLaw", "OneStepRun", "law_of"]

_BLOCKS, _ROWS = 8, 500
_FINE = RK4(16)  # of the flow whose draws are learned
_HELD = 500_000  # numbers of held-out pairs, at the most: images are many


class OneStepLaw(NamedTuple):
    """What is distilled: its name, its flow and field, an event, and the contexts it is given."""

    name: str
    transport: Any
    field: Any
    like: Tensor
    contexts: Tensor | None

    def digest(self) -> str:
        """Return a fingerprint: a run that was killed goes on for the same law alone."""
        found = hashlib.sha256(self.name.encode())
        known = {**self.transport.state_dict(), "contexts": self.contexts}
        for name, part in known.items():
            found.update(name.encode())
            found.update(
                b"" if part is None else part.detach().cpu().contiguous().numpy().tobytes()
            )
        return found.hexdigest()


def law_of(prior: Any, contexts: Tensor | None) -> OneStepLaw:
    """Return what is to be distilled of a prior, or of a conditional flow given some contexts."""
    if not isinstance(prior, ConditionalFlow):
        if contexts is not None:
            raise ValueError("`contexts` are for a ConditionalFlow; this prior takes none")
        return OneStepLaw(repr(prior), prior.transport, prior.likelihood.field, prior.like, None)
    seen = prior.parts.contexts.seen
    if contexts is not None:
        seen = prior(contexts).encoded.white.reshape(-1, len(prior.context_names))
    field = prior.parts.likelihood.field
    like = seen.new_zeros(prior.event_shape)
    return OneStepLaw(repr(prior), prior.parts.transport, field, like, seen.detach())


class OneStepRun:
    """What all trainings of one distillation share."""

    def __init__(
        self, law: OneStepLaw, seed: int, batch_size: int, resume: Any, *, progress: bool
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

    def options(self, name: str, *of: Any) -> dict[str, Any]:
        """Return options of a training, which depends on the law and on what it is ``of``."""
        folder = None if self.resume is None else Path(self.resume)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return {
            "generator": self.source(name),
            "progress": self.progress,
            "label": name,
            "resume": folder and folder / f"one_step_{name}.safetensors",
            "purpose": {"stage": name, "seed": self.seed, "law": self.law.digest(), "of": repr(of)},
        }

    def by_pairs(
        self,
        one_step: OneStep,
        count: int,
        settings: TrainingSettings,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> History:
        """Train on pairs of noise and draws, and given ones; held-out pairs say how it does."""
        z, context = self.noise(count, "pairs"), self.context(count, "pairs")
        x = self.drawn(z, context)
        held = max(1, min(count // 10, _HELD // x[0].numel()))
        if given is not None:
            # In front: held-out pairs, the last ones, are the flow's own.
            z, x = (torch.cat([more, own]) for more, own in zip(given, (z, x)))
            count = len(z)

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

        return train(one_step, loss, validate, settings, **self.options("regression", count))

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

        return train(both, loss, validate, settings, **self.options("em", em))

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
