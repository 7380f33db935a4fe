"""Tempered runs in a file: what a killed run resumes from, to the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from pyro_stad._files import read_tensors, write_tensors
from pyro_stad._random import generator
from pyro_stad.errors import CheckpointError
from pyro_stad.samplers.problem import Problem

__all__ = ["Resumable", "probe", "restore", "store"]

_FORMAT, _VERSION = "pyro_stad tempered runs", 1
_FIRST_KERNEL = "CrankNicolson()"


class Resumable(Protocol):
    """Runs that can be stored: the names of their tensors, and what they are runs of."""

    STATE: tuple[str, ...]
    problem: Problem
    particles: int
    repeats: int
    generator: torch.Generator
    kernel: Any
    u: torch.Tensor

    @property
    def probe(self) -> torch.Tensor:
        """Log-likelihoods that mark the model."""
        ...


def store(path: Path, runs: Resumable) -> None:
    """Write ``runs`` to ``path``, atomically, with the state of their generator."""
    tensors = {name: getattr(runs, name) for name in runs.STATE}
    # JSON has no infinity, tensors have.
    write_tensors(
        path,
        {**tensors, "generator": runs.generator.get_state(), "probe": runs.probe},
        _identity(runs),
    )


def restore(path: Path, runs: Resumable) -> bool:
    """Read ``runs`` from ``path``; return whether there was a file.

    Raises:
        CheckpointError: if the file is damaged, or of other data, another model, or other options.
    """
    if not path.exists():
        return False
    tensors, document = read_tensors(path)
    known = _identity(runs)
    # Of before there was a choice, files say nothing of a kernel.
    found = {"kernel": _FIRST_KERNEL, **(document if isinstance(document, dict) else {})}
    for name, value in known.items():
        if found.get(name) != value:
            raise CheckpointError(
                f"{path} has {name} = {found.get(name)!r}, these runs have {value!r}; delete the "
                "file, or name another"
            )
    if not torch.allclose(tensors["probe"].to(runs.u), runs.probe, rtol=1e-4, atol=1e-4):
        raise CheckpointError(
            f"{path} is of another model: likelihoods of the same noise differ. Delete the file, "
            "or name another"
        )
    # Of before they were known, files say nothing of ancestors: as if particles had forgotten.
    for name in [name for name in runs.STATE if name in tensors]:
        setattr(runs, name, tensors[name].to(runs.u.device))
    runs.generator.set_state(tensors["generator"])
    return True


def _identity(runs: Resumable) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "particles": runs.particles,
        "repeats": runs.repeats,
        "seed": runs.generator.initial_seed(),
        "dtype": str(runs.u.dtype),
        "kernel": repr(runs.kernel),
        "size": runs.problem.size,
        "data": list(runs.problem.data),
    }


def probe(problem: Problem) -> torch.Tensor:
    """Return log-likelihoods at a little noise that is always the same: a mark of the model."""
    source = generator(0, "mark of a model")
    noise = torch.randn(problem.objects, 3, problem.size, generator=source).to(problem.like)
    which = torch.arange(problem.objects, device=noise.device)
    with torch.no_grad():
        return problem.of_objects(which, noise)
