r"""What every likelihood of a flow shares: the flow itself, in chunks of rows.

Rows are independent to the last bit (in float64 and odd dimensions, to rounding): the batch is
padded to a multiple of eight rows, because matrix products of fewer rows take other kernels,
which round differently (:mod:`pyro_stad._rows`), and is worked through in chunks, which bounds
memory. With a gradient wanted, chunks are recomputed in the backward pass rather than stored.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_stad._checks import check_count
from pyro_stad._context import full_precision
from pyro_stad._rows import ROWS
from pyro_stad.data.standardise import Standardise
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.ode import AbstractSolver
from pyro_stad.teacher.base import AbstractField

__all__ = ["AbstractLikelihood", "padded"]

_MOST_ROWS = 2**31 - 1


class AbstractLikelihood(nn.Module, ABC):
    r"""The flow of a field, and a way to its log-density.

    Arguments:
        field: the velocity field.
        divergence: how :math:`\nabla\cdot v` is computed.
        solver: how the flow is solved.
        chunk_size: rows worked on at a time. Two thousand of them stay in a processor's cache:
            eight thousand took up to half as long again (``benchmarks/batched.py``).

    Attributes:
        log_mass: logarithm of the mass that is divided out of the density; see
            :mod:`pyro_stad.likelihood.calibrate`.
    """

    field: AbstractField
    divergence: AbstractDivergence

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        chunk_size: int = 2048,
    ) -> None:
        super().__init__()
        check_count(chunk_size, "chunk_size", least=ROWS, most=_MOST_ROWS)
        self.field, self.divergence, self.solver = field, divergence, solver
        self.chunk_size = chunk_size
        self.log_mass = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.divergence!r}, {self.solver!r})"

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where it failed."""

    def log_prob_before(self, whitening: Standardise, v: Tensor) -> Tensor:
        """Return the log-density of data that are given before their whitening, ``(B, D)``.

        It is that of the whitened points: what the whitening adds is a constant.
        """
        return self.log_prob(whitening.inv(v))

    @abstractmethod
    def sequential_calls(self) -> int | None:
        """Return the network calls, one after the other, of ``log_prob``; None if they vary."""

    def push(self, z: Tensor) -> Tensor:
        """Carry standard normal ``z``, shape ``(B, D)``, to data, shape ``(B, D)``."""
        return self._in_chunks(self._push, z)

    def pull(self, x: Tensor) -> Tensor:
        """Carry data ``x``, shape ``(B, D)``, to standard normal, shape ``(B, D)``."""
        return self._in_chunks(self._pull, x)

    def pull_and_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z``, shape ``(B, D)``, and the log-density, ``(B,)``, of data."""
        return self.pull(x), self.log_prob(x)

    def _push(self, z: Tensor) -> Tensor:
        field = self.field
        x = self.solver.integrate(field.velocity, z, field.t_max, field.t_min)
        return x / field.data_scale

    def _pull(self, x: Tensor) -> Tensor:
        field = self.field
        start = x * field.data_scale
        return self.solver.integrate(field.velocity, start, field.t_min, field.t_max)

    def _log_prob_at_end(self, z: Tensor, integral: Tensor) -> Tensor:
        """Return the log-density of data that ended in ``z`` and met ``integral`` on the way."""
        return self.constant() - 0.5 * z.square().sum(-1) + integral

    def constant(self) -> float:
        """Return the constant of the density: noise's, the data's scale, and the mass."""
        field = self.field
        normal = math.log(field.data_scale) - 0.5 * math.log(2 * math.pi)
        return field.features * normal - self.log_mass

    @full_precision
    def _in_chunks(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        *,
        per_row: int = 1,
        multiple: int = ROWS,
    ) -> Tensor:
        """Apply a row-wise ``function`` to ``x``, shape ``(B, D)``, in padded chunks of rows.

        ``per_row`` is the number of network rows that the function makes of each row, and
        ``multiple`` that of which it takes whole batches.
        """
        chunk_size = max(self.chunk_size // per_row, multiple)
        if len(x) <= chunk_size:
            return padded(function, x, multiple)
        chunks = x.split(chunk_size)
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.cat([
                checkpoint(
                    padded, function, chunk, multiple,
                    use_reentrant=False, preserve_rng_state=False,
                )
                for chunk in chunks
            ])  # fmt: skip
        # Into one tensor, made before the chunks' own large ones: thousands of small results
        # between those would keep the allocator from giving anything back.
        first = padded(function, chunks[0], multiple)
        values = first.new_empty(len(x), *first.shape[1:])
        values[: len(first)] = first
        del first
        for index, chunk in enumerate(chunks[1:], start=1):
            at = index * chunk_size
            values[at : at + len(chunk)] = padded(function, chunk, multiple)
        return values


def padded(function: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Apply a row-wise ``function`` to ``x``, shape ``(B, D)``, and rows of zeros."""
    missing = -len(x) % multiple
    if missing:
        x = torch.cat([x, x.new_zeros(missing, x.shape[-1])])
    values = function(x)
    return values[: len(values) - missing] if missing else values
