r"""The cheapest time grid that draws truly; a density needs a finer one.

The same noise is carried to data on a coarse grid and on one twice as fine as the density's. With x
and x' where it arrives, both whitened, the root mean square of the *displacement*,
:math:`(E\lVert x - x'\rVert^2 / D)^{1/2}`, is at least the Wasserstein distance of the two laws, a
coordinate: no mean, quantile or standard deviation is off by more than about that. A grid is taken
from a displacement of a hundredth of a standard deviation on, which is what ten thousand
independent draws know of a mean; a density may then still be a nat off where it is steep.

Displacement bounds what a law is off by from above, whatever the law. A test of two samples
(:mod:`pyro_stad.calibrate.two_sample`), of *other* noise on either grid, is the second look: it
sees less, but needs no pairs. On a mixture in 8 dimensions a thousand draws told a displacement of
0.12 from none, and not one of 0.08.

References:
    Villani (2009), Optimal Transport: Old and New.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._joined import own_draws, parted
from pyro_stad.calibrate.two_sample import TwoSample, two_sample
from pyro_stad.ode import RK4, AbstractSolver
from pyro_stad.transport import Flow

__all__ = ["GridTrial", "choose_grid"]

_DRAWS = 1000
_FARTHEST, _REJECTED = 0.01, 0.01  # standard deviations, and a chance
_STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class GridTrial:
    """A time grid for draws that was tried.

    Attributes:
        solver: its repr.
        sequential_calls: network calls one after the other, for a draw.
        displacement: root mean square of how far draws are from those of a fine grid, a whitened
            coordinate.
        test: comparison of draws with other ones of a fine grid.
    """

    solver: str
    sequential_calls: int
    displacement: float
    test: TwoSample

    def __post_init__(self) -> None:
        check_count(self.sequential_calls, "sequential_calls")

    @property
    def serves(self) -> bool:
        """Whether its draws are true."""
        return self.displacement <= _FARTHEST and self.test.p_value >= _REJECTED

    def text(self) -> str:
        """Return it as a line of text."""
        return (
            f"  draws by {self.solver}, {self.sequential_calls} sequential calls: within "
            f"{self.displacement:.2g} standard deviations of a fine grid's"
        )


def choose_grid(
    flow: Flow, like: Tensor, generator: torch.Generator
) -> tuple[Flow, GridTrial | None]:
    """Return the flow on the cheapest Runge-Kutta grid that draws truly, and how truly.

    The way back stays as it is.

    Arguments:
        flow: a flow on the grid of a density, which is taken if no cheaper one serves. With
            another solver than a fixed grid, it is returned as it is.
        like: whitened data, for their shape, dtype and device; and their context, if the field
            has one.
        generator: source of randomness.
    """
    solver, finest = flow.solver, flow.sequential_calls()
    if finest is None:
        return flow, None
    points, context = parted(like, flow)
    shape = (_DRAWS, *points.shape[1:])
    noise, other = (
        torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        for _ in range(2)
    )
    with torch.no_grad():
        fine = _on(flow, solver.finer())
        truth, others = own_draws(fine, noise, context), own_draws(fine, other, context)
        for grid in (*map(RK4, _STEPS), solver):
            tried = _on(flow, grid)
            calls = tried.sequential_calls()
            if grid is solver or (calls is not None and calls < finest):
                trial = _tried(tried, own_draws(tried, noise, context), truth, others)
                if trial.serves or grid is solver:
                    return tried, trial
    raise AssertionError("the grid of the density is the last one")


def _on(flow: Flow, solver: AbstractSolver) -> Flow:
    return flow.on_grid(solver)


def _tried(flow: Flow, draws: Tensor, truth: Tensor, others: Tensor) -> GridTrial:
    moved, _ = parted(draws - truth, flow)
    displacement = moved.double().square().mean().sqrt().item()
    calls = flow.sequential_calls() or 0
    return GridTrial(repr(flow.solver), calls, displacement, two_sample(draws, others))
