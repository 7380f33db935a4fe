r"""Many chains of a law at a time, of many laws at once, that learn from each other where they are.

The chains of an object are in two halves. Each half moves about the normal law of the *other* one,
in coordinates in which that is N(0, I). While they warm up, chains learn that normal law anew, in
rounds that grow, and the step of the kernel from how many moves all of them take; then both are
fixed, and what follows is a Markov chain with the right law. A move is one of the kernel and, where
any are taken, a jump (:mod:`pyro_stad.samplers.jumps`), so that chains pass between modes. Objects
have normal laws, steps and jumps of their own, and share nothing but the batch.

References:
    Goodman and Weare (2010), Ensemble Samplers with Affine Invariance; Hoffman and Sountsov (2022),
    Tuning-Free Generalized Hamiltonian Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.errors import CheckpointError, EvidenceError
from pyro_stad.samplers.jumps import Jumps
from pyro_stad.samplers.kernels import AbstractKernel, State
from pyro_stad.samplers.memory import memory
from pyro_stad.samplers.normal import Normal

__all__ = ["Ensemble"]

LogDensity = Callable[[Tensor, Tensor], Tensor]

_ROUNDS = (10, 20, 40)
_FADE = 0.6  # of what a step learns from one move, with their number
_LEAST = 1e-3
_DIVERGENT = 1000.0
_FEW_JUMPS = 0.01  # of all; fewer are not worth the densities that they take
# Of where it was, after one move: where more of the objects do than this, all of them jump at every
# move, and else at every eighth.
_REMEMBERS, _MANY, _SELDOM = 0.35, 0.25, 8
_AT_FIRST = 4
_FORMAT, _VERSION = "pyro_stad chains", 2
_DRAWN, _JUMPS = "drawn.", "jumps."


class Ensemble:
    """Chains on their way.

    Arguments:
        log_density: of objects ``which``, ``(B,)``, at rows ``(B, N, K)``, up to a constant each:
            ``(B, N)``.
        start: where chains start, ``(B, 2, C / 2, K)``.
        kernel: how they move.
        generator: source of randomness.

    Attributes:
        which: the objects.
        state: where they are, about the normal laws, with ``(x, log_p)``, each ``(B, 2, C / 2,
            ...)``, kept in it.
        normal: the normal law of each half, for the other's moves.
        jumps: what jumps of each half are drawn from; None where there are none.
        every: how many moves there are to a jump.
        scale: how far moves go, ``(B,)``.
        counts: of each object moves since the warm-up, how many of them were taken, on average,
            jumps, how many of them were taken, and log-densities that were evaluated, point by
            point, ``(5, B)``.
    """

    def __init__(
        self,
        log_density: LogDensity,
        start: Tensor,
        kernel: AbstractKernel,
        generator: torch.Generator,
    ) -> None:
        self._log_density, self.kernel, self.generator = log_density, kernel, generator
        options: Any = {"dtype": torch.float64, "device": start.device}
        self.which = torch.arange(len(start), device=start.device)
        self.scale = torch.full((len(start),), 0.5, **options)
        self.counts = torch.zeros(5, len(start), **options)
        self.normal: Normal
        self.state: State
        self.jumps: Jumps | None = None
        self.every = 1
        self._learn(start, start)

    @property
    def x(self) -> Tensor:
        """Where chains are, ``(B, C, K)``."""
        return self.state.kept[0].flatten(1, 2)

    @property
    def log_p(self) -> Tensor:
        """The log-density there, ``(B, C)``."""
        return self.state.kept[1].flatten(1, 2)

    @property
    def energy(self) -> Tensor:
        """The energy at which the last move began, ``(B, C)``."""
        return self._last.energy.flatten(1)

    @property
    def diverging(self) -> Tensor:
        """Whether the energy grew by a thousand and more in the last move, ``(B, C)``.

        A wall behind which there is no density at all is none.
        """
        gained = self._last.gained.flatten(1)
        return torch.isnan(gained) | ((gained < -_DIVERGENT) & torch.isfinite(gained))

    @property
    def acceptance(self) -> Tensor:
        """Share of the moves that were taken since the warm-up, ``(B,)``."""
        return self.counts[1] / self.counts[0]

    @property
    def jumped(self) -> Tensor:
        """Share of the jumps that were taken since the warm-up, ``(B,)``."""
        return self.counts[3] / self.counts[2].clamp_min(1)

    def warm_up(self, rounds: tuple[int, ...] = _ROUNDS) -> None:
        """Let chains find the law, and learn from each other how to move in it."""
        self.every = _AT_FIRST
        for place, length in enumerate(rounds):
            self.counts[2:4] = 0
            steps, places, memories = [], [], []
            for index in range(length):
                taken, remembered = self._move(index)
                gain = (taken - self.kernel.acceptance) / (1 + index) ** _FADE
                self.scale = (self.scale * gain.exp()).clamp(_LEAST, self.kernel.longest)
                steps.append(self.scale.log())
                places.append(self.state.kept[0])
                memories.append(remembered)
            late = slice(length // 2, None)
            # The mean of the later half: one step alone follows chance.
            self.scale = torch.stack(steps[late]).mean(0).exp()
            # Not before the last round but one: chains know too little, and it takes a while.
            worth = place > len(rounds) - 3 and self._is_worth_jumping()
            # Where chains have been in that time: of few chains one moment says little.
            self._learn(torch.cat(places[late], 2), self.state.kept[0], jumps=worth)
            remember = torch.stack(memories[late]).mean(0).amax((1, 2)) > _REMEMBERS
        self.every = 1 if remember.double().mean() > _MANY else _SELDOM
        self.counts[:4] = 0

    def _is_worth_jumping(self) -> bool:
        return self.jumps is None or bool(self.jumped.max() > _FEW_JUMPS)

    def step(self) -> None:
        """Move all chains once."""
        taken, _ = self._move(int(self.counts[0].max()))
        self.counts[:2] += torch.stack([torch.ones_like(taken), taken])

    def keep(self, which: Tensor) -> None:
        """Let only some of the objects go on, a mask ``(B,)``."""
        self.which, self.state = self.which[which], self.state.of_objects(which)
        self.normal, self.scale = self.normal.of_objects(which), self.scale[which]
        self.counts = self.counts[:, which]
        if self.jumps is not None:
            self.jumps = self.jumps.of_objects(which)

    def save(
        self,
        path: Path,
        drawn: dict[str, list[Tensor]],
        identity: dict[str, Any],
        known: dict[str, Any],
    ) -> None:
        """Write chains and their draws to ``path``, atomically.

        Arguments:
            path: the file.
            drawn: what is kept of each move, by name, one after the other.
            identity: what chains are of; others are not gone on with.
            known: what else is to be read back, of JSON.
        """
        tensors = {
            "z": self.state.z, "mean": self.normal.mean, "tril": self.normal.tril,
            "scale": self.scale, "counts": self.counts, "last": self.log_p,
            "every": torch.tensor(self.every),
            "generator": self.generator.get_state(),
        }  # fmt: skip
        if self.jumps is not None:
            tensors |= {_JUMPS + name: part for name, part in self.jumps._asdict().items()}
        tensors |= {_DRAWN + name: torch.stack(each) for name, each in drawn.items() if each}
        document = {"format": _FORMAT, "version": _VERSION, "identity": identity, "known": known}
        write_tensors(path, tensors, document)

    @staticmethod
    def known(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Return what else ``save`` wrote.

        Raises:
            CheckpointError: if the file is damaged, or of other chains.
        """
        _, document = read_tensors(path)
        found = document if isinstance(document, dict) else {}
        if (found.get("format"), found.get("version")) != (_FORMAT, _VERSION):
            raise CheckpointError(f"{path} is no file of chains of this version")
        for name, value in identity.items():
            if found["identity"].get(name) != value:
                raise CheckpointError(
                    f"{path} has {name} = {found['identity'].get(name)!r}, these chains have "
                    f"{value!r}; delete the file, or name another"
                )
        return found["known"]

    @classmethod
    def load(
        cls,
        path: Path,
        log_density: LogDensity,
        kernel: AbstractKernel,
        generator: torch.Generator,
    ) -> tuple[Ensemble, dict[str, list[Tensor]]]:
        """Return chains that ``save`` wrote, and what was kept of their moves.

        Raises:
            CheckpointError: if the file is damaged, or of another density.
        """
        tensors, _ = read_tensors(path)
        device = generator.device
        normal = Normal(tensors["mean"].to(device), tensors["tril"].to(device))
        z = tensors["z"].to(device)
        new = cls(log_density, normal.from_unit(z), kernel, generator)
        # As they were, to the last bit: coordinates are not carried there and back.
        new.normal, new.scale = normal, tensors["scale"].to(device)
        with torch.no_grad():
            new.state = new._law(z)
        new.counts, new.every = tensors["counts"].to(device), int(tensors["every"])
        if any(name.startswith(_JUMPS) for name in tensors):
            new.jumps = Jumps(*(tensors[_JUMPS + name].to(device) for name in Jumps._fields))
        if not torch.allclose(new.log_p, tensors["last"].to(device), rtol=1e-4, atol=1e-3):
            raise CheckpointError(
                f"{path} is of another model: densities of the same points differ. Delete the "
                "file, or name another"
            )
        generator.set_state(tensors["generator"])
        drawn = {
            name.removeprefix(_DRAWN): list(value.to(device))
            for name, value in tensors.items()
            if name.startswith(_DRAWN)
        }
        return new, drawn

    def _learn(self, seen: Tensor, x: Tensor, *, jumps: bool = False) -> None:
        """Take the laws of where each half was seen for the moves of the other one.

        Arguments:
            seen: where chains have been, ``(B, 2, M, K)``.
            x: where they are, ``(B, 2, C / 2, K)``.
            jumps: whether chains are to jump from now on.
        """
        lost = ~torch.isfinite(x).flatten(1).all(1)
        if lost.any():
            where = f" of object {int(self.which[lost][0])}" if len(lost) > 1 else ""
            raise EvidenceError(
                f"chains{where} have come to infinite coordinates: the posterior has no end there, "
                "or numbers are too large for their dtype; use proper priors, or float64"
            )
        even = seen.new_full(seen.shape[:3], 1 / seen.shape[2])
        self.normal = Normal.of_others(seen, even)
        with torch.no_grad():
            self.state = self._law(self.normal.to_unit(x))
            others = self.normal.to_unit(seen.flip(1))
            self.jumps = Jumps.fitted(others, self.generator) if jumps else None

    def _move(self, index: int) -> tuple[Tensor, Tensor]:
        """Move, and jump if it is time to; return shares of moves taken, and what they remember."""
        before = self.state.z
        with torch.no_grad():
            move = self.kernel.step(self.state, self._law, self.scale, self.generator)
            self.state, self._last = move.state, move
            known = memory(before, self.state.z)
            if self.jumps is not None and index % self.every == 0:
                self.state, jumped = self.jumps.step(self.state, self._law, self.generator)
                self.counts[2] += 1
                self.counts[3] += jumped.double().mean((1, 2))
        return move.taken.double().mean((1, 2)), known

    def _law(self, z: Tensor, which: Tensor | None = None) -> State:
        which = torch.ones_like(self.which, dtype=torch.bool) if which is None else which
        x = self.normal.of_objects(which).from_unit(z)
        log_p = self._log_density(self.which[which], x.flatten(1, 2)).reshape(x.shape[:-1])
        self.counts[4, which] += log_p[0].numel()
        # Relative to N(0, I), as kernels want it.
        return State(z, log_p + 0.5 * z.square().sum(-1), (x, log_p))
