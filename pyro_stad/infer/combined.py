"""``CombinedPosterior``: several experiments' posterior over all their parameters, for models.

How it comes about, and the mathematics, are in :mod:`pyro_stad.infer.combine`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad._checks import check_value
from pyro_stad.data import Layout, box, open_box, support_of
from pyro_stad.density import exactly
from pyro_stad.infer.experiments import Experiments
from pyro_stad.infer.reparam import Split, split

__all__ = ["CombinedPosterior"]


class CombinedPosterior(dist.TorchDistribution):
    """The posterior of several experiments, over all their parameters; ``combine`` makes it.

    A law of vectors with a density and draws: it goes into models, NUTS and SVI as any other. For
    an evidence, or NUTS in noise, say ``FlowReparam()(model)``.

    Arguments:
        together: the experiments.
        log_ratio, log_ratio_err: log R, by which it is normalised, with its error.
        pool: draws, ``(N, D)``, from which ``sample`` takes.
        troubles: what is wrong with it.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(
        self,
        together: Experiments,
        log_ratio: float,
        log_ratio_err: float,
        pool: Tensor,
        troubles: tuple[str, ...] = (),
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.together, self.pool, self.troubles = together, pool, troubles
        self.log_ratio, self.log_ratio_err = log_ratio, log_ratio_err
        super().__init__(torch.Size(), pool.shape[1:], validate_args=validate_args)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters."""
        return self.together.names

    @cached_property
    def _bounds(self) -> Any:
        known: dict[str, Any] = {}
        for prior in self.together.priors:
            for name, pair in zip(prior.names, box(prior.bounds) if prior.bounds else ()):
                low, high = known.get(name, (-torch.inf, torch.inf))
                known[name] = (max(low, pair[0]), min(high, pair[1]))
        if not known:
            return None
        return tuple(known.get(name, (-torch.inf, torch.inf)) for name in self.names)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The box of the experiments' bounds, or the real vectors."""
        return support_of(self._bounds, self.pool[0])

    def expand(self, batch_shape: Any, _instance: Any = None) -> CombinedPosterior:
        """Return the same law with another batch shape; nothing is computed or copied."""
        new = self._get_checked_instance(CombinedPosterior, _instance)
        for name in ("together", "pool", "troubles", "log_ratio", "log_ratio_err"):
            setattr(new, name, getattr(self, name))
        super(CombinedPosterior, new).__init__(torch.Size(batch_shape), self.event_shape, False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws from the pool, shape ``sample_shape + batch_shape + (D,)``."""
        shape = (*sample_shape, *self.batch_shape)
        return self.pool[torch.randint(len(self.pool), shape, device=self.pool.device)]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of vectors of all parameters, ``(..., D)``: ``(...)``."""
        x = check_value(value, self.pool[0])
        low, high = open_box(self._bounds, self.pool[0])
        inside = ((x > low) & (x < high)).all(-1)
        found = self.together.log_prob(torch.where(inside[..., None], x, self.pool[0]))
        found = torch.where(inside, found - self.log_ratio, -torch.inf)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """Split vectors ``(..., D)`` into parameters by name; elements of an array go together."""
        return Layout.of(self.names).unpack(value)

    def summary(self) -> str:
        """Return what was combined, and what is wrong with it, as text."""
        lines = [repr(self), f"  parameters: {', '.join(self.names)}"]
        lines.append(f"  shared: {', '.join(self.together.common.names)}")
        lines += [f"  WARNING: {trouble}" for trouble in self.troubles]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return (
            f"CombinedPosterior({len(self.together.priors)} experiments, D={len(self.names)}, "
            f"log R = {self.log_ratio:.3f} +- {self.log_ratio_err:.2g})"
        )


class _FromNoise(Transform):
    """The map from noise to what is proposed for a combination."""

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, together: Experiments) -> None:
        super().__init__()
        self.together = together

    def _call(self, x: Tensor) -> Tensor:
        return self.together.from_noise(x)

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError("start a combination in noise, at its `_base` site")


@exactly.register
def _(fn: CombinedPosterior) -> Any:
    """Return the combination of the exact twins; its normaliser is that of the distilled ones."""
    together = replace(fn.together, priors=tuple(map(exactly, fn.together.priors)))
    new = CombinedPosterior(together, fn.log_ratio, fn.log_ratio_err, fn.pool, fn.troubles)
    return new.expand(fn.batch_shape) if fn.batch_shape else new


@split.register
def _(fn: CombinedPosterior, form: str, name: str) -> Split:
    if form != "noise":
        raise TypeError(f"site {name!r} has a CombinedPosterior, whose only form is 'noise'")
    zero = torch.zeros_like(fn.pool[0])
    base = dist.Normal(zero, torch.ones_like(zero)).to_event(1).expand(fn.batch_shape)

    def weight(value: Tensor) -> Tensor:
        return fn.together.tilt(value) - fn.log_ratio

    return Split(base, (_FromNoise(fn.together),), ((1, weight),))
