r"""Grain: columns that are counts, or were rounded, or pile up on one value.

A flow has a density, and learns a sum of points as spikes: log p rises without limit on the values
that there are, and is meaningless between them. Of N draws of a density, two of the closest are
:math:`N^{-2}` standard deviations apart, so that a step between neighbours of a fiftieth says that
the values lie on a grid; and no value comes twice.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pyro_stad.data.standardise import spread_of
from pyro_stad.errors import SampleWarning

__all__ = ["warn_of_grain"]

_STEP = 0.02  # smallest step of a grid that a network sees, in standard deviations
_FEW, _PILE = 0.05, 0.05  # distinct values to rows; share of rows with one value


def warn_of_grain(values: Tensor, weights: Tensor | None, names: tuple[str, ...]) -> None:
    """Warn of columns of distinct rows, shape ``(N, D)``, that have no density of their own.

    Warns:
        SampleWarning: naming the columns, and what to do.
    """
    scale = spread_of(values, weights)[1]
    found = [
        f"{name} {grain}"
        for name, column, sd in zip(names, values.T, scale)
        if (grain := _grain(column, sd)) is not None
    ]
    if found:
        warnings.warn(
            f"columns without a density: {'; '.join(found)}. A flow learns such values as spikes. "
            "Dequantise: add uniform noise as wide as the step; or leave the column out",
            SampleWarning,
            stacklevel=4,
        )


def _grain(column: Tensor, sd: Tensor) -> str | None:
    distinct, counts = torch.unique(column, return_counts=True)
    rows, most = len(column), int(counts.argmax())
    step = distinct.diff().min()
    if step > _STEP * sd:
        return f"takes {len(distinct)} values in steps of {step.item():.3g}"
    if len(distinct) < _FEW * rows:
        return f"takes only {len(distinct)} values in {rows} distinct rows"
    if counts[most] > _PILE * rows:
        return f"is {distinct[most].item():.6g} in {int(counts[most])} of {rows} distinct rows"
    return None
