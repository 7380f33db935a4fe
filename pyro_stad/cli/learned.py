"""The prior that a command works on: a file's, or a conditional flow's at a context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from pyro_stad.density import (
    ConditionalFlow,
    ConditionalGenerator,
    FlowPrior,
    OneStepGenerator,
    load,
)

__all__ = ["prior_of", "to_distil"]


def prior_of(
    path: Path, given: Sequence[str] | None = None, *, for_draws: bool = False
) -> FlowPrior:
    """Read a prior; or a conditional flow, and return the prior at a context.

    Arguments:
        path: the file.
        given: the context, as ``name=value`` of each of its coordinates; None for a command that
            takes no conditional flow.
        for_draws: whether a generator of one step will do.

    Raises:
        ValueError: for a context of a prior, or none or another one of a conditional flow; or a
            generator for a command that needs a density.
    """
    learned = _read(path, for_draws=for_draws)
    if not isinstance(learned, ConditionalFlow | ConditionalGenerator):
        if given:
            raise ValueError(f"--given is for conditional flows; {path} is a prior")
        return cast(FlowPrior, learned)
    if given is None:
        raise ValueError(
            f"{path} is a conditional flow, and this command is for priors; how accurate it is, "
            "pyro_stad.load(path).summary() says"
        )
    names = learned.context_names
    values = dict(_pair(text) for text in given)
    if values.keys() != set(names):
        told = " ".join(f"--given {name}=..." for name in names)
        raise ValueError(f"{path} is a conditional flow: say {told}; got {list(given)}")
    flow = learned if isinstance(learned, ConditionalFlow) else learned.flow
    dtype = flow.parts.contexts.loc.dtype
    return cast(FlowPrior, learned(torch.tensor([values[name] for name in names], dtype=dtype)))


def to_distil(path: Path) -> FlowPrior | ConditionalFlow:
    """Read a prior, or a conditional flow, that a generator can be distilled from.

    Raises:
        ValueError: for a generator.
    """
    return cast(Any, _read(path, for_draws=False))


def _read(path: Path, *, for_draws: bool) -> Any:
    learned = cast(Any, load(path))
    if isinstance(learned, OneStepGenerator | ConditionalGenerator) and not for_draws:
        raise ValueError(
            f"{path} is a generator of one step, which has no density: give this command what it "
            "was distilled from"
        )
    return learned


def _pair(text: str) -> tuple[str, float]:
    name, separator, value = text.partition("=")
    try:
        return name, float(value if separator else "")
    except ValueError:
        raise ValueError(f"--given must be name=number; got {text!r}") from None
