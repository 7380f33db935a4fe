"""The door: values are checked once, before anything is computed from them."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_batch",
    "check_between",
    "check_choice",
    "check_count",
    "check_device",
    "check_finite",
    "check_flag",
    "check_generator",
    "check_not_nan",
    "check_positive",
    "check_seed",
    "check_value",
    "is_transformed",
]


def check_value(value: Any, like: Tensor, *, argument: str = "value") -> Tensor:
    """Return ``value`` in the dtype of ``like``, or say what is wrong with it.

    Arguments:
        value: what the user passed; expected is a tensor with shape ``(..., *event_shape)``.
        like: an event of the model, for shape, dtype and device.
        argument: name of the argument, for messages.

    Raises:
        TypeError: if it is not a real tensor, or images are whole numbers.
        ValueError: for a wrong shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{argument}` must be a torch tensor; got {type(value).__name__}. "
            "Convert it with torch.as_tensor(...)"
        )
    if value.is_complex():
        raise TypeError(f"`{argument}` must be real; got dtype {value.dtype}")
    if like.ndim > 1 and value.dtype == torch.uint8:
        # Cast to floating point, 255 would be taken for a place far outside the unit interval.
        raise TypeError(
            f"`{argument}` must be floating-point, as the prior's own draws are; got grey values "
            "of dtype uint8. Those have no density: use bits_per_dimension(prior, images), or "
            "(images + torch.rand(images.shape)) / 256"
        )
    if value.ndim < like.ndim or value.shape[value.ndim - like.ndim :] != like.shape:
        expected = ", ".join(map(str, like.shape))
        raise ValueError(
            f"`{argument}` must have shape (..., {expected}), the event shape of the prior; got "
            f"{tuple(value.shape)}. Nothing is broadcast along the event dimension"
        )
    if value.device != like.device:
        raise ValueError(
            f"`{argument}` is on {value.device}, the prior on {like.device}; move one of them "
            "with `.to(device)`"
        )
    if value.dtype == torch.float64 and like.dtype == torch.float32:
        warnings.warn(
            f"`{argument}` is float64 and the prior float32: computing in float32. Use "
            "prior.to(torch.float64) for double precision",
            UserWarning,
            stacklevel=3,
        )
    return value.to(like.dtype)


def check_batch(shape: torch.Size, batch_shape: torch.Size) -> torch.Size:
    """Return what ``shape``, a value's without its event, and the prior's batch shape make up.

    Raises:
        ValueError: if they don't broadcast.
    """
    if not batch_shape:
        return shape
    try:
        return torch.broadcast_shapes(shape, batch_shape)
    except RuntimeError:
        raise ValueError(
            f"`value` must have a shape that broadcasts with the batch shape of the prior, "
            f"{tuple(batch_shape)}; got {tuple(shape)} in front of the event"
        ) from None


def check_not_nan(value: Tensor, names: tuple[str, ...], *, argument: str = "value") -> None:
    """Raise ``ValueError`` for the first NaN of ``value``, ``(..., D)``, by index and name."""
    _refuse(value, torch.isnan(value), names, argument)


def check_finite(value: Tensor, names: tuple[str, ...], *, argument: str = "value") -> None:
    """Raise ``ValueError`` for the first NaN or infinity of ``value``, by index and name."""
    _refuse(value, ~torch.isfinite(value), names, argument)


def _refuse(value: Tensor, bad: Tensor, names: tuple[str, ...], argument: str) -> None:
    if bad.any():
        index = [int(i) for i in bad.nonzero()[0]]
        # Events with a shape have no names: the whole index says where.
        place = f" in {names[index.pop()]}" if names else ""
        where = f" at index {tuple(index)}" if index else ""
        count = int(bad.reshape(-1, len(names) or bad[0].numel()).any(-1).sum())
        raise ValueError(
            f"`{argument}` is {value[bad][0].item()}{where}{place}; {count} points are affected"
        )


def check_count(value: Any, argument: str, *, least: int = 1, most: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer from ``least`` to ``most``."""
    # True is an integer to Python, and a slip here.
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"`{argument}` must be an integer of at least {least}; got {value!r:.80}")
    if most is not None and int(value) > most:
        raise ValueError(f"`{argument}` must be an integer of at most {most}; got {value!r:.80}")


def check_positive(value: Any, argument: str, unit: str = "") -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above zero."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(f"`{argument}` must be a positive number{unit}; got {value!r}")


def check_between(
    value: Any, argument: str, low: float = 0.0, high: float = sys.float_info.max
) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number from ``low`` to ``high``."""
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
        least = f"from {low:g} on" if high == sys.float_info.max else f"within [{low:g}, {high:g}]"
        raise ValueError(f"`{argument}` must be a finite number {least}; got {value!r:.80}")


def check_flag(value: Any, argument: str) -> None:
    """Raise ``TypeError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be True or False; got {value!r:.80}")


def check_generator(generator: Any, device: torch.device) -> None:
    """Refuse what is no generator of torch, or one of another device; None is torch's own.

    Raises:
        TypeError, ValueError: if so.
    """
    if generator is None:
        return
    made = f"torch.Generator({device.type!r}).manual_seed(0)"
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator or None; got {generator!r:.80}. "
            f"Make it by {made}"
        )
    if generator.device.type != device.type:
        raise ValueError(
            f"`generator` is of {generator.device}, the noise is on {device}; make it by {made}"
        )


def check_choice(value: Any, argument: str, choices: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{argument}` must be one of {list(choices)}; got {value!r}")


def check_seed(seed: Any) -> int:
    """Return ``seed`` as an int of Python: numpy's integers are not, and JSON wants none of them.

    Raises:
        TypeError: unless it is an integer.
    """
    if not isinstance(seed, Integral):
        raise TypeError(f"`seed` must be an int; got {seed!r}")
    return int(seed)


def check_device(device: torch.device | str) -> torch.device:
    """Return ``device`` if this machine has it and values can live on it.

    Raises:
        ValueError: if not.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must name a torch device, such as 'cpu' or 'cuda'; got {device!r}"
        ) from error
    if chosen.type == "meta":
        raise ValueError("`device` must hold values; got meta. Use 'cpu' or 'cuda'")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"`device` is {chosen}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here; use device='cpu'"
        )
    return chosen


def is_transformed(value: Tensor) -> bool:
    """Tell whether ``value`` is traced or inside vmap, grad or compile: no look at its content."""
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or torch._C._functorch.is_functorch_wrapped_tensor(value)
    )
