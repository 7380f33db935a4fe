"""The prior that several experiments had in common, by the names of its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SharedPrior"]


@dataclass(frozen=True, eq=False)
class SharedPrior:
    """A law of named parameters.

    Attributes:
        names: of the parameters, in the order of its vectors.
        parts: distributions, each with how many of the parameters it is of.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[Any, int], ...]

    @classmethod
    def of(cls, given: Any, names: Sequence[str] | None) -> SharedPrior:
        """Read what a user gives; see ``combine``.

        Raises:
            TypeError, ValueError: if it is missing, no law, or without names.
        """
        if given is None:
            raise TypeError(
                "`shared_prior` is missing: chains were sampled under a prior of what they share, "
                'which is to be counted once. Say shared_prior={"a": dist.Uniform(0, 1), ...}'
            )
        if isinstance(given, Mapping):
            if not given:
                raise ValueError("`shared_prior` must name a parameter at the least; got none")
            for name, law in given.items():
                if not hasattr(law, "log_prob") or tuple(law.event_shape) != ():
                    raise TypeError(
                        f"`shared_prior` of {name!r} must be a distribution of one number; got "
                        f"{law!r:.80}"
                    )
            return cls(tuple(map(str, given)), tuple((law, 1) for law in given.values()))
        if not hasattr(given, "log_prob"):
            raise TypeError(
                "`shared_prior` must be a mapping of names to distributions, or a distribution; "
                f"got {type(given).__name__}"
            )
        known = getattr(given, "names", None) if names is None else names
        if not known:
            raise ValueError(
                "`shared` must name the parameters of `shared_prior`, which has no names of its own"
            )
        if tuple(given.event_shape) != (len(known),):
            raise ValueError(
                f"`shared_prior` has events of shape {tuple(given.event_shape)}, expected "
                f"({len(known)},), for {list(known)}"
            )
        return cls(tuple(map(str, known)), ((given, len(known)),))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of vectors ``(..., S)``: ``(...)``; -inf outside a support."""
        total, at = torch.zeros_like(value[..., 0]), 0
        for law, size in self.parts:
            part = value[..., at] if law.event_shape == () else value[..., at : at + size]
            inside = law.support.check(part)
            # Outside a support, torch's laws raise or say what they would inside.
            good = inside if law.event_shape == () else inside[..., None]
            inner = torch.where(good, part, _some(law).to(part))
            total = total + torch.where(inside, law.log_prob(inner), -torch.inf)
            at += size
        return total


def _some(law: Any) -> Tensor:
    """Return a point in the support of a law, which is no random one."""
    for name in ("mean", "mode"):
        try:
            point = getattr(law, name)
        except NotImplementedError:
            continue
        if torch.isfinite(point).all() and bool(law.support.check(point).all()):
            return point
    return law.stand_in if hasattr(law, "stand_in") else law.icdf(torch.tensor(0.5))
