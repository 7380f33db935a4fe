"""Another likelihood's density with the field's score for a gradient.

The score at the data end costs one network call, the gradient of a density a pass back through all
of them. But a learned score is not the gradient of the learned density. Hamiltonian Monte Carlo
stays correct with any force, because the last word is that of the density; but its energy drifts,
so that steps get small. How much that costs is measured in ``benchmarks/nuts.py``; where the
density has its gradient by hand, that is cheap enough.

References:
    Song and Ermon (2019), Generative Modeling by Estimating Gradients of the Data Distribution.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_stad._chunks import in_chunks
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.known_gradient import with_gradient

__all__ = ["ScoreGradient"]


class ScoreGradient(AbstractLikelihood):
    """The density of another likelihood; its gradient is the field's score at the data end.

    It can't be saved: save the prior that it was made from. A second derivative is the largest
    number there is, or infinity, and not a zero that could pass for a curvature.

    Arguments:
        inner: the likelihood of the values, with a field on a Gaussian path.

    Raises:
        TypeError: if it is no likelihood, or its field has no score.

    Example:
        >>> from pyro_stad.divergence import Exact
        >>> from pyro_stad.likelihood import FlowODE
        >>> from pyro_stad.ode import RK4
        >>> from pyro_stad.paths import VPCosine
        >>> from pyro_stad.fields import PathField
        >>> field = PathField(VPCosine(), features=2, width=8, depth=2)  # untrained: N(0, I)
        >>> ScoreGradient(FlowODE(field, Exact(), RK4(steps=4)))
        ScoreGradient(FlowODE(Exact(), RK4(steps=4)))
    """

    field: AbstractAngularField

    def __init__(self, inner: AbstractLikelihood) -> None:
        if not isinstance(inner, AbstractLikelihood):
            raise TypeError(
                f"`inner` must be a likelihood, such as prior.likelihood; got {inner!r}"
            )
        if not inner.field.has_score:
            raise TypeError(
                f"ScoreGradient needs a field with a score, that is, on a Gaussian path; got "
                f"{type(inner.field).__name__}"
            )
        super().__init__(
            inner.field, inner.divergence, inner.solver, inner.chunk_size, inner.log_mass
        )
        self.inner, self.context = inner, inner.context

    def __repr__(self) -> str:
        return f"ScoreGradient({self.inner!r})"

    def replace(self, **changes: Any) -> ScoreGradient:
        inner = changes.pop("inner", self.inner)
        return ScoreGradient(inner.replace(**changes) if changes else inner)

    def given(self, context: Tensor) -> ScoreGradient:
        return ScoreGradient(self.inner.given(context))

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, shape ``(B, D)``."""
        constant = x.detach()
        rows = self._rows(len(x))
        slopes = in_chunks(constant, self._slopes, self.chunk_size, context=rows)
        return with_gradient(x, self.inner.log_prob(constant), slopes)

    def sequential_calls(self) -> int | None:
        return self.inner.sequential_calls()

    def _slopes(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the score of data, shape ``(B, D)``."""
        field, y = self._field_given(context), x * self.field.data_scale
        angle = y.new_full((len(y),), field.t_min)
        return field.data_scale * field.own_score(angle, y, field.velocity(angle, y))
