"""emcee's HDF5 backend: steps by walkers by parameters, in a group of any name.

The file is made longer before a run than the run may get; what lies beyond the attribute
``iteration`` was never written. Walkers count as chains. The backend knows no names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_stad.data.layout import element_names
from pyro_stad.data.read.base import AbstractReader, Found, load_extra, matrix_columns
from pyro_stad.data.read.text import head

__all__ = ["MAGIC", "Emcee", "walkers"]

MAGIC = b"\x89HDF\r\n\x1a\n"


class Emcee(AbstractReader):
    """Reads a backend with one run in it."""

    name = "emcee (HDF5 backend)"

    def recognises(self, path: Path) -> bool:
        return head(path) == MAGIC and bool(_groups(path))

    def read(self, path: Path) -> Found:
        h5py = load_extra("h5py", f"reading {path.name}")
        groups = _groups(path)
        if len(groups) > 1:
            raise ValueError(f"{path} holds the runs {groups}; copy one of them into a file alone")
        with h5py.File(path, "r") as file:
            run = file[groups[0]]
            filled = int(run.attrs["iteration"])
            if filled < 1:
                raise ValueError(f"{path} holds no step yet")
            found = walkers(run["chain"][:filled])
        found.files = (path,)
        return found


def walkers(chain: np.ndarray) -> Found:
    """Return steps of walkers, ``(steps, walkers, D)``, one walker after the other."""
    steps, count, size = chain.shape
    rows = np.asarray(chain, np.float64).swapaxes(0, 1).reshape(-1, size)
    columns = matrix_columns(rows, element_names("x", (size,)))
    return Found(columns, chains=np.repeat(np.arange(count), steps), named=False)


def _groups(path: Path) -> list[str]:
    h5py = load_extra("h5py", f"reading {path.name}")
    marks = {"iteration", "nwalkers", "ndim"}
    with h5py.File(path, "r") as file:
        members = ((name, file.get(name)) for name in file)
        return [
            name
            for name, member in members
            if isinstance(member, h5py.Group) and marks <= set(member.attrs) and "chain" in member
        ]
