"""The posterior of PyMC, NumPyro, CmdStanPy, ... as ArviZ writes it: netCDF or zarr.

The group ``posterior`` is read by xarray, on which both generations of ArviZ stand; a netCDF of one
data set whose variables have the dimensions ``chain`` and ``draw`` is read too. Coordinates of a
variable become parts of names: ``theta[Choate]``. Warm-up is in a group of its own, and stays out.
"""

from __future__ import annotations

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pyro_stad.data.read.base import AbstractReader, Found, load_extra
from pyro_stad.data.read.hdf5 import MAGIC
from pyro_stad.data.read.text import head

__all__ = ["Posterior", "posterior_of"]

_NETCDF_3 = (b"CDF\x01", b"CDF\x02", b"CDF\x05")


class Posterior(AbstractReader):
    """Reads netCDF files and zarr stores."""

    name = "ArviZ netCDF or zarr (.nc, .zarr)"

    def recognises(self, path: Path) -> bool:
        return head(path) == MAGIC or head(path, 4) in _NETCDF_3 or _is_zarr(path)

    def read(self, path: Path) -> Found:
        with warnings.catch_warnings():
            # zarr warns of how other libraries may read what is being read here.
            warnings.simplefilter("ignore")
            with _open_zarr(path) if _is_zarr(path) else _open_netcdf(path) as data:
                found = posterior_of(data.load(), str(path))
        found.files = (path,)
        return found


def _is_zarr(path: Path) -> bool:
    marks = ("zarr.json", ".zgroup", ".zmetadata")
    return path.is_dir() and any((path / mark).is_file() for mark in marks)


def _open_zarr(path: Path) -> Any:
    import xarray

    load_extra("zarr", f"reading {path.name}")
    group = "posterior" if (path / "posterior").is_dir() else None
    data = xarray.open_zarr(path, group=group, consolidated=False)
    # A store is a folder, which lists its members in any order.
    return data[sorted(data.data_vars)]


def _open_netcdf(path: Path) -> Any:
    import xarray

    if head(path, 4) in _NETCDF_3:
        return xarray.open_dataset(path, engine="scipy")
    h5py = load_extra("h5py", f"reading {path.name}")
    load_extra("h5netcdf", f"reading {path.name}")
    with h5py.File(path, "r") as file:
        members = list(file)
        is_flat = "posterior" not in file and {"chain", "draw"} <= set(members)
        if "posterior" not in file and not is_flat:
            raise ValueError(
                f"{path} holds no posterior: expected a group 'posterior' as ArviZ writes it, or "
                f"an emcee backend; it holds {members[:10]}"
            )
    return xarray.open_dataset(path, engine="h5netcdf", group=None if is_flat else "posterior")


def posterior_of(data: Any, source: str) -> Found:
    """Return the variables of a data set that have chains and draws.

    Raises:
        ValueError: if there are none.
    """
    columns: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    shape = None
    for name, variable in data.data_vars.items():
        if not {"chain", "draw"} <= set(variable.dims):
            left_out[str(name)] = "without chain and draw"
            continue
        ordered = variable.transpose("chain", "draw", ...)
        if ordered.dtype.kind not in "fiub":
            left_out[str(name)] = "no numbers"
            continue
        shape = ordered.shape[:2]
        rows = ordered.values.reshape(shape[0] * shape[1], -1).astype(np.float64)
        axes = [[str(label) for label in ordered[axis].values] for axis in ordered.dims[2:]]
        for column, parts in zip(rows.T, product(*axes)):
            columns[f"{name}[{', '.join(parts)}]" if parts else str(name)] = column
    if shape is None:
        raise ValueError(f"{source} holds no posterior: no variable has the dimensions chain, draw")
    return Found(columns, chains=np.repeat(np.arange(shape[0]), shape[1]), left_out=left_out)
