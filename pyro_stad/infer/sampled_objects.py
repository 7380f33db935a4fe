"""What chains have drawn of the posteriors of many objects: in memory, and in files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._arviz import from_dict
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.errors import CheckpointError
from pyro_stad.model.mapped import MappedForm
from pyro_stad.samplers.diagnostics import diagnose

__all__ = ["Part", "SampledPosteriors", "part_file", "read_part", "write_part"]

_FORMAT, _VERSION = "pyro_stad posteriors", 1
_DRAWS = "draws."


@dataclass(frozen=True, eq=False)
class Part:
    """Draws of some of the objects.

    Attributes:
        draws: by site, each ``(b, chains, draws, ...)``.
        r_hat, ess: of the worst number of each object, ``(b,)``.
        disagreeing: whether its chains disagree, or the particles that they started from were
            stuck, ``(b,)``.
        acceptance: share of the moves of each that were taken, ``(b,)``.
    """

    draws: dict[str, Tensor]
    r_hat: Tensor
    ess: Tensor
    disagreeing: Tensor
    acceptance: Tensor

    def __len__(self) -> int:
        return len(self.r_hat)

    @classmethod
    def of(cls, form: MappedForm, x: Tensor, acceptance: Tensor, stuck: Tensor) -> Part:
        """Return what chains ``(b, C, n, K)`` have drawn, and of which starts were stuck."""
        shape = x.shape[:3]
        flat = form.values(x.flatten(1, 2))
        draws = {name: value.reshape(*shape, *value.shape[2:]) for name, value in flat.items()}
        # Numbers of all objects side by side, each with its chains.
        numbers = torch.cat(
            [value.flatten(3) if value.ndim > 3 else value[..., None] for value in draws.values()],
            3,
        )
        known = diagnose(numbers.movedim(3, 1).flatten(0, 1).cpu())
        ratio, effective, doubtful = (part.reshape(len(x), -1) for part in known)
        return cls(
            draws, ratio.amax(1), effective.amin(1), doubtful.any(1) | stuck.cpu(), acceptance.cpu()
        )


@dataclass(frozen=True, eq=False)
class SampledPosteriors(Part):
    """Draws of the posteriors of many objects.

    Attributes:
        form: the coordinates that chains moved in.
    """

    form: str = ""

    @classmethod
    def of_parts(cls, parts: list[Part], form: str) -> SampledPosteriors:
        """Return all objects of some parts, in their order."""
        draws = {name: torch.cat([p.draws[name] for p in parts]) for name in parts[0].draws}
        names = ("r_hat", "ess", "disagreeing", "acceptance")
        rest = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
        return cls(draws=draws, form=form, **rest)

    def mean(self) -> dict[str, Tensor]:
        """Return the posterior mean of every object, by site, ``(B, ...)``."""
        return {name: value.mean((1, 2)) for name, value in self.draws.items()}

    def sd(self) -> dict[str, Tensor]:
        """Return the posterior standard deviation of every object, by site, ``(B, ...)``."""
        return {name: value.flatten(1, 2).std(1) for name, value in self.draws.items()}

    def to_arviz(self, index: int) -> Any:
        """Return the draws of one object for ArviZ."""
        return from_dict(
            {"posterior": {name: value[index].cpu().numpy() for name, value in self.draws.items()}}
        )

    def summary(self) -> str:
        """Return how many objects there are, and how well they were sampled, as text."""
        _, chains, count = next(iter(self.draws.values())).shape[:3]
        return (
            f"{len(self)} objects, {chains} chains of {count} draws each in {self.form}: chains of "
            f"{int(self.disagreeing.sum())} disagree; worst R-hat {self.r_hat.max():.3f}, "
            f"effective draws {self.ess.median():.0f} (median), {self.ess.min():.0f} at worst"
        )

    def __repr__(self) -> str:
        return f"SampledPosteriors({self.summary()})"


def part_file(folder: Path, start: int) -> Path:
    """Return the file of the part that begins with an object."""
    return folder / f"objects_{start:09d}.safetensors"


def write_part(
    folder: Path, start: int, part: Part, identity: dict[str, Any], mark: Tensor
) -> None:
    """Write a part, atomically, with log-densities that mark the model."""
    tensors = {_DRAWS + name: value for name, value in part.draws.items()}
    names = ("r_hat", "ess", "disagreeing", "acceptance")
    tensors |= {name: getattr(part, name) for name in names}
    tensors["mark"] = mark
    document = {"format": _FORMAT, "version": _VERSION, "identity": identity}
    write_tensors(part_file(folder, start), tensors, document)


def read_part(
    folder: str | os.PathLike[str], start: int, identity: dict[str, Any], mark: Tensor
) -> Part:
    """Read a part.

    Raises:
        CheckpointError: if it is damaged, or of other objects or options.
    """
    path = part_file(Path(folder), start)
    tensors, document = read_tensors(path)
    found = document if isinstance(document, dict) else {}
    if (found.get("format"), found.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointError(f"{path} holds no posteriors of this version")
    for name, value in identity.items():
        if found["identity"].get(name) != value:
            raise CheckpointError(
                f"{path} has {name} = {found['identity'].get(name)!r}, these objects have "
                f"{value!r}; delete the store, or name another"
            )
    if not torch.allclose(tensors.pop("mark"), mark, rtol=1e-4, atol=1e-3, equal_nan=True):
        raise CheckpointError(
            f"{path} is of another model: densities of the same points differ. Delete the store, "
            "or name another"
        )
    draws = {
        name.removeprefix(_DRAWS): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(_DRAWS)
    }
    return Part(draws=draws, **tensors)
