"""Numbers of any array: float64 on the CPU, with nothing missing, or an error that says what is.

Arrays reach the package with a mask, in the byte order of another machine, in a wider type, or with
the missing values of tables. ``numpy.asarray`` drops a mask and hands out what lies under it, and
torch knows one byte order only; so every array that a user passes comes through here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["to_float64"]


def to_float64(values: Any, name: str) -> Tensor:
    """Return ``values`` as a float64 tensor on the CPU.

    Arguments:
        values: a tensor, an array, a column of a table, or what numpy makes an array of.
        name: what to call it in messages.

    Raises:
        TypeError: for anything but real numbers.
        ValueError: for masked or missing cells, or numbers beyond float64.
    """
    if isinstance(values, Tensor):
        return _of_tensor(values, name)
    if isinstance(values, np.ma.MaskedArray):
        _refuse_missing(int(np.ma.count_masked(values)), "masked", name)
    if hasattr(values, "isna") and hasattr(values, "to_numpy"):
        values = _of_column(values, name)
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        kind = "real" if array.dtype.kind == "c" else "numbers"
        raise TypeError(f"{name} must be {kind}; got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        # A copy in this machine's byte order: tables hand out read-only views, files other orders.
        converted = np.array(array, dtype=np.float64, order="C")
    if array.dtype.itemsize > 8 and (np.isfinite(array) & ~np.isfinite(converted)).any():
        raise ValueError(f"{name} has numbers too large for float64; rescale it")
    return torch.from_numpy(converted)


def _of_tensor(values: Tensor, name: str) -> Tensor:
    if values.is_complex():
        raise TypeError(f"{name} must be real; got dtype {values.dtype}")
    if values.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got layout {values.layout}")
    return values.detach().cpu().to(torch.float64)


def _of_column(column: Any, name: str) -> Any:
    """Return a column of a table as an array; missing cells of numpy's floats stay NaN."""
    plain = isinstance(column.dtype, np.dtype) and column.dtype.kind != "O"
    if plain:
        return column.to_numpy()
    _refuse_missing(int(np.asarray(column.isna()).sum()), "missing", name)
    # Columns that can hold missing values give objects unless they are told what is wanted.
    return column.to_numpy(dtype=np.float64) if column.dtype.kind in "fiub" else column.to_numpy()


def _refuse_missing(count: int, kind: str, name: str) -> None:
    if count:
        raise ValueError(
            f"{name} has {count} {kind} cells, and what lies under them is no sample; drop their "
            "rows, or fill in values that you believe"
        )
