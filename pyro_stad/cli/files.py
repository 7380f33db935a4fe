"""Files of the command line: chains and tables in, tables out.

Reading is :func:`pyro_stad.read_chain`, whatever the command. Writing is tried before any work is
done, so that a fit of an hour does not end at a folder that is not there, and goes to a temporary
file first, so that a full disk leaves the old file or none, and never half of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_stad.data import Chain, read_chain
from pyro_stad.density import FlowPrior

__all__ = ["check_out", "check_table", "even_rows", "read_points", "write_table"]

_ENDINGS = (".csv", ".npy")


def read_points(path: Path, prior: FlowPrior) -> tuple[Tensor, tuple[Path, ...]]:
    """Return points ``(N, D)`` in the prior's dtype, columns matched by name, and their files.

    Raises:
        ValueError: if the file can't be read, or lacks a parameter of the prior.
    """
    names = list(prior.names)
    chain = read_chain(path, var_names=names, names=names, weights=False)
    return chain.values.to(prior.like.dtype), chain.files


def even_rows(chain: Chain, most: int) -> Tensor:
    """Return at most ``most`` rows ``(M, D)`` of equal weight, evenly from all of the chain.

    Rows are where the cumulated weights cross the middles of M equal steps (systematic
    resampling); without weights these are evenly spaced rows, and all rows if there are few.
    """
    count = len(chain.values)
    weights = torch.ones(count, dtype=torch.float64) if chain.weights is None else chain.weights
    size = min(most, count)
    reached = (weights / weights.max()).cumsum(0)
    middles = (torch.arange(size, dtype=torch.float64) + 0.5) * (reached[-1] / size)
    return chain.values[torch.searchsorted(reached, middles).clamp(max=count - 1)]


def check_out(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse, before any work, a path that can't be written or that is one of the ``inputs``.

    Raises:
        OSError: if it can't be written.
        ValueError: if it must not be.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no such folder: {path.parent}")
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; name the file itself, {path.resolve()}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it, such as {path / 'out'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe; name a file")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path} is read by this command and would be lost; name another file")
    _trial(path)


def _trial(path: Path) -> None:
    """Make and remove a file beside ``path``: permissions alone do not tell on every system."""
    temporary = _temporary(path)
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def check_table(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a path that no table can be written to; see ``check_out``."""
    if path.suffix.lower() not in _ENDINGS:
        raise ValueError(f"{path} has the ending {path.suffix!r}; expected .csv or .npy")
    check_out(path, inputs)


def write_table(path: Path, columns: Tensor, names: Iterable[str]) -> None:
    """Write columns ``(N, K)``, as csv with a header or as npy, atomically.

    Raises:
        OSError: if that fails; an older file stays as it was.
    """
    import pandas

    array, temporary = columns.cpu().numpy(), _temporary(path)
    try:
        with temporary.open("wb") as file:
            if path.suffix.lower() == ".npy":
                np.save(file, array)
            else:
                pandas.DataFrame(array, columns=list(names)).to_csv(file, index=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
