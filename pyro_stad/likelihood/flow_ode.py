r"""The flow likelihood: state and log-determinant in one solve of the probability-flow ODE.

In the field's own time and coordinates, from :math:`y_{\min} = \kappa\, x_0` (with
:math:`\kappa` the field's ``data_scale``) to :math:`z = y_{\max}`,

.. math::
    \log p(x_0) = \log N(z; 0, I) + D \log \kappa
        + \int_{t_{\min}}^{t_{\max}} \nabla\cdot v(t, y_t)\, dt .

The density is that of the data blurred by the little noise of :math:`t_{\min}`: one percent of a
standard deviation in whitened coordinates, by default.

Rows are independent to the last bit: the batch is padded to a multiple of sixteen rows, because
matrix products of fewer rows take other kernels, which round differently, and is worked through in
chunks, which bounds memory. With a gradient wanted, chunks are recomputed in the backward pass
rather than stored.

References:
    Chen et al. (2018), Neural Ordinary Differential Equations; Song et al. (2021), Score-Based
    Generative Modeling through Stochastic Differential Equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.ode import AbstractSolver
from pyro_stad.teacher.base import AbstractField

__all__ = ["FlowODE", "in_chunks"]

_ROWS = 16


class FlowODE(nn.Module):
    r"""The flow of a field, and its log-density with a chosen divergence and solver.

    Arguments:
        field: the velocity field.
        divergence: how :math:`\\nabla\\cdot v` is computed.
        solver: how the ODE is solved.
        chunk_size: rows solved at a time.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.teacher import PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> flow = FlowODE(field, Exact(), RK4(steps=4))
        >>> flow.log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.83...
    """

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        chunk_size: int = 8192,
    ) -> None:
        super().__init__()
        if chunk_size < _ROWS:
            raise ValueError(f"`chunk_size` must be at least {_ROWS}; got {chunk_size}")
        self.field, self.divergence, self.solver = field, divergence, solver
        self.chunk_size = chunk_size

    def push(self, z: Tensor) -> Tensor:
        """Carry standard normal ``z``, shape ``(B, D)``, to data, shape ``(B, D)``."""
        return in_chunks(self._push, z, self.chunk_size)

    def pull(self, x: Tensor) -> Tensor:
        """Carry data ``x``, shape ``(B, D)``, to standard normal, shape ``(B, D)``."""
        return in_chunks(self._pull, x, self.chunk_size)

    def pull_and_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z``, shape ``(B, D)``, and the log-density, ``(B,)``, of data from one solve."""
        both = in_chunks(self._pull_with_log_prob, x, self.chunk_size)
        return both[..., :-1], both[..., -1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where the solve failed."""
        return self.pull_and_log_prob(x)[1]

    def _push(self, z: Tensor) -> Tensor:
        field = self.field
        x = self.solver.integrate(field.velocity, z, field.t_max, field.t_min)
        return x / field.data_scale

    def _pull(self, x: Tensor) -> Tensor:
        field = self.field
        start = x * field.data_scale
        return self.solver.integrate(field.velocity, start, field.t_min, field.t_max)

    def _pull_with_log_prob(self, x: Tensor) -> Tensor:
        field, features = self.field, x.shape[-1]
        start = torch.cat([x * field.data_scale, torch.zeros_like(x[:, :1])], dim=-1)
        end = self.solver.integrate(self._augmented, start, field.t_min, field.t_max)
        z = end[:, :-1]
        constant = features * (math.log(field.data_scale) - 0.5 * math.log(2 * math.pi))
        log_prob = constant - 0.5 * z.square().sum(-1) + end[:, -1]
        return torch.cat([z, log_prob[:, None]], dim=-1)

    def _augmented(self, t: Tensor, state: Tensor) -> Tensor:
        velocity, divergence = self.divergence.velocity_and_divergence(self.field, t, state[:, :-1])
        return torch.cat([velocity, divergence[:, None]], dim=-1)


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, chunk_size: int) -> Tensor:
    """Apply a row-wise ``function`` to ``x``, shape ``(B, D)``, in padded chunks of rows."""
    if len(x) <= chunk_size:
        return _padded(function, x)
    outputs = []
    for chunk in x.split(chunk_size):
        if torch.is_grad_enabled() and x.requires_grad:
            outputs.append(
                checkpoint(_padded, function, chunk, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            outputs.append(_padded(function, chunk))
    return torch.cat(outputs)


def _padded(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    missing = -len(x) % _ROWS
    if missing:
        x = torch.cat([x, x.new_zeros(missing, x.shape[-1])])
    values = function(x)
    return values[: len(values) - missing] if missing else values
