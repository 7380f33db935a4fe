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

from typing import Any

import torch
from torch import Tensor

from pyro_stad._chunks import in_chunks
from pyro_stad.divergence import Exact
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.registry import storable

__all__ = ["FlowODE", "exact_twin"]


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
        return cls(**{**{name: getattr(likelihood, name) for name in parts}, **changes})

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where the solve failed."""
        return in_chunks(x, self._log_prob, self.chunk_size)

    def sequential_calls(self) -> int | None:
        return self.solver.sequential_calls()

    def _log_prob(self, x: Tensor) -> Tensor:
        field = self.field
        start = torch.cat([x * field.data_scale, torch.zeros_like(x[:, :1])], dim=-1)
        end = self.solver.integrate(self._augmented, start, field.t_min, field.t_max)
        return self._log_prob_at_end(end[:, :-1], end[:, -1])

    def _augmented(self, t: Tensor, state: Tensor) -> Tensor:
        velocity, divergence = self.divergence.velocity_and_divergence(self.field, t, state[:, :-1])
        return torch.cat([velocity, divergence[:, None]], dim=-1)


def exact_twin(likelihood: AbstractLikelihood) -> FlowODE:
    """Return the flow of ``likelihood`` with its exact trace: what a way to it is held against."""
    return FlowODE.of(likelihood, divergence=Exact())
