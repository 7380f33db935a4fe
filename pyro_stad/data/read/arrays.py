"""Arrays of numpy, tables of FITS and parquet: formats that say what their columns are."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from pyro_stad.data.layout import element_names
from pyro_stad.data.read.base import AbstractReader, Found, load_extra, matrix_columns, spread
from pyro_stad.data.read.text import head

__all__ = ["Fits", "Numpy", "Parquet"]


class Numpy(AbstractReader):
    """Reads a matrix, a table of records, or an archive of arrays by name."""

    name = "numpy (.npy, .npz)"

    def recognises(self, path: Path) -> bool:
        return head(path, 6) == b"\x93NUMPY" or (
            head(path, 2) == b"PK" and path.suffix.lower() != ".pt"
        )

    def read(self, path: Path) -> Found:
        # Opened here, so that it is closed if it is damaged.
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                columns, left_out = spread({name: array[name] for name in array.files})
                return Found(columns, left_out=left_out, files=(path,))
        if array.dtype.names:
            columns, left_out = spread({name: array[name] for name in array.dtype.names})
            return Found(columns, left_out=left_out, files=(path,))
        matrix = array[:, None] if array.ndim == 1 else array
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
            raise ValueError(
                f"{path} holds {array.dtype} of shape {array.shape}; expected numbers (N, D). "
                "Put the draws of all chains below each other: array.reshape(-1, D)"
            )
        names = element_names("x", (matrix.shape[1],))
        columns = matrix_columns(matrix.astype(np.float64), names)
        return Found(columns, named=False, files=(path,))


class Parquet(AbstractReader):
    """Reads a parquet file; an index that pandas put into it is left out."""

    name = "parquet"

    def recognises(self, path: Path) -> bool:
        return head(path, 4) == b"PAR1"

    def read(self, path: Path) -> Found:
        parquet = load_extra("pyarrow.parquet", f"reading {path.name}")
        table = parquet.read_table(path)
        arrays = {name: table[name].to_numpy() for name in table.column_names}
        columns, left_out = spread(arrays)
        index = (name for name in columns if name.startswith("__index_level_"))
        left_out |= dict.fromkeys(index, "index of the rows")
        return Found(columns, left_out=left_out, files=(path,))


class Fits(AbstractReader):
    """Reads the first table of a FITS file."""

    name = "FITS (a table)"

    def recognises(self, path: Path) -> bool:
        return head(path, 9) == b"SIMPLE  ="

    def read(self, path: Path) -> Found:
        fits = load_extra("astropy.io.fits", f"reading {path.name}")
        with warnings.catch_warnings():
            # Headers that are not quite as the standard says are common, and read all the same.
            warnings.simplefilter("ignore", fits.verify.VerifyWarning)
            with fits.open(path, memmap=False) as units:
                tables = [
                    unit for unit in units if isinstance(unit, fits.BinTableHDU | fits.TableHDU)
                ]
                if not tables:
                    raise ValueError(f"{path} holds no table; an image is no sample")
                data = tables[0].data
                columns, left_out = spread({name: data[name] for name in data.names})
        return Found(columns, left_out=left_out, files=(path,))
