"""Chains of other samplers: from whatever they left on disk, or in memory, to one object.

Readers are asked in turn whether a path is theirs; the more a family of files demands, the earlier
its reader is asked, and plain tables come last. Reading runs no code that a file brings: there is
no pickle here, and formats that could name classes and functions are read as data.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pyro_stad.data.chain import Chain
from pyro_stad.data.read.arrays import Fits, Numpy, Parquet
from pyro_stad.data.read.base import AbstractReader, Found, join
from pyro_stad.data.read.bilby import Bilby
from pyro_stad.data.read.cobaya import Cobaya
from pyro_stad.data.read.columns import Choice, choose
from pyro_stad.data.read.getdist import GetDist
from pyro_stad.data.read.hdf5 import Emcee
from pyro_stad.data.read.nested import EqualWeights, UltraNest
from pyro_stad.data.read.objects import found_in
from pyro_stad.data.read.posterior import Posterior
from pyro_stad.data.read.stan import Stan
from pyro_stad.data.read.table import Table
from pyro_stad.data.read.text import head

__all__ = ["READERS", "read_chain"]

READERS: tuple[AbstractReader, ...] = (
    UltraNest(),
    EqualWeights(),
    Cobaya(),
    GetDist(),
    Stan(),
    Emcee(),
    Posterior(),
    Numpy(),
    Parquet(),
    Fits(),
    Bilby(),
    Table(),
)


def read_chain(
    path: Any,
    *,
    burn_in: float | None = None,
    var_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    weights: str | Literal[False] | None = None,
    log_weights: str | None = None,
) -> Chain:
    """Read the chain of another sampler.

    Arguments:
        path: a file, a folder, the root of several files as GetDist takes it, a pattern such as
            ``"fit_*.csv"``, a list of the files of several chains; or a result in memory of
            dynesty, nautilus, UltraNest, emcee, GetDist, anesthetic or ArviZ.
        burn_in: what to leave out at the beginning of each chain, a fraction below 1 or a number
            of rows. By default nothing but what the file itself marks as warm-up.
        var_names: the parameters to take, in this order; a variable's name stands for all its
            elements. By default all that are neither the sampler's own, nor derived, nor constant.
        names: names for the columns of a file that has none; one that has keeps its own.
        weights: name of the column that holds weights, where the format does not say; False to
            take no weights, whatever there is.
        log_weights: name of the column that holds their logarithms.

    Returns:
        The chain, for ``fit``; its repr says what was taken and what was left out.

    Raises:
        FileNotFoundError: if there is neither such a file nor a root.
        ValueError: if it can't be read, is of no known format, or has no such columns.
        TypeError: for an object of no known kind.
        ImportError: naming the extra, if a package is missing.
    """
    choice = Choice(burn_in, _listed(var_names, "var_names"), weights, log_weights)
    if isinstance(path, (str, os.PathLike)):
        found, source = _read(Path(path)), str(path)
    elif isinstance(path, (list, tuple)) and path:
        found = join([_read(Path(part)) for part in path])
        source = f"{len(path)} files such as {path[0]}"
    else:
        found, source = found_in(path), type(path).__name__
    return choose(_renamed(found, names, source), choice, source)


def _listed(names: Sequence[str] | None, argument: str) -> list[str] | None:
    # A string is a sequence too, of letters.
    if isinstance(names, str):
        raise TypeError(f"`{argument}` must be a list of names; got {names!r}")
    return None if names is None else list(names)


def _renamed(found: Found, names: Sequence[str] | None, source: str) -> Found:
    chosen = _listed(names, "names")
    if chosen is None or found.named:
        return found
    count = len(found.columns)
    if len(chosen) != count or len(set(chosen)) != count:
        raise ValueError(
            f"{source} has {count} columns without names, and `names` are {len(set(chosen))}: "
            f"{chosen}"
        )
    return replace(found, columns=dict(zip(chosen, found.columns.values())))


def _read(path: Path) -> Found:
    """Read one path by the reader that recognises it."""
    if not path.name:
        path = path.resolve()  # the folder where we are
    _refuse_pickles(path)
    for reader in READERS:
        with _one_error(reader, path):
            if reader.recognises(path):
                return reader.read(path)
    files = sorted(glob.glob(str(path))) if glob.has_magic(str(path)) else []
    if files:
        return join([_read(Path(file)) for file in files])
    known = "; ".join(reader.name for reader in READERS)
    if path.is_dir():
        members = sorted(member.name for member in path.iterdir())
        raise ValueError(f"{path} is a folder of {members[:8]}, and no chain; known are {known}")
    if not path.exists():
        raise FileNotFoundError(
            f"no such file: {path}, nor files that begin so and belong to a chain, as "
            f"{path.name}_1.txt with {path.name}.paramnames"
        )
    if head(path, 9)[8:] == b"{":
        raise ValueError(f"{path} is no chain but a safetensors file; load(path) opens a prior")
    raise ValueError(
        f"{path} begins with {head(path)!r}, which is no chain that can be read; known are {known}"
    )


@contextmanager
def _one_error(reader: AbstractReader, path: Path) -> Iterator[None]:
    """Turn whatever a parser raises into a ``ValueError`` of one line that names the file."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        # Parsers of other packages raise what they like on damaged files, and seldom say of which.
        what = " ".join(str(error).split()) or type(error).__name__
        if type(error) is ValueError and path.name in what:
            raise ValueError(what) from error
        raise ValueError(f"{path} looks like {reader.name}, but can't be read: {what}") from error


def _refuse_pickles(path: Path) -> None:
    """Refuse what would run code when loaded, by its content or by its ending."""
    endings = (".pkl", ".pickle", ".pck", ".joblib", ".dill", ".sav", ".save")
    is_pickle = head(path, 2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if is_pickle or (path.is_file() and path.suffix.lower() in endings):
        raise ValueError(
            f"{path} is a pickle, which is never loaded because it could run code. Load it where "
            "you trust it, and pass the object, read_chain(results); or export it there, for "
            "dynesty by np.savez('run.npz', theta=results.samples, log_weights=results.logwt - "
            "results.logz[-1])"
        )
