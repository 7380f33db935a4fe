"""How long and how hard to train: one record, shared by teacher and divergence."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from pyro_stad._checks import check_choice, check_count, check_positive

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of one training run.

    Arguments:
        steps: optimiser steps at the most.
        batch_size: points per step.
        learning_rate: peak of the cosine schedule, after a linear warm-up.
        warmup: steps of the warm-up.
        clip_norm: largest gradient norm.
        ema_decay: decay per step of the exponential moving average of the weights.
        validate_every: steps between validations.
        patience: validations without improvement after which training goes back to its best
            weights and on at 0.3 of the rate; the fourth time it stops. 0 never looks back.
        target: validation loss that is good enough to stop at, or None for none.
        save_every: seconds between resumable states.
        weight_decay: by how much weights shrink in a step, in units of the rate: decoupled, of Adam
            alone.
        optimiser: ``"adam"``, or ``"soap"`` (:mod:`pyro_stad.learn.soap`) where labels have no
            noise.
    """

    steps: int
    batch_size: int = 512
    learning_rate: float = 2e-3
    warmup: int = 100
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    validate_every: int = 250
    patience: int = 3
    target: float | None = None
    save_every: float = 10.0
    weight_decay: float = 0.0
    optimiser: str = "adam"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            check_count(getattr(self, name), name)
        for name in ("warmup", "patience"):
            check_count(getattr(self, name), name, least=0)
        if not self.save_every >= 0:
            raise ValueError(f"`save_every` must not be negative; got {self.save_every!r}")
        for name in ("learning_rate", "clip_norm"):
            check_positive(getattr(self, name), name)
        if not self.weight_decay >= 0:
            raise ValueError(f"`weight_decay` must not be negative; got {self.weight_decay!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must lie in [0, 1); got {self.ema_decay!r}")
        check_choice(self.optimiser, "optimiser", ("adam", "soap"))
        if self.target is not None and not isinstance(self.target, Real):
            raise ValueError(f"`target` must be a loss or None; got {self.target!r}")
