"""Work on rows, a chunk at a time: bounded memory, and no row sees its batch mates.

Rows are independent to the last bit (in float64 and odd dimensions, to rounding): a batch is padded
to a multiple of sixteen rows, because matrix products of fewer rows take other kernels, which round
differently (:mod:`pyro_stad._rows`), and is worked through in chunks. With a gradient wanted,
chunks are computed again in the backward pass rather than stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyro_stad._checks import check_count
from pyro_stad._context import full_precision
from pyro_stad._rows import ROWS

__all__ = ["CHUNK_SIZE", "check_chunk_size", "in_chunks", "padded"]

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
    function: Callable[[Tensor], Tensor],
    chunk_size: int,
    *,
    per_row: int = 1,
    multiple: int = ROWS,
) -> Tensor:
    """Apply a row-wise ``function`` to ``x``, shape ``(B, ...)``, in padded chunks of rows.

    Arguments:
        x: the rows.
        function: from rows to as many values, of any shape each.
        chunk_size: network rows worked on at a time.
        per_row: network rows that the function makes of each row.
        multiple: number of rows of which the function takes whole batches.
    """
    rows = max(chunk_size // per_row, multiple)
    if len(x) <= rows:
        return padded(function, x, multiple)
    chunks = x.split(rows)
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.cat([
            checkpoint(
                padded, function, chunk, multiple,
                use_reentrant=False, preserve_rng_state=False,
            )
            for chunk in chunks
        ])  # fmt: skip
    # Into one tensor, made before the chunks' own large ones: thousands of small results between
    # those would keep the allocator from giving anything back.
    first = padded(function, chunks[0], multiple)
    values = first.new_empty(len(x), *first.shape[1:])
    values[: len(first)] = first
    del first
    for index, chunk in enumerate(chunks[1:], start=1):
        at = index * rows
        values[at : at + len(chunk)] = padded(function, chunk, multiple)
    return values


def padded(function: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Apply a row-wise ``function`` to ``x``, shape ``(B, ...)``, and rows of zeros."""
    missing = -len(x) % multiple
    if missing:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    values = function(x)
    return values[: len(values) - missing] if missing else values
