"""Products of rows with a matrix, in which no row sees the others.

A matrix product is a sum in some order, and the order changes with the number of rows, with a row's
place among them, and with how many columns there are: the same point gets another last digit in
another batch. Rows padded to a multiple of eight, and columns to a multiple of four, all take
the same kernels. What these are is up to the library of the machine; tests hold it to that.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["ROWS", "RowProduct"]

ROWS = 8
_COLUMNS = 4


class RowProduct:
    """The product of row vectors with the transpose of a square matrix.

    Arguments:
        matrix: with shape ``(D, D)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.size = len(matrix)
        self.more = -self.size % _COLUMNS
        self.matrix = functional.pad(matrix, (0, self.more, 0, self.more))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products of ``x``, shape ``(..., D)``."""
        rows = x.reshape(-1, self.size)
        whole = functional.pad(rows, (0, self.more, 0, -len(rows) % ROWS))
        return (whole @ self.matrix.mT)[: len(rows), : self.size].reshape(x.shape)
