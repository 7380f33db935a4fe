r"""The density of positions from that of positions and momenta, by importance over momenta.

The flow in phase space has a density of pairs, and that of positions is its integral over momenta,

.. math:: p(x) = E_{m \sim N(0, I)}\big[ p(x, m) / N(m; 0, I) \big],

of which a few momenta give an estimate that is low in the mean of its logarithm: by Jensen's
inequality a bound, nearer with every momentum. The momenta are drawn once, and are the same for
all points, so that the density is a fixed, smooth function, as NUTS demands.

With an exact score positions and momenta are independent at the data end
(:mod:`pyro_stad.paths.phase`): all weights are equal, and one momentum is enough. A learned field
is only nearly a score, and its weights scatter; ``gap`` measures by how much. The density of the
field's own flow, without momenta, is the cheaper answer.

References:
    Pandey and Mandt (2023), A Complete Recipe for Diffusion Generative Models; Burda, Grosse and
    Salakhutdinov (2016), Importance Weighted Autoencoders.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._chunks import CHUNK_SIZE
from pyro_stad._joined import repeat_rows
from pyro_stad._random import generator
from pyro_stad.divergence import AbstractDivergence
from pyro_stad.divergence.projected import Projected
from pyro_stad.fields.base import AbstractAngularField
from pyro_stad.fields.phase import PhaseField
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.ode import AbstractSolver
from pyro_stad.paths import PSLD
from pyro_stad.registry import Source, build, describe, storable

__all__ = ["MomentumGap", "PhaseDensity"]

_MOST_MOMENTA = 10_000


class MomentumGap(NamedTuple):
    """What few momenta cost, in nats, at each point ``(B,)``.

    Attributes:
        gap: the estimate less the bound of one momentum, in the mean.
        error: standard error of the estimate, by the scatter of its weights.
    """

    gap: Tensor
    error: Tensor


@storable("likelihood", "phase-space")
class PhaseDensity(AbstractLikelihood):
    """The log-density of positions by importance over momenta.

    Arguments:
        field: a field on any Gaussian path.
        divergence: how its divergence is computed, without momenta.
        solver: how the flow in phase space is solved.
        chunk_size: network rows worked on at a time.
        log_mass: logarithm of the mass that is divided out of the density.
        momenta: how many are drawn.
        seed: of the draw.
        path: the diffusion in phase space, or None for the field's own or the default.
    """

    integrates = False

    def __init__(
        self,
        field: AbstractAngularField,
        divergence: AbstractDivergence,
        solver: AbstractSolver,
        chunk_size: int = CHUNK_SIZE,
        log_mass: float = 0.0,
        momenta: int = 8,
        seed: int = 0,
        path: PSLD | None = None,
    ) -> None:
        super().__init__(field, divergence, solver, chunk_size, log_mass)
        check_count(momenta, "momenta", most=_MOST_MOMENTA)
        self.momenta, self.seed, self.path = momenta, check_seed(seed), path
        phase = PhaseField(field, path)
        # Of the same networks: in a tuple, for files would hold them twice.
        self._made = phase, FlowODE(phase, Projected(divergence), solver, chunk_size)
        # Once: a traced function would draw them anew at every call.
        self._frozen = torch.randn(
            momenta, *field.event_shape,
            generator=generator(self.seed, "momenta"), dtype=torch.float64, device="cpu",
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"PhaseDensity({self.divergence!r}, {self.solver!r}, momenta={self.momenta})"

    @property
    def pairs(self) -> FlowODE:
        """The density of positions and momenta, ``(B, 2, *event_shape)``."""
        return self._made[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of data ``x``, ``(B, *event_shape)``; NaN where it failed."""
        return self._weights(x).logsumexp(1) - math.log(self.momenta) - self.log_mass

    def gap(self, x: Tensor) -> MomentumGap:
        """Return how far the bound of one momentum is off, and the error of this estimate.

        Raises:
            ValueError: if there is but one momentum: it knows no other.
        """
        if self.momenta < 2:
            raise ValueError("`momenta` must be two at the least for a gap; got 1")
        weights = self._weights(x)
        log_p = weights.logsumexp(1) - math.log(self.momenta)
        spread = (weights - log_p[:, None]).exp().std(1) / math.sqrt(self.momenta)
        return MomentumGap(log_p - weights.mean(1), spread)

    def sequential_calls(self) -> int | None:
        return self.solver.sequential_calls()

    def settings(self) -> dict[str, Any]:
        path = None if self.path is None else describe(self.path, "path")
        return {"momenta": self.momenta, "seed": self.seed, "path": path}

    @classmethod
    def from_settings(cls, name: str, settings: dict[str, Any], source: Source) -> Self:
        path = settings["path"]
        known = None if path is None else build(path, "path")
        return super().from_settings(name, {**settings, "path": known}, source)

    def _weights(self, x: Tensor) -> Tensor:
        """Return the log-weight of every momentum at every point, ``(B, K)``."""
        way, rows = self.pairs, self._rows(len(x))
        # The law of positions at the data end is that of data, scaled, and a little noise.
        scale = math.cos(self._made[0].path.angles()[0])
        momenta = self._frozen.to(x)
        each = momenta.repeat(len(x), *(1 for _ in x[0].shape))
        pairs = torch.stack([repeat_rows(scale * x, self.momenta), each], 1)
        if rows is not None:
            way = way.given(repeat_rows(rows, self.momenta))
        joint = way.log_prob(pairs).reshape(len(x), self.momenta)
        size = self.field.features
        normal = -0.5 * momenta.flatten(1).square().sum(-1) - 0.5 * size * math.log(2 * math.pi)
        return joint - normal + size * math.log(scale)
