r"""The Stein path: log p by quadrature of the Langevin-Stein operator along a curve.

By the continuity equation :math:`\nabla\cdot v + v\cdot S_t = -\partial_t \log p_t` at fixed x, so
that along any differentiable curve :math:`x_t` from the data :math:`x_{\min}` to :math:`x_{\max}`

.. math::
    \log p(x_{\min}) = \log p_{t_{\max}}(x_{\max})
        + \int \big[\nabla\cdot v + (v - \dot x_t)\cdot S_t\big](t, x_t)\, dt :

the integrand is minus the total derivative of :math:`\log p_t(x_t)`. With :math:`\dot x_t = v` this
is the flow integral. Otherwise the density needs no solve, or a coarse one: K Gauss-Legendre nodes
are K rows of one batch, and value and gradient cost one forward and one backward pass.

In the field's own time and coordinates, :math:`S = -(y + \cot\varphi\, w)`, whose product with w
stays finite at the data end. Nodes lie at the same graded places as the knots of the solvers.

A learned field is not exactly the field of any one density, so that two curves differ: their
difference is an estimate of the error, at every point, which needs no reference; and a divergence
can be trained to make it small.

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486); Song et al. (2021),
    Score-Based Generative Modeling through Stochastic Differential Equations.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyro_stad._checks import check_count, is_transformed
from pyro_stad._chunks import CHUNK_SIZE, in_chunks
from pyro_stad._events import event_sum
from pyro_stad._rows import ROWS
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractAngularField, AbstractField
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.curves import AbstractCurve, Constant
from pyro_stad.likelihood.fused import Fused, can_fuse
from pyro_stad.ode import GRADING, AbstractSolver
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["SteinPath"]

# The nodes of a rule are eigenvalues of a matrix of this size.
_MOST_NODES = 1024


@storable("likelihood", "stein-path")
class SteinPath(AbstractLikelihood):
    """The log-density by the Stein path; the flow itself is solved by ``solver``.

    Arguments:
        field: a field on a Gaussian path: the integrand needs its score.
        divergence: how the divergence is computed.
        solver: how samples are drawn, and noise recovered.
        curve: the curve to integrate along.
        nodes: Gauss-Legendre nodes K, a multiple of 8 and of the curve's pieces, each of which
            gets its share.
        consistent: what is integrated in place of ``divergence``, or None. Files from before the
            distilled density have one, trained to make this curve agree with the flow.
        chunk_size: network rows worked on at a time.
        log_mass: logarithm of the mass that is divided out.
    """

    field: AbstractAngularField
    times: Tensor
    weights: Tensor

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        curve: AbstractCurve | None = None,
        nodes: int = 16,
        *,
        consistent: AbstractDivergence | None = None,
        chunk_size: int = CHUNK_SIZE,
        log_mass: float = 0.0,
    ) -> None:
        super().__init__(field, divergence, solver, chunk_size, log_mass)
        if not field.has_score:
            raise TypeError(
                f"SteinPath needs a field with a score, that is, on a Gaussian path; got "
                f"{type(field).__name__}. Use FlowODE"
            )
        self.curve = Constant() if curve is None else curve
        if not isinstance(self.curve, AbstractCurve):
            raise TypeError(f"`curve` must be a curve, such as Constant(); got {curve!r}")
        check_count(nodes, "nodes", least=8, most=_MOST_NODES)
        pieces = self.curve.pieces
        if nodes % 8 or nodes % pieces:
            raise ValueError(
                f"`nodes` must be a positive multiple of 8 and of the {pieces} pieces of the "
                f"curve; got {nodes}"
            )
        self.nodes, self.consistent = nodes, consistent
        times, weights = _gauss_legendre(field.t_min, field.t_max, pieces, nodes // pieces)
        like = next(field.parameters(), times)
        self.register_buffer("times", times.to(like), persistent=False)
        self.register_buffer("weights", weights.to(like), persistent=False)
        self.fused: Fused | None = None

    def __repr__(self) -> str:
        trained = "" if self.consistent is None else ", made consistent"
        return f"SteinPath({self.divergence!r}, {self.curve!r}, nodes={self.nodes}{trained})"

    @property
    def integrand(self) -> AbstractDivergence:
        """What is integrated as the divergence."""
        return self.divergence if self.consistent is None else self.consistent

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        # The nodes of a point fill rows already; a curve that is solved for needs more points.
        solved = self.sequential_calls() > 1
        multiple = ROWS if solved else ROWS // math.gcd(ROWS, self.nodes)
        if self.fused is not None and self.context is None and self.fused.serves(x):
            multiple = 1  # it fills its rows itself
        per_row = self.nodes * max(1, self.integrand.passes(self.field.features))
        return in_chunks(
            x, self._log_prob, self.chunk_size, context=self._rows(len(x)), per_row=per_row,
            multiple=multiple,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        consistent = self.consistent and describe(self.consistent, "divergence")
        curve = describe(self.curve, "curve")
        return {"curve": curve, "nodes": self.nodes, "consistent": consistent}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> SteinPath:
        consistent = settings["consistent"]
        if consistent is not None:
            consistent = build(consistent, "divergence", source.under("consistent"))
        parts = {
            "curve": build(settings["curve"], "curve"),
            "nodes": settings["nodes"],
            "consistent": consistent,
        }
        return super().from_settings(name, parts, source)

    def replace(self, **changes: Any) -> SteinPath:
        # What stands in place of one divergence is not that of another.
        if "divergence" in changes:
            changes = {"consistent": None, **changes}
        return super().replace(**changes)

    def freeze(self) -> SteinPath:
        """Return the same path, with its gradient by hand if the networks have one (``fused``).

        For networks that are trained no more: should they change all the same, it is made anew.
        """
        frozen = self.replace()
        frozen.fused = frozen._fused()
        return frozen

    def _fused(self) -> Fused | None:
        field, integrand = self.field, self.integrand
        if not (isinstance(self.curve, Constant) and can_fuse(field, integrand)):
            return None
        constant = self.constant()
        return Fused(cast(Any, field), cast(Any, integrand), self.times, self.weights, constant)

    def _current(self, x: Tensor) -> Fused | None:
        """Return what evaluates ``x`` by hand, if anything does."""
        if self.fused is None or self.fused.serves(x):
            return self.fused
        # What trains, or is of another precision, has none; nor has a transform or a trace, which
        # tables would be part of.
        if any(p.requires_grad or p.dtype != x.dtype for p in self.parameters()):
            return None
        if is_transformed(x) or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return None
        self.fused = self._fused()
        return self.fused if self.fused is not None and self.fused.serves(x) else None

    def sequential_calls(self) -> int:
        return self.curve.sequential_calls() + 1

    def _log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        fused = self._current(x) if context is None else None
        if fused is not None:
            return fused.log_prob(x)
        start = x * self.field.data_scale
        return self._log_prob_at_end(*self._follow_and_integrate(start, context))

    def _follow_and_integrate(
        self, start: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the ends ``(B, D)`` of the curves, and the integrals along them, ``(B,)``."""
        times = self.times.to(start)
        field = self._field_given(context)
        points, slopes, end = self.curve.follow(field, start, times)
        field = field.repeated(self.nodes)
        # Point by point, its nodes side by side: then a sum over nodes never depends on the batch.
        y, t = points.flatten(0, 1), times.repeat(len(start))
        velocity, divergence = self.integrand.velocity_and_divergence(field, t, y)
        relative = velocity if slopes is None else velocity - slopes.flatten(0, 1)
        score = field.own_score(t, y, velocity)
        integrand = (divergence + event_sum(relative * score)).reshape(len(start), self.nodes)
        return end, (integrand * self.weights.to(start)).sum(-1)


def _gauss_legendre(low: float, high: float, pieces: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Return times and weights of ``nodes`` nodes on each of ``pieces`` graded intervals."""
    at, share = np.polynomial.legendre.leggauss(nodes)
    places = (np.arange(pieces)[:, None] + 0.5 * (at + 1)).ravel() / pieces
    times = low + (high - low) * places**GRADING
    slope = (high - low) * GRADING * places ** (GRADING - 1)
    return torch.from_numpy(times), torch.from_numpy(np.tile(0.5 * share / pieces, pieces) * slope)
