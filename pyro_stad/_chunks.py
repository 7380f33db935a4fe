"""Work on rows, a chunk at a time: bounded memory, and no row sees its batch mates.

Rows are independent to the last bit (in float64 and odd dimensions, to rounding): a batch is padded
to a multiple of sixteen rows, because matrix products of fewer rows take other kernels, which round
differently (:mod:`pyro_stad._rows`), and is worked through in chunks. With a gradient wanted,
chunks are computed again in the backward pass rather than stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_stad._checks import check_count
from pyro_stad._context import full_precision
from pyro_stad._rows import ROWS

__all__ = ["CHUNK_SIZE", "check_chunk_size", "in_chunks", "padded", "rows_of"]

# Two thousand network rows stay in a processor's cache: eight thousand took up to half as long
# again (``benchmarks/batched.py``).
CHUNK_SIZE = 2048
_FEWEST_ROWS, _MOST_ROWS = 8, 2**31 - 1


def check_chunk_size(chunk_size: object) -> None:
    """Refuse what is no number of rows that a chunk can have."""
    check_count(chunk_size, "chunk_size", least=_FEWEST_ROWS, most=_MOST_ROWS)


@full_precision
def in_chunks(
    x: Tensor,
    function: Callable[..., Tensor],
    chunk_size: int,
    *,
    context: Tensor | None = None,
    per_row: int = 1,
    multiple: int = ROWS,
) -> Tensor:
    """Apply a row-wise ``function`` to ``x``, shape ``(B, ...)``, in padded chunks of rows.

    Arguments:
        x: the rows.
        function: from rows, and their context if there is one, to as many values of any shape.
        chunk_size: network rows worked on at a time.
        context: a row for each of ``x``, shape ``(B, ...)``, or None.
        per_row: network rows that the function makes of each row.
        multiple: number of rows of which the function takes whole batches.
    """
    rows = max(chunk_size // per_row, multiple)
    parts = (x,) if context is None else (x, context)
    if len(x) <= rows:
        return padded(function, multiple, *parts)
    chunks = list(zip(*(part.split(rows) for part in parts)))
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        # One row tells whether a gradient goes to anything else: weights, or what was closed over.
        one = padded(function, multiple, *(part[:1].detach() for part in parts))
        again = _by_checkpoint if one.requires_grad else _Again.apply
        return torch.cat([again(function, multiple, *chunk) for chunk in chunks])
    # Into one tensor, made before the chunks' own large ones: thousands of small results between
    # those would keep the allocator from giving anything back.
    first = padded(function, multiple, *chunks[0])
    values = first.new_empty(len(x), *first.shape[1:])
    values[: len(first)] = first
    del first
    for index, chunk in enumerate(chunks[1:], start=1):
        at = index * rows
        values[at : at + len(chunk[0])] = padded(function, multiple, *chunk)
    return values


def _by_checkpoint(function: Callable[..., Tensor], multiple: int, *parts: Tensor) -> Tensor:
    return checkpoint(
        padded, function, multiple, *parts, use_reentrant=False, preserve_rng_state=False
    )


class _Again(torch.autograd.Function):
    """A chunk that is computed again in the pass back, of a function of its rows alone.

    torch's checkpoint would compute it again for every gradient that is taken *within* it, and an
    exact trace takes D of them for each call of the field: minutes instead of a second.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], multiple: int, *parts: Tensor) -> Tensor:
        ctx.function, ctx.multiple = function, multiple
        ctx.save_for_backward(*parts)
        return padded(function, multiple, *parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad[2:]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            parts = [
                part if twice or not needed else part.detach().requires_grad_()
                for part, needed in zip(ctx.saved_tensors, wanted)
            ]
            value = padded(ctx.function, ctx.multiple, *parts)
            asked = [part for part, needed in zip(parts, wanted) if needed]
            found = iter(torch.autograd.grad(value, asked, grad, create_graph=twice))
        return None, None, *(next(found) if needed else None for needed in wanted)


def padded(function: Callable[..., Tensor], multiple: int, *parts: Tensor) -> Tensor:
    """Apply a row-wise ``function`` to rows, and to the last of them again and again."""
    count = len(parts[0])
    missing = -count % multiple
    if missing and count:
        parts = tuple(_longer(x, missing) for x in parts)
    values = function(*parts)
    return values[:count] if missing else values


def _longer(x: Tensor, missing: int) -> Tensor:
    """Return rows with the last of them again and again; one row for all stays one."""
    if x.stride(0) == 0:
        return x[:1].expand(len(x) + missing, *x.shape[1:])
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


def rows_of(context: Tensor, context_shape: torch.Size, count: int) -> Tensor:
    """Return a context as ``count`` rows: it may be one row for all.

    Raises:
        ValueError: if it is neither.
    """
    if context.shape == context_shape:
        context = context[None]
    if context.shape[1:] != context_shape or len(context) not in (1, count):
        raise ValueError(
            f"`context` must have shape {tuple(context_shape)}, or a row of it for each of {count} "
            f"points; got {tuple(context.shape)}"
        )
    return context.expand(count, *context_shape)
