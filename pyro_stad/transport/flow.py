r"""The flow of a field: the probability-flow ODE solved from noise to data, and back.

A grid that draws truly may be coarser than one that a density needs: a draw is as good as the law
of many of them, a density has to be right at every point (:mod:`pyro_stad.calibrate.draws`). The
way back is steeper: on a mixture in 16 dimensions, draws on four Runge-Kutta steps were 0.009
standard deviations off, and their noise on the same grid 0.16. So it may have a solver of its own;
``push(pull(x))`` is x but for what both grids are off by.

References:
    Chen et al. (2018), Neural Ordinary Differential Equations; Song et al. (2021), Score-Based
    Generative Modeling through Stochastic Differential Equations.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pyro_stad._chunks import CHUNK_SIZE, check_chunk_size, in_chunks, rows_of
from pyro_stad.fields.base import AbstractField
from pyro_stad.ode import AbstractSolver
from pyro_stad.registry import Source, build, describe, storable
from pyro_stad.transport.base import AbstractInvertible

__all__ = ["Flow"]


@storable("transport", "flow")
class Flow(AbstractInvertible):
    """The flow of a field.

    Arguments:
        field: the velocity field.
        solver: how the ODE is solved from noise to data.
        back: how it is solved from data to noise; None for the same.
        chunk_size: rows solved at a time.

    Example:
        >>> import torch
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.fields import PathField
        >>> flow = Flow(PathField(VPCosine(), features=2, width=8, depth=2), RK4(steps=4))
        >>> flow.pull(flow.push(torch.ones(1, 2)))  # untrained: nothing moves
        tensor([[1., 1.]]...
    """

    field: AbstractField
    context: Tensor | None = None

    def __init__(
        self,
        field: AbstractField,
        solver: AbstractSolver,
        back: AbstractSolver | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.field, self.solver, self.chunk_size = field, solver, chunk_size
        self.back = solver if back is None else back

    def __repr__(self) -> str:
        return f"Flow({type(self.field).__name__}, {self.solver!r})"

    def settings(self) -> dict[str, Any]:
        solvers = {name: describe(getattr(self, name), "solver") for name in ("solver", "back")}
        return {**solvers, "chunk_size": self.chunk_size}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> Flow:
        solvers = (build(settings.pop(name), "solver") for name in ("solver", "back"))
        return cls(source.given["field"], *solvers, **settings)

    def on_grid(self, solver: AbstractSolver) -> Flow:
        flow = Flow(self.field, solver, self.back, self.chunk_size)
        return flow if self.context is None else flow.given(self.context)

    def push(self, z: Tensor) -> Tensor:
        """Carry standard normal ``z``, shape ``(B, *event_shape)``, to data."""
        return in_chunks(z, self._push, self.chunk_size, context=self._rows(len(z)))

    def push_and_slogdet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Carry noise ``(B, D)`` to data, with sign and logarithm of the map's determinant.

        The Jacobian is carried along, :math:`dJ/dt = (\partial v / \partial x) J`, by the products
        that an exact trace takes. A Runge-Kutta rule does to this what differentiating its steps
        would, so that the determinant is that of the steps themselves, however coarse; the
        integral of a divergence is right for fine ones only, and a flow that is trained by it
        learns to have them wrong. A sign of -1 says that the steps fold.

        Returns:
            Data ``(B, D)``, signs ``(B,)``, and logarithms of absolute values ``(B,)``.
        """
        size = self.field.features
        found = in_chunks(
            z, self._push_with_jacobian, self.chunk_size, context=self._rows(len(z)), per_row=size
        )
        jacobian = found[:, size:].reshape(len(z), size, size)
        sign, log_det = torch.linalg.slogdet(jacobian)
        return found[:, :size], sign, log_det - size * math.log(self.field.data_scale)

    def pull(self, x: Tensor) -> Tensor:
        """Carry data ``x``, shape ``(B, *event_shape)``, to standard normal."""
        return in_chunks(x, self._pull, self.chunk_size, context=self._rows(len(x)))

    def sequential_calls(self) -> int | None:
        return self.solver.sequential_calls()

    def given(self, context: Tensor) -> Flow:
        """Return the flow given a context, of the same networks; see ``AbstractLikelihood``."""
        if not self.field.context_shape:
            raise TypeError(f"a {type(self.field).__name__} takes no context")
        new = copy.copy(self)
        new.context = context
        return new

    def _rows(self, count: int) -> Tensor | None:
        if self.context is None:
            return None
        return rows_of(self.context, self.field.context_shape, count)

    def _field_given(self, context: Tensor | None) -> AbstractField:
        return self.field if context is None else self.field.given(context)

    def _push(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        field = self._field_given(context)
        x = self.solver.integrate(field.velocity, z, field.t_max, field.t_min)
        return x / field.data_scale

    def _push_with_jacobian(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return data, and the transposed Jacobian of unscaled data, side by side."""
        field, size = self._field_given(context), z.shape[1]

        def both(t: Tensor, state: Tensor) -> Tensor:
            tangents = state[:, size:].reshape(-1, size, size).transpose(0, 1)
            velocity, products = field.jacobian_products(t, state[:, :size], tangents)
            return torch.cat([velocity, products.transpose(0, 1).flatten(1)], -1)

        one = torch.eye(size, dtype=z.dtype, device=z.device).flatten().expand(len(z), -1)
        end = self.solver.integrate(both, torch.cat([z, one], -1), field.t_max, field.t_min)
        return torch.cat([end[:, :size] / field.data_scale, end[:, size:]], -1)

    def _pull(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        field = self._field_given(context)
        start = x * field.data_scale
        return self.back.integrate(field.velocity, start, field.t_min, field.t_max)
