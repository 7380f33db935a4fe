"""What chains have drawn of the posteriors of many objects: in memory, and in files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._arviz import from_dict
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.errors import CheckpointError
from pyro_stad.infer.starts import Doubts
from pyro_stad.model.mapped import MappedForm
from pyro_stad.samplers import Ensemble
from pyro_stad.samplers.diagnostics import diagnose

__all__ = ["Part", "SampledPosteriors", "part_file", "read_part", "write_part"]

_FORMAT, _VERSION = "pyro_stad posteriors", 2
# Of what is known of each object there is one number, by site there are as many as it has.
_NUMBERS = ("r_hat", "ess", "disagreeing", "acceptance", "moves")
_BY_SITE = ("mean", "sd")
_DRAWS = "draws"


@dataclass(frozen=True, eq=False)
class Part:
    """Draws of some of the objects.

    Attributes:
        held: the draws, by site, each ``(b, chains, draws, ...)``; or the file that holds them.
        mean, sd: of each object, by site, ``(b, ...)``.
        r_hat, ess: of the worst number of each object, ``(b,)``.
        disagreeing: whether its chains disagree, or the particles that they started from were
            stuck, ``(b,)``.
        acceptance: share of the moves of each that were taken, ``(b,)``.
        moves: how many moves lie between two of its draws, ``(b,)``.
        warnings: what may be wrong, beside chains.
    """

    held: dict[str, Tensor] | Path
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    r_hat: Tensor
    ess: Tensor
    disagreeing: Tensor
    acceptance: Tensor
    moves: Tensor
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.r_hat)

    @property
    def draws(self) -> dict[str, Tensor]:
        """The draws by site, ``(b, chains, draws, ...)``; read where a file holds them."""
        if isinstance(self.held, Path):
            return _by_site(read_tensors(self.held)[0], _DRAWS)
        return self.held

    @classmethod
    def of(cls, form: MappedForm, chains: Ensemble, x: Tensor, doubts: Doubts, moves: int) -> Part:
        """Return what chains have drawn, ``(b, C, n, K)``, of the objects that are still there."""
        shape = x.shape[:3]
        flat = form.values(chains.which, x.flatten(1, 2))
        draws = {
            name: value.reshape(*shape, *value.shape[2:]).cpu() for name, value in flat.items()
        }
        # Numbers of all objects side by side, each with its chains.
        numbers = torch.cat([value.reshape(*shape, -1) for value in draws.values()], 3)
        known = diagnose(numbers.movedim(3, 1).flatten(0, 1))
        ratio, effective, disagree = (part.reshape(len(x), -1) for part in known)
        doubted = doubts.of_objects(chains.which).left(chains.jumped)
        return cls(
            held=draws,
            mean={name: value.mean((1, 2)) for name, value in draws.items()},
            sd={name: value.flatten(1, 2).std(1) for name, value in draws.items()},
            r_hat=ratio.amax(1),
            ess=effective.amin(1),
            disagreeing=disagree.any(1) | doubted.cpu(),
            acceptance=chains.acceptance.cpu(),
            moves=torch.full((len(x),), moves),
        )

    def take(self, which: Tensor, other: Part) -> None:
        """Take over objects ``which``, ``(k,)``, from another part."""
        for name in _NUMBERS:
            getattr(self, name)[which] = getattr(other, name)
        for ours, theirs in zip(
            (self.draws, self.mean, self.sd), (other.draws, other.mean, other.sd)
        ):
            for name, value in theirs.items():
                ours[name][which] = value


@dataclass(frozen=True, eq=False)
class SampledPosteriors:
    """Draws of the posteriors of many objects; what a store holds is read when it is asked for.

    Attributes:
        parts: some hundred objects each, in their order.
        num_chains, num_samples: chains of each object, and draws of each chain.
        form: the coordinates that chains moved in.
        pilot: what a pilot found of each form, squared jump for a network call; empty if none ran.
    """

    parts: tuple[Part, ...]
    num_chains: int
    num_samples: int
    form: str
    pilot: dict[str, float]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _of_all(self, name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in self.parts])

    @property
    def r_hat(self) -> Tensor:
        """R-hat of the worst number of each object, ``(B,)``."""
        return self._of_all("r_hat")

    @property
    def ess(self) -> Tensor:
        """Effective draws of the worst number of each object, of all its chains, ``(B,)``."""
        return self._of_all("ess")

    @property
    def disagreeing(self) -> Tensor:
        """Whether chains of an object disagree, or what they started from was stuck, ``(B,)``."""
        return self._of_all("disagreeing")

    @property
    def acceptance(self) -> Tensor:
        """Share of the moves of each object that were taken, ``(B,)``."""
        return self._of_all("acceptance")

    @property
    def moves(self) -> Tensor:
        """How many moves lie between two draws of each object, ``(B,)``."""
        return self._of_all("moves")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may be wrong, beside chains, of any part."""
        return tuple(dict.fromkeys(text for part in self.parts for text in part.warnings))

    @property
    def draws(self) -> dict[str, Tensor]:
        """All draws by site, each ``(B, chains, draws, ...)``: of a store, all of it is read."""
        each = [part.draws for part in self.parts]
        return {name: torch.cat([draws[name] for draws in each]) for name in each[0]}

    def mean(self) -> dict[str, Tensor]:
        """Return the posterior mean of every object, by site, ``(B, ...)``."""
        return {name: torch.cat([p.mean[name] for p in self.parts]) for name in self.parts[0].mean}

    def sd(self) -> dict[str, Tensor]:
        """Return the posterior standard deviation of every object, by site, ``(B, ...)``."""
        return {name: torch.cat([p.sd[name] for p in self.parts]) for name in self.parts[0].sd}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return the draws of one object by site, ``(chains, draws, ...)``.

        Raises:
            IndexError: if there is no such object.
            TypeError: if the index is no integer.
        """
        if not isinstance(index, Integral):
            raise TypeError(
                f"objects are numbered, from 0 to {len(self) - 1}; got {index!r}. Draws of a site "
                "of all objects are in `draws`"
            )
        place = index + len(self) if index < 0 else index
        for part in self.parts:
            if 0 <= place < len(part):
                return {name: value[place] for name, value in part.draws.items()}
            place -= len(part)
        raise IndexError(f"there are {len(self)} objects, and none with index {index}")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Go through the draws of all objects, reading each part once."""
        for part in self.parts:
            draws = part.draws
            for place in range(len(part)):
                yield {name: value[place] for name, value in draws.items()}

    def to_arviz(self, index: int | None = None) -> Any:
        """Return the draws of one object for ArviZ, or of all, as a first dimension of each site.

        What comes back has ``to_netcdf``; of a store, all of it is read.
        """
        draws = (
            self[index]
            if index is not None
            else {name: value.movedim(0, 2) for name, value in self.draws.items()}
        )
        return from_dict({"posterior": {name: v.cpu().numpy() for name, v in draws.items()}})

    def summary(self) -> str:
        """Return how many objects there are, and how well they were sampled, as text."""
        most = int(self.moves.max())
        apart = "" if most == 1 else f", up to {most} moves apart"
        return (
            f"{len(self)} objects, {self.num_chains} chains of {self.num_samples} draws each in "
            f"{self.form}{apart}: chains of {int(self.disagreeing.sum())} disagree; worst R-hat "
            f"{self.r_hat.max():.3f}, effective draws {self.ess.median():.0f} (median), "
            f"{self.ess.min():.0f} at worst"
        )

    def __repr__(self) -> str:
        return f"SampledPosteriors({self.summary()})"


def part_file(folder: Path, start: int) -> Path:
    """Return the file of the part that begins with an object."""
    return folder / f"objects_{start:09d}.safetensors"


def write_part(
    folder: Path, start: int, part: Part, identity: dict[str, Any], mark: Tensor
) -> Part:
    """Write a part, atomically, with log-densities that mark the model; return it, held there."""
    tensors = {name: getattr(part, name) for name in _NUMBERS} | {"mark": mark}
    for group in (_DRAWS, *_BY_SITE):
        tensors |= {f"{group}.{name}": v for name, v in getattr(part, group).items()}
    document = {"format": _FORMAT, "version": _VERSION, "identity": identity}
    document["warnings"] = part.warnings
    path = part_file(folder, start)
    write_tensors(path, tensors, document)
    return replace(part, held=path)


def read_part(
    folder: str | os.PathLike[str], start: int, identity: dict[str, Any], mark: Tensor
) -> Part:
    """Return a part that stays in its file.

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
    if not torch.allclose(tensors["mark"], mark, rtol=1e-4, atol=1e-3, equal_nan=True):
        raise CheckpointError(
            f"{path} is of another model: densities of the same points differ. Delete the store, "
            "or name another"
        )
    mean, sd = (_by_site(tensors, group) for group in _BY_SITE)
    numbers = {name: tensors[name] for name in _NUMBERS}
    return Part(held=path, mean=mean, sd=sd, warnings=tuple(found["warnings"]), **numbers)


def _by_site(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    start = f"{group}."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
