"""A law whose draw and density come from one solve, for guides and proposals.

Pyro asks a guide's law for a draw first, and then for the density of that same draw. A flow has
both from one solve of its ODE; this remembers the density of the last draw until it is asked for.
It holds the graph of that solve: make a new one each time that a guide runs.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["OneSolve"]


class OneSolve(dist.TorchDistribution):
    """A learned law as a guide's: one solve for a draw and its density.

    Arguments:
        law: a prior, or any law that has ``rsample_and_log_prob``.

    Example:
        >>> import pyro, pyro_stad
        >>> draws = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = pyro_stad.fit(draws, progress=False, budget="tiny")
        >>> def guide(data):
        ...     return pyro.sample("theta", OneSolve(prior.exact()))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, law: Any, *, validate_args: bool | None = None) -> None:
        if not hasattr(law, "rsample_and_log_prob"):
            raise TypeError(
                f"`law` must have rsample_and_log_prob, as a FlowPrior has; got "
                f"{type(law).__name__}"
            )
        self.law = law
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return self.law.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneSolve:
        """Return the same law with another batch shape; nothing is solved."""
        return OneSolve(self.law.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws of shape ``sample_shape + batch_shape + event_shape``."""
        self._last = self.law.rsample_and_log_prob(torch.Size(sample_shape))
        return self._last[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, shape ``(...)``; that of the last draw is known."""
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        return self.law.log_prob(value)
