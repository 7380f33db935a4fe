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

import torch
from torch import Tensor

from pyro_stad.likelihood.base import AbstractLikelihood

__all__ = ["FlowODE"]


class FlowODE(AbstractLikelihood):
    r"""The log-density of a field's flow with a chosen divergence and solver: the reference.

    Arguments:
        field: the velocity field.
        divergence: how :math:`\nabla\cdot v` is computed.
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

    def pull_and_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``z``, shape ``(B, D)``, and the log-density, ``(B,)``, of data from one solve."""
        both = self._in_chunks(self._pull_with_log_prob, x)
        return both[..., :-1], both[..., -1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``; NaN where the solve failed."""
        return self.pull_and_log_prob(x)[1]

    def sequential_calls(self) -> int | None:
        return self.solver.sequential_calls()

    def _pull_with_log_prob(self, x: Tensor) -> Tensor:
        field = self.field
        start = torch.cat([x * field.data_scale, torch.zeros_like(x[:, :1])], dim=-1)
        end = self.solver.integrate(self._augmented, start, field.t_min, field.t_max)
        z = end[:, :-1]
        return torch.cat([z, self._log_prob_at_end(z, end[:, -1])[:, None]], dim=-1)

    def _augmented(self, t: Tensor, state: Tensor) -> Tensor:
        velocity, divergence = self.divergence.velocity_and_divergence(self.field, t, state[:, :-1])
        return torch.cat([velocity, divergence[:, None]], dim=-1)
