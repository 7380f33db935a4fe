r"""The flow likelihood: state and log-determinant in one solve of the probability-flow ODE.

In the field's own time and coordinates, from :math:`y_{\min} = \kappa\, x_0` (with
:math:`\kappa` the field's ``data_scale``) to :math:`z = y_{\max}`,

.. math::
    \log p(x_0) = \log N(z; 0, I) + D \log \kappa
        + \int_{t_{\min}}^{t_{\max}} \nabla\cdot v(t, y_t)\, dt .

The density is that of the data blurred by the little noise of :math:`t_{\min}`: one percent of a
standard deviation in whitened coordinates, by default.

References:
    Chen et al. (2018), Neural Ordinary Differential Equations; Song et al. (2021), Score-Based
    Generative Modeling through Stochastic Differential Equations.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_stad._chunks import in_chunks
from pyro_stad.divergence import Exact
from pyro_stad.fields.base import AbstractField
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.registry import storable

__all__ = ["FlowODE", "exact_twin"]

_LARGER = 4


@storable("likelihood", "flow-ode")
class FlowODE(AbstractLikelihood):
    r"""The log-density of a field's flow with a chosen divergence and solver: the reference.

    Arguments:
        field: the velocity field.
        divergence: how :math:`\nabla\cdot v` is computed.
        solver: how the ODE is solved.
        chunk_size: rows solved at a time.
        log_mass: logarithm of the mass that is divided out.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.fields import PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> flow = FlowODE(field, Exact(), RK4(steps=4))
        >>> flow.log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.83...
    """

    @classmethod
    def of(cls, likelihood: AbstractLikelihood, **changes: Any) -> FlowODE:
        """Return the density of the flow of ``likelihood`` by a solve, on the same grid.

        Arguments:
            likelihood: any way to the density of a flow. What it divides out is its own: a solve
                has another mass.
            changes: parts that are to be others, such as ``divergence``.
        """
        parts = ("field", "divergence", "solver", "chunk_size")
        flow = cls(**{**{name: getattr(likelihood, name) for name in parts}, **changes})
        return flow if likelihood.context is None else flow.given(likelihood.context)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where the solve failed."""
        # An exact trace makes as many rows of each as there are coordinates. With a gradient,
        # chunks are computed twice: they are fewer then, and larger.
        per_row = max(1, self.divergence.passes(self.field.features))
        if torch.is_grad_enabled() and x.requires_grad:
            per_row = max(1, per_row // _LARGER)
        return in_chunks(
            x, self._log_prob, self.chunk_size, context=self._rows(len(x)), per_row=per_row
        )

    @property
    def is_exact(self) -> bool:
        return self.divergence.is_exact

    def sequential_calls(self) -> int | None:
        return self.solver.sequential_calls()

    def _log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        field = self._field_given(context)
        flat = x.flatten(1) * field.data_scale
        start = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=-1)
        end = self.solver.integrate(
            partial(self._augmented, field), start, field.t_min, field.t_max
        )
        return self._log_prob_at_end(end[:, :-1], end[:, -1])

    def push_and_log_prob(self, z: Tensor) -> tuple[Tensor, Tensor]:
        per_row = max(1, self.divergence.passes(self.field.features))
        found = in_chunks(
            z, self._push, self.chunk_size, context=self._rows(len(z)), per_row=per_row
        )
        return found[:, :-1].reshape(z.shape), found[:, -1]

    def _push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return data and their log-densities side by side, ``(B, D + 1)``."""
        field, flat = self._field_given(context), z.flatten(1)
        start = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=-1)
        end = self.solver.integrate(
            partial(self._augmented, field), start, field.t_max, field.t_min
        )
        # The way is the other one, and so is the sign of what was met on it.
        log_prob = self._log_prob_at_end(flat, -end[:, -1])
        return torch.cat([end[:, :-1] / field.data_scale, log_prob[:, None]], dim=-1)

    def _augmented(self, field: AbstractField, t: Tensor, state: Tensor) -> Tensor:
        x = state[:, :-1].unflatten(1, field.event_shape)
        velocity, divergence = self.divergence.velocity_and_divergence(field, t, x)
        return torch.cat([velocity.flatten(1), divergence[:, None]], dim=-1)


def exact_twin(likelihood: AbstractLikelihood) -> FlowODE:
    """Return the flow of ``likelihood`` with its exact trace: what a way to it is held against."""
    return FlowODE.of(likelihood, divergence=Exact())
