r"""The distilled density: log p itself as one small network, at one row a point.

In the field's own coordinates y, with its noise's constant c and the gate g of
:mod:`pyro_stad.fields.gate`,

.. math:: \log p(x) = c - \tfrac12 \lVert y\rVert^2 + g(\lVert y\rVert^2)\, h(y):

a normal law, corrected by a perceptron h where the samples are. Beyond the gate it *is* the normal
law, so that in every direction the density falls off as that does. It has two continuous
derivatives; its mass is divided out by the calibration.

A row goes through the network once, where the Stein path takes as many rows as it has nodes. The
gradient is made by hand, in as many products again. With :math:`a_l = \sigma(W_l a_{l-1} + b_l)`,
:math:`h = w\cdot a_L + b` and the slopes :math:`\sigma'_l` of the layers,

.. math:: \nabla h = W_1^T (\sigma'_1 \odot W_2^T (\sigma'_2 \odot \cdots (\sigma'_L \odot w))) .

How h is learned is in :mod:`pyro_stad.learn.distil_density`.

References:
    Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network; Czarnecki et al.
    (2017), Sobolev Training for Neural Networks.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor

from pyro_stad._checks import is_transformed
from pyro_stad._chunks import CHUNK_SIZE, in_chunks
from pyro_stad._config import decode
from pyro_stad._context import full_precision
from pyro_stad.data import AbstractWhitening
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.fields.base import AbstractField
from pyro_stad.fields.gate import Gate
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.correction import CorrectedNormal, Correction
from pyro_stad.likelihood.known_gradient import with_gradient
from pyro_stad.ode import AbstractSolver
from pyro_stad.registry import Source, storable

__all__ = ["DistilledDensity"]


@storable("likelihood", "distilled")
class DistilledDensity(AbstractLikelihood):
    """The log-density by a network of its own; the flow itself is solved by ``solver``.

    Arguments:
        field: the velocity field of the flow, any.
        divergence: how the divergence is computed where another way to the density is wanted.
        solver: how samples are drawn, and noise recovered.
        correction: the network h.
        gate: where h ends, in the field's own coordinates.
        chunk_size: rows worked on at a time.
        log_mass: logarithm of the mass that is divided out.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.fields import Gate, PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> density = DistilledDensity(field, Exact(), RK4(4), Correction(2, 8, 2), Gate(4.0, 5.5))
        >>> density.log_prob(torch.zeros(1, 2)).item()  # -log(2 pi)
        -1.83...
    """

    integrates = False

    def __init__(
        self,
        field: AbstractField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        correction: Correction,
        gate: Gate,
        chunk_size: int = CHUNK_SIZE,
        log_mass: float = 0.0,
    ) -> None:
        super().__init__(field, divergence, solver, chunk_size, log_mass)
        if not isinstance(correction, Correction):
            raise TypeError(f"`correction` must be a Correction; got {correction!r}")
        if not isinstance(gate, Gate):
            raise TypeError(f"`gate` must be a Gate, such as Gate(5.0, 6.5); got {gate!r}")
        if len(field.event_shape) != 1:
            raise ValueError(
                f"a distilled density is one of vectors; the field has events of shape "
                f"{tuple(field.event_shape)}. Use another way to the density"
            )
        context = field.context_shape.numel() if field.context_shape else 0
        if (correction.features, correction.context) != (field.features, context):
            raise ValueError(
                f"`correction` takes points of {correction.features} features and a context of "
                f"{correction.context} numbers, the field has {field.features} and {context}"
            )
        self.correction, self.gate = correction, gate

    def replace(self, **changes: Any) -> DistilledDensity:
        if "divergence" in changes:
            raise TypeError(
                "a distilled density integrates no divergence: say FlowODE.of(likelihood, "
                "divergence=...) for a way that does"
            )
        return super().replace(**changes)

    def __repr__(self) -> str:
        width, depth = self.correction.width, self.correction.depth
        return f"DistilledDensity({self.divergence!r}, {self.solver!r}, {depth} x {width} units)"

    def settings(self) -> dict[str, Any]:
        names = ("width", "depth", "context")
        sizes = {name: getattr(self.correction, name) for name in names}
        return {**sizes, "gate": asdict(self.gate)}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> DistilledDensity:
        features = source.given["field"].features
        parts = {
            "correction": Correction.from_settings(features, settings, source.under("correction")),
            "gate": decode(Gate, settings["gate"], "gate"),
        }
        return super().from_settings(name, parts, source)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        if self.correction.context:
            return self.by_autograd(x)
        if torch.jit.is_tracing():
            law = self.law
            numbers = law.scale, law.constant, law.gate.inner, law.gate.outer
            found = torch.ops.pyro_stad.distilled(x.detach(), law.weights, *numbers)
            return with_gradient(x, found[:, 0], found[:, 1:])
        law = self.law
        if is_transformed(x) or law.is_training():
            return self.by_autograd(x)
        return cast(Tensor, _LogProb.apply(x, self, law, None))

    def log_prob_before(self, whitening: AbstractWhitening, v: Tensor) -> Tensor:
        law = self.law
        if is_transformed(v) or law.is_training() or self.correction.context:
            return super().log_prob_before(whitening, v)
        # The whitening's own graph would cost as much as two layers, at one point.
        return cast(Tensor, _LogProb.apply(v, self, law, whitening))

    def sequential_calls(self) -> int:
        return 1

    def by_autograd(self, x: Tensor) -> Tensor:
        """Return the log-density as operations that can be differentiated again."""
        law, context = self.law, self._rows(len(x))
        if context is None and self.correction.context:
            raise ValueError("this density depends on a context: use density.given(context)")

        def value(rows: Tensor, given: Tensor | None = None) -> Tensor:
            return law.value(law.met(rows, None if given is None else given.flatten(1)))

        return in_chunks(x, value, self.chunk_size, context=context)

    @property
    def law(self) -> CorrectedNormal:
        """The density as a function."""
        scale = self.field.data_scale
        return CorrectedNormal(scale, self.constant(), self.gate, self.correction.weights())


class _LogProb(torch.autograd.Function):
    """The log-density with its gradient, made in the pass forward: it costs little more there."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        density: DistilledDensity,
        law: CorrectedNormal,
        whitening: AbstractWhitening | None,
    ) -> Tensor:
        ctx.density, ctx.whitening = density, whitening
        if not ctx.needs_input_grad[0]:
            return density.by_autograd(_whitened(v, whitening))
        # In chunks too, of which only this is kept: nothing has to be computed again.
        size = density.chunk_size
        found = in_chunks(v, lambda rows: law.side_by_side(rows, whitening), size)
        ctx.save_for_backward(v, found[:, 1:])
        # A copy: what is returned may be written to.
        return found[:, 0].clone()

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: Tensor) -> Any:
        v, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            value = ctx.density.by_autograd(_whitened(v, ctx.whitening))
            return *torch.autograd.grad(value, v, grad, create_graph=True), None, None, None
        return grad[:, None] * slopes, None, None, None


def _whitened(v: Tensor, whitening: AbstractWhitening | None) -> Tensor:
    return v if whitening is None else whitening._inverse(v)
