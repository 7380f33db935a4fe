"""Products of rows with a matrix, in which no row sees the others.

A matrix product is a sum in some order, and the order changes with the number of rows, with a row's
place among them, and with how many columns there are: the same point gets another last digit in
another batch. Rows padded to a multiple of sixteen, and columns to a multiple of four, all take the
same kernels. What these are is up to the library of the machine; tests hold it to that. Eight rows
are enough for processors of AMD, but not for those of Intel.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["COLUMNS", "ROWS", "RowProduct"]

ROWS = 16
COLUMNS = 4


class RowProduct:
    """The product of row vectors with the transpose of a square matrix.

    Arguments:
        matrix: with shape ``(D, D)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.size = len(matrix)
        self.more = -self.size % COLUMNS
        self.matrix = functional.pad(matrix, (0, self.more, 0, self.more))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products of ``x``, shape ``(..., D)``."""
        rows = x if x.ndim == 2 else x.reshape(-1, self.size)
        count = rows.shape[0]
        missing = -count % ROWS
        # What needs no padding is spared its operations: for one point, they are what costs.
        if not (missing or self.more):
            return (rows @ self.matrix.mT).reshape(x.shape)
        whole = functional.pad(rows, (0, self.more, 0, missing))
        return (whole @ self.matrix.mT)[:count, : self.size].reshape(x.shape)
