r"""A density of positive parameters on a grid: the truth that the demonstration is held against.

The grid is even in :math:`u = \log\theta`. There the density, with its Jacobian, and all its
derivatives vanish at both ends, so that the trapezoid rule converges faster than any power of the
spacing. The grid finds its own extent: from a wide box it closes in on the points that are within
25 nats of the highest, and what lies outside is below :math:`10^{-9}` of the mass.

References:
    Trefethen and Weideman (2014), The Exponentially Convergent Trapezoidal Rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid"]

_DEPTH = 25.0  # nats below the highest point at which the grid ends
_COARSE = 41  # points a side while it closes in


@dataclass(frozen=True)
class Grid:
    r"""Values of a log-density, its Jacobian :math:`\prod\theta` included, on a tensor grid.

    Attributes:
        axes: logarithms of the parameters, D tensors.
        values: log-density with respect to ``u``, with shape ``(len(axes[0]), ...)``, in float64.
    """

    axes: tuple[Tensor, ...]
    values: Tensor

    @staticmethod
    def over(
        log_density: Callable[[Tensor], Tensor],
        low: Sequence[float],
        high: Sequence[float],
        sizes: Sequence[int],
    ) -> Grid:
        """Return the grid of a density within a box.

        Arguments:
            log_density: of parameters with shape ``(..., D)``, with respect to them: ``(...)``.
            low, high: corners of a box that is wide enough, D positive numbers each.
            sizes: points along each side.
        """
        box = torch.tensor([low, high], dtype=torch.float64).log()
        while True:
            coarse = Grid(*_evaluate(log_density, box, [_COARSE] * len(sizes)))
            kept = (coarse.values > coarse.values.max() - _DEPTH).nonzero()
            step = (box[1] - box[0]) / (_COARSE - 1)
            # One point more on either side, but not beyond the box.
            closer = torch.stack(
                [
                    torch.maximum(box[0] + (kept.amin(0) - 1) * step, box[0]),
                    torch.minimum(box[0] + (kept.amax(0) + 1) * step, box[1]),
                ]
            )
            if ((closer[1] - closer[0]) > 0.8 * (box[1] - box[0])).all():
                return Grid(*_evaluate(log_density, closer, sizes))
            box = closer

    @property
    def cell(self) -> float:
        """Volume of a cell."""
        return math.prod((axis[1] - axis[0]).item() for axis in self.axes)

    @property
    def log_mass(self) -> float:
        """Logarithm of the integral: of prior times likelihood, the log-evidence."""
        return torch.logsumexp(self.values.flatten(), 0).item() + math.log(self.cell)

    def marginal(self, *which: int) -> Tensor:
        """Return the normalised density of some of the logarithms, on their axes."""
        share = torch.softmax(self.values.flatten(), 0).reshape(self.values.shape)
        others = [i for i in range(len(self.axes)) if i not in which]
        summed = share.sum(others) if others else share
        return summed / math.prod((self.axes[i][1] - self.axes[i][0]).item() for i in which)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of the parameters, ``(D,)`` each."""
        means, variances = [], []
        for index, axis in enumerate(self.axes):
            share = self.marginal(index) * (axis[1] - axis[0])
            mean = (share * axis.exp()).sum()
            means.append(mean)
            variances.append((share * (axis.exp() - mean).square()).sum())
        return torch.stack(means), torch.stack(variances).sqrt()


def _evaluate(
    log_density: Callable[[Tensor], Tensor], box: Tensor, sizes: Sequence[int]
) -> tuple[tuple[Tensor, ...], Tensor]:
    axes = tuple(
        torch.linspace(low, high, size, dtype=torch.float64)
        for (low, high), size in zip(box.mT.tolist(), sizes)
    )
    # Slice by slice: a whole grid times the data does not fit into every memory.
    slices = []
    for first in axes[0]:
        u = torch.stack(torch.meshgrid(first[None], *axes[1:], indexing="ij"), -1)
        slices.append(log_density(u.exp()) + u.sum(-1))
    return axes, torch.cat(slices)
