r"""The training loop: one for the teacher, its divergence, and all that is distilled from them.

Adam or SOAP with warm-up and a cosine schedule, clipped gradients, an exponential moving average of
the weights, and validation of the *average* on a noise set that is drawn once, so that the
validation curve is smooth and means something. When patience with it is out, training goes back to
the best average and on from there at a lower rate. The weights that come back are the best average.

All randomness comes from one generator that the loss receives; the global one is not touched. A
step whose loss or gradient is not finite is skipped and the learning rate halved; after three
halvings training stops with the best average so far. The whole state can be written to a file every
few seconds, and a run that was killed goes on from there along the same curve.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_stad._checks import check_count
from pyro_stad._config import decode, encode
from pyro_stad._context import own_context
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad._progress import progress_bar
from pyro_stad.errors import CheckpointError, TrainingError, TrainingWarning
from pyro_stad.learn.settings import TrainingSettings
from pyro_stad.learn.soap import Soap

__all__ = ["History", "train"]

# Of the module that is trained, whatever its type.
Loss = Callable[[Any, torch.Generator], Tensor]
Validate = Callable[[Any], float]

_MAX_HALVINGS = 3
_RETREAT, _MOST_RETREATS = 0.3, 3
# Where a run stands.
_COUNTERS = ("step", "halvings", "retreats", "patient_since")


@dataclass
class History:
    """What a training run did.

    Attributes:
        steps: steps at which it was validated.
        losses: validation losses of the averaged weights at those steps.
        skipped: steps skipped for a non-finite loss or gradient.
        stopped_early: whether it ended before its budget, by patience or by failure.
        seconds: wall time, over all resumed runs.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    stopped_early: bool = False
    seconds: float = 0.0

    @property
    def best(self) -> float:
        """Lowest validation loss; infinite before the first validation."""
        return min(self.losses, default=math.inf)


def _warm_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of a moving average whose window grows from ten steps to its full length.

    With a constant decay of 0.999 the initial weights still count 5 % after 3,000 steps; for a
    network that starts at zero that is a bias of 5 % in everything it predicts.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        weight = max(1 - decay, 9 / (10 + int(count)))
        torch._foreach_lerp_(averaged, current, weight)

    return update


def _adam(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    optimiser = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=fused
    )
    # Adam makes its state at the first step; making it now lets a resumed run fill it in.
    for p in parameters:
        optimiser.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimiser


def _soap(parameters: list[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    return Soap(parameters, settings.learning_rate)


_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": _adam, "soap": _soap}


class _Run:
    """The state of a run: what a resumable file has to hold."""

    def __init__(
        self, module: nn.Module, settings: TrainingSettings, generator: torch.Generator
    ) -> None:
        self.module, self.settings, self.generator = module, settings, generator
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = _OPTIMISERS[settings.optimiser](parameters, settings)
        self.average = AveragedModel(
            module, multi_avg_fn=_warm_average(settings.ema_decay), use_buffers=True
        )
        self.best = {k: v.clone() for k, v in module.state_dict().items()}
        self.history = History()
        self.step, self.halvings, self.retreats, self.patient_since = 0, 0, 0, 0

    def advance(self, loss: Loss) -> bool:
        """Take one step; return whether it was finite."""
        settings = self.settings
        warm = min(1.0, (self.step + 1) / max(settings.warmup, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / settings.steps))
        rate = settings.learning_rate * warm * cosine * 0.5**self.halvings * _RETREAT**self.retreats
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        value = loss(self.module, self.generator)
        self.step += 1
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip_norm)
        if not bool(torch.isfinite(norm) & torch.isfinite(value)):
            self.history.skipped += 1
            self.halvings += 1
            return False
        self.optimiser.step()
        self.average.update_parameters(self.module)
        return True

    def validate(self, validate: Validate) -> bool:
        """Validate the average, and retreat if patience is out; return whether to go on."""
        with torch.no_grad():
            value = validate(self.average.module)
        if math.isfinite(value) and value < self.history.best:
            self.best = {k: v.clone() for k, v in self.average.module.state_dict().items()}
        self.history.steps.append(self.step)
        self.history.losses.append(value if math.isfinite(value) else math.inf)
        if self.settings.target is not None and value <= self.settings.target:
            return False
        if self.settings.patience == 0:
            return True
        # Where little is to be learned, as from nearly normal samples, the rate that serves hard
        # laws only stirs the noise: the best weights come early, and what is learnt after them is
        # forgotten. Going on from them at a lower rate found 1.6 of a slope of 2, instead of 0.3.
        best_at = max(self.history.losses.index(self.history.best), self.patient_since)
        if len(self.history.losses) - 1 - best_at < self.settings.patience:
            return True
        self.retreats += 1
        self.patient_since = len(self.history.losses) - 1
        self.module.load_state_dict(self.best)
        self.average.module.load_state_dict(self.best)
        return self.retreats <= _MOST_RETREATS

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state by name."""
        named = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        named |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        named |= {f"best.{k}": v for k, v in self.best.items()}
        for index, state in enumerate(self.optimiser.state.values()):
            named |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
        named["generator"] = self.generator.get_state()
        return named

    def save(self, path: Path, purpose: dict[str, Any]) -> None:
        document = {
            "purpose": purpose,
            **{name: getattr(self, name) for name in _COUNTERS},
            "history": self.history,
        }
        write_tensors(path, self.tensors(), encode(document))

    def load(self, path: Path, purpose: dict[str, Any]) -> None:
        stored, document = read_tensors(path)
        found = document.get("purpose") if isinstance(document, dict) else None
        if found != purpose:
            raise ValueError(
                f"`resume` file {path} belongs to a run with other settings or data; expected "
                f"{purpose}, got {found}. Delete it or pass another path"
            )
        try:
            self._restore(stored, document)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"`resume` file {path} does not hold the state of such a run: {error}. Delete it "
                "or pass another path"
            ) from error

    def _restore(self, stored: dict[str, Tensor], document: dict[str, Any]) -> None:
        counts = {name: document[name] for name in _COUNTERS}
        for name, count in counts.items():
            check_count(count, name, least=0, most=self.settings.steps)
        history = decode(History, document["history"], "history")
        for name, tensor in self.tensors().items():
            # Copying would broadcast.
            if stored[name].shape != tensor.shape or stored[name].dtype != tensor.dtype:
                raise ValueError(f"{name} is {stored[name].dtype} {tuple(stored[name].shape)}")
        for name, tensor in self.tensors().items():
            if name != "generator":
                tensor.copy_(stored[name])
        self.generator.set_state(stored["generator"])
        vars(self).update(counts)
        self.history = history


@own_context()
def train(
    module: nn.Module,
    loss: Loss,
    validate: Validate,
    settings: TrainingSettings,
    *,
    generator: torch.Generator,
    progress: bool = True,
    label: str = "training",
    resume: Path | None = None,
    purpose: dict[str, Any] | None = None,
) -> History:
    """Train ``module`` in place; it ends with the best averaged weights.

    Arguments:
        module: what is trained; parameters with ``requires_grad`` off stay as they are.
        loss: ``(module, generator) -> scalar``, one fresh minibatch per call.
        validate: ``(module) -> float`` on fixed data and noise; lower is better.
        settings: how long and how hard.
        generator: the only source of randomness.
        progress: whether to show a bar.
        label: what the bar says.
        resume: file that holds the state of an interrupted run, and takes this one's.
        purpose: identifies the run in ``resume``; another one's file is refused.

    Raises:
        TrainingError: if nothing finite was reached at all.
        ValueError: if ``resume`` belongs to another run.
    """
    run = _Run(module, settings, generator)
    purpose = purpose or {}
    if resume is not None and resume.exists():
        run.load(resume, purpose)
    before, started = run.history.seconds, time.monotonic()
    saved = started
    with progress_bar(label, settings.steps, shown=progress, done=run.step) as bar:
        while run.step < settings.steps and not run.history.stopped_early:
            finite = run.advance(loss)
            bar.update()
            if not finite and run.halvings > _MAX_HALVINGS:
                run.history.stopped_early = True
            elif run.step % settings.validate_every == 0 or run.step == settings.steps:
                run.history.stopped_early = not run.validate(validate)
                bar.set_postfix(loss=f"{run.history.losses[-1]:.4g}")
            run.history.seconds = before + time.monotonic() - started
            if resume is not None and time.monotonic() - saved > settings.save_every:
                run.save(resume, purpose)
                saved = time.monotonic()
    if run.halvings:
        _report_failures(run, label)
    if resume is not None:
        run.save(resume, purpose)
    module.load_state_dict(run.best)
    return run.history


def _report_failures(run: _Run, label: str) -> None:
    if not math.isfinite(run.history.best):
        raise TrainingError(
            f"{label} met {run.history.skipped} non-finite losses and never a finite validation; "
            "check the samples for extreme values, or lower `learning_rate`"
        )
    warnings.warn(
        f"{label} skipped {run.history.skipped} steps with a non-finite loss or gradient"
        + (" and stopped early, keeping the best weights" if run.history.stopped_early else ""),
        TrainingWarning,
        stacklevel=4,  # of whoever called train, which its context wraps
    )
