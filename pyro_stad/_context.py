r"""Keeping the caller's context out: what is computed here depends on its arguments alone.

A program may have turned gradients off, be in inference mode or under autocast, or have moved
torch's default device. Learning needs gradients, what it leaves behind outlives the mode it was
made in, and a density in bfloat16 is so rough that NUTS freezes on it. Every one of these settings
belongs to a thread, so that setting them aside disturbs nobody else; torch's default dtype, its
warnings and its generators belong to the whole process, and are not touched but avoided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

__all__ = ["full_precision", "own_context"]

F = TypeVar("F", bound=Callable[..., Any])

_HOME = torch.device("cpu")


@contextmanager
def own_context() -> Iterator[None]:
    """Turn gradients on, inference mode and autocast off, and make the CPU the default device."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Only where it is needed: torch looks at every call while a device is set this way.
        if torch.get_default_device() != _HOME:
            stack.enter_context(_HOME)
        yield


def full_precision(function: F) -> F:
    """Make ``function`` compute in the precision of its tensors, under autocast too."""

    @wraps(function)
    def computed(*arguments: Any, **options: Any) -> Any:
        # One question for all devices: this is asked at every leapfrog step.
        if not torch._C._is_any_autocast_enabled():
            return function(*arguments, **options)
        kind = next(a.device.type for a in arguments if isinstance(a, torch.Tensor))
        with torch.autocast(kind, enabled=False):
            return function(*arguments, **options)

    return computed  # type: ignore[return-value]
