"""Files of samples for the command line: csv, npy, npz and netcdf, in; csv and npy, out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_stad.density import FlowPrior

__all__ = ["read_samples", "read_points", "write_points"]


def read_samples(path: Path) -> Any:
    """Return the samples in ``path`` in a container that ``fit`` takes.

    Raises:
        ValueError: for an ending that is not known, or a file that does not parse.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    ending = path.suffix.lower()
    if ending == ".csv":
        import pandas

        return pandas.read_csv(path, sep=None, engine="python")
    if ending == ".npy":
        return np.load(path, allow_pickle=False)
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    if ending in (".nc", ".netcdf", ".h5"):
        import arviz

        return arviz.from_netcdf(str(path))
    raise ValueError(f"{path} has the ending {ending!r}; expected .csv, .npy, .npz or .nc")


def read_points(path: Path, prior: FlowPrior) -> Tensor:
    """Return points ``(N, D)`` in the prior's dtype, with columns matched by name."""
    samples = read_samples(path)
    if hasattr(samples, "columns"):
        missing = [name for name in prior.names if name not in samples.columns]
        if missing:
            raise ValueError(f"{path} lacks the columns {missing}; the prior has {prior.names}")
        samples = samples[list(prior.names)].to_numpy(dtype=np.float64)
    elif isinstance(samples, dict):
        names = [name for name, _ in prior.layout.variables]
        missing = [name for name in names if name not in samples]
        if missing:
            raise ValueError(f"{path} lacks the arrays {missing}")
        parts = [np.asarray(samples[name]) for name in names]
        samples = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    elif not isinstance(samples, np.ndarray):
        from pyro_stad.data import as_samples

        chosen = [name for name, _ in prior.layout.variables]
        samples = as_samples(samples, var_names=chosen).values.numpy()
    return torch.as_tensor(np.array(samples), dtype=prior.transforms[1].loc.dtype)


def write_points(path: Path, points: Tensor, names: tuple[str, ...]) -> None:
    """Write points ``(N, D)`` as csv with a header, or npy."""
    array = points.cpu().numpy()
    if path.suffix.lower() == ".npy":
        np.save(path, array)
    elif path.suffix.lower() == ".csv":
        import pandas

        pandas.DataFrame(array, columns=list(names)).to_csv(path, index=False)
    else:
        raise ValueError(f"{path} has the ending {path.suffix!r}; expected .csv or .npy")
