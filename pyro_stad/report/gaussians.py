r"""A Gaussian mixture: what a plain method makes of the same samples.

A flow that does no better than a handful of normal laws has earned nothing. The mixture is
scikit-learn's, fitted in whitened coordinates; its number K of components is the one with the least

.. math:: \mathrm{BIC} = - 2 n\, \overline{\log p} + p \log n, \qquad
    p = K - 1 + K D (D + 3) / 2,

n being what the rows are worth, and the search ends when more components have been worse twice.

References:
    Schwarz (1978), Estimating the Dimension of a Model.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = ["best_mixture"]

_COMPONENTS = (1, 2, 3, 4, 6, 8, 10)
_ITERATIONS, _RIDGE = 60, 1e-4


def best_mixture(rows: Tensor, effective: float, generator: torch.Generator) -> Any | None:
    """Return scikit-learn's mixture with the least BIC; None if scikit-learn is not installed.

    Arguments:
        rows: whitened, of equal weight, with shape ``(N, D)``.
        effective: independent rows that they are worth.
        generator: source of the first means.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
    except ImportError:
        return None
    draw = torch.randint(2**31, (), generator=generator, device=generator.device)
    x, size, worse = rows.double().cpu().numpy(), rows.shape[1], 0
    best, least = None, math.inf
    for count in _COMPONENTS:
        mixture = GaussianMixture(
            count, max_iter=_ITERATIONS, reg_covar=_RIDGE, random_state=int(draw)
        )
        with warnings.catch_warnings():
            # One that goes on improving in small steps is good enough to be held against.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(x)
        free = count - 1 + count * size * (size + 3) / 2
        bic = free * math.log(effective) - 2 * effective * mixture.score(x)
        if bic < least:
            best, least, worse = mixture, bic, 0
        else:
            worse += 1
            if worse == 2:
                break
    return best
