r"""Many chains of a law at a time, of many laws at once, that learn from each other where they are.

The chains of an object are in two halves. Each half moves about the normal law of the *other* one,
in coordinates in which that is N(0, I). While they warm up, chains learn that normal law anew, in
rounds that grow, and the step of the kernel from how many moves all of them take; then both are
fixed, and what follows is a Markov chain with the right law. Objects have normal laws and steps of
their own, and share nothing but the batch.

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
from pyro_stad.errors import CheckpointError
from pyro_stad.samplers.kernels import AbstractKernel, State
from pyro_stad.samplers.normal import Normal

__all__ = ["Ensemble"]

LogDensity = Callable[[Tensor, Tensor], Tensor]

_ROUNDS = (20, 40, 80)
_FADE = 0.6  # of what a step learns from one move, with their number
_LEAST = 1e-3
_FORMAT, _VERSION = "pyro_stad chains", 1
_DRAWN = ("draws", "log_p")


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
        scale: how far moves go, ``(B,)``.
        counts: of each object moves since the warm-up, how many of them were taken, on average, and
            log-densities that were evaluated, point by point, ``(3, B)``.
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
        self.counts = torch.zeros(3, len(start), **options)
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
    def acceptance(self) -> Tensor:
        """Share of the moves that were taken since the warm-up, ``(B,)``."""
        return self.counts[1] / self.counts[0]

    def warm_up(self, rounds: tuple[int, ...] = _ROUNDS) -> None:
        """Let chains find the law, and learn from each other how to move in it."""
        for length in rounds:
            steps, places = [], []
            for index in range(length):
                gain = (self._move() - self.kernel.acceptance) / (1 + index) ** _FADE
                self.scale = (self.scale * gain.exp()).clamp(_LEAST, self.kernel.longest)
                steps.append(self.scale.log())
                places.append(self.state.kept[0])
            # The mean of the later half: one step alone follows chance.
            self.scale = torch.stack(steps[length // 2 :]).mean(0).exp()
            # Where chains have been in that time: of few chains one moment says little.
            self._learn(torch.cat(places[length // 2 :], 2), self.state.kept[0])
        self.counts[:2] = 0

    def step(self) -> None:
        """Move all chains once."""
        taken = self._move()
        self.counts[:2] += torch.stack([torch.ones_like(taken), taken])

    def save(
        self,
        path: Path,
        draws: list[Tensor],
        log_p: list[Tensor],
        identity: dict[str, Any],
        known: dict[str, Any],
    ) -> None:
        """Write chains and their draws to ``path``, atomically.

        Arguments:
            path: the file.
            draws, log_p: of all chains, one move after the other.
            identity: what chains are of; others are not gone on with.
            known: what else is to be read back, of JSON.
        """
        tensors = {
            "z": self.state.z, "mean": self.normal.mean, "tril": self.normal.tril,
            "scale": self.scale, "counts": self.counts, "last": self.log_p,
            "generator": self.generator.get_state(),
        }  # fmt: skip
        if draws:
            tensors |= {"draws": torch.stack(draws), "log_p": torch.stack(log_p)}
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
    ) -> tuple[Ensemble, list[Tensor], list[Tensor]]:
        """Return chains that ``save`` wrote, their draws, and the log-densities there.

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
        new.counts = tensors["counts"].to(device)
        if not torch.allclose(new.log_p, tensors["last"].to(device), rtol=1e-4, atol=1e-3):
            raise CheckpointError(
                f"{path} is of another model: densities of the same points differ. Delete the "
                "file, or name another"
            )
        generator.set_state(tensors["generator"])
        draws, log_p = (
            list(tensors[name].to(device)) if name in tensors else [] for name in _DRAWN
        )
        return new, draws, log_p

    def _learn(self, seen: Tensor, x: Tensor) -> None:
        """Take the normal law of where each half was seen for the moves of the other one.

        Arguments:
            seen: where chains have been, ``(B, 2, M, K)``.
            x: where they are, ``(B, 2, C / 2, K)``.
        """
        even = seen.new_full(seen.shape[:3], 1 / seen.shape[2])
        self.normal = Normal.of_others(seen, even)
        with torch.no_grad():
            self.state = self._law(self.normal.to_unit(x))

    def _move(self) -> Tensor:
        with torch.no_grad():
            self.state, taken = self.kernel.step(self.state, self._law, self.scale, self.generator)
        return taken.double().mean((1, 2))

    def _law(self, z: Tensor) -> State:
        x = self.normal.from_unit(z)
        log_p = self._log_density(self.which, x.flatten(1, 2)).reshape(x.shape[:-1])
        self.counts[2] += log_p[0].numel()
        # Relative to N(0, I), as kernels want it.
        return State(z, log_p + 0.5 * z.square().sum(-1), (x, log_p))
