"""What many chains have drawn of a posterior, and how far it can be believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_stad._arviz import from_dict
from pyro_stad.model.forms import AbstractForm
from pyro_stad.samplers.diagnostics import Diagnosis, diagnose

__all__ = ["SampledPosterior", "summed_up", "values_of"]

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class SampledPosterior:
    """Draws of a posterior by many chains.

    Attributes:
        draws: by site, each ``(chains, draws, ...)``.
        lp: log-density of the draws in the coordinates of the chains, up to a constant, ``(chains,
            draws)``.
        energy: of each draw before the move that led to it, in the coordinates of the kernel,
            ``(chains, draws)``.
        diverging: whether the energy grew by a thousand and more in that move, ``(chains, draws)``.
        r_hat, ess: rank-normalised split R-hat, and effective draws (bulk) of all chains together,
            of each number of each site.
        disagreeing: sites of which chains disagree.
        form: the coordinates that chains moved in, ``"noise"`` or ``"parameters"``.
        pilot: what a pilot found of each form, squared jump for a network call; empty if none ran.
        kernel: how they moved.
        acceptance: share of the moves that were taken.
        jumped: share of the jumps between any places that were taken; zero where there were none.
        evaluations: log-densities that were evaluated, point by point, after tempering.
        warnings: what may be wrong, beside chains.
        seconds: wall time, in all.
    """

    draws: dict[str, Tensor]
    lp: Tensor
    energy: Tensor
    diverging: Tensor
    r_hat: dict[str, Tensor]
    ess: dict[str, Tensor]
    disagreeing: tuple[str, ...]
    form: str
    pilot: dict[str, float]
    kernel: str
    acceptance: float
    jumped: float
    evaluations: int
    warnings: tuple[str, ...]
    seconds: float = field(compare=False)

    @property
    def worst_ess(self) -> float:
        """Effective draws of the worst coordinate."""
        return min(value.min().item() for value in self.ess.values())

    @property
    def worst_r_hat(self) -> float:
        """R-hat of the worst coordinate."""
        return max(value.max().item() for value in self.r_hat.values())

    def get_samples(self, *, group_by_chain: bool = False) -> dict[str, Tensor]:
        """Return the draws as Pyro's ``MCMC`` does, chains one after the other or apart."""
        if group_by_chain:
            return self.draws
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}

    def to_arviz(self) -> Any:
        """Return the draws for ArviZ: ``InferenceData`` (0.x) or ``DataTree`` (1.x)."""
        numbers = {name: value.cpu().numpy() for name, value in self.draws.items()}
        stats = {name: getattr(self, name).cpu().numpy() for name in ("lp", "energy", "diverging")}
        return from_dict({"posterior": numbers, "sample_stats": stats})

    def summary(self) -> str:
        """Return means, sds, R-hat and effective draws, as text."""
        chains, count = self.lp.shape
        lines = [
            f"{chains} chains of {count} draws in {self.form}, by {self.kernel}: "
            f"{self.seconds:.1f} s, {self.acceptance:.0%} of the moves and "
            f"{self.jumped:.0%} of the jumps taken, {self.evaluations:,} densities",
            f"  worst R-hat {self.worst_r_hat:.3f}, fewest effective draws {self.worst_ess:.0f}, "
            f"{int(self.diverging.sum())} divergences",
        ]
        for name, value in self.draws.items():
            flat = value.reshape(chains * count, -1)
            rows = zip(
                flat.mean(0), flat.std(0), self.r_hat[name].flatten(), self.ess[name].flatten()
            )
            for index, (mean, sd, ratio, effective) in enumerate(rows):
                label = name if flat.shape[1] == 1 else f"{name}[{index}]"
                lines.append(
                    f"  {label}: {mean:.4g} +- {sd:.3g}, R-hat {ratio:.3f}, {effective:.0f} "
                    "effective draws"
                )
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])

    def __repr__(self) -> str:
        return f"SampledPosterior({self.summary().splitlines()[0]})"


def values_of(form: AbstractForm, x: Tensor) -> dict[str, Tensor]:
    """Return the sites at ``x``, ``(C, n, K)``, each ``(C, n, ...)``."""
    parts = [form.values(rows) for rows in x.flatten(0, 1).split(_ROWS)]
    shape = x.shape[:2]
    return {
        name: torch.cat([part[name] for part in parts]).reshape(*shape, *parts[0][name].shape[1:])
        for name in parts[0]
    }


def summed_up(form: str, draws: dict[str, Tensor], known: dict[str, Any]) -> SampledPosterior:
    """Return what draws ``(C, n, ...)`` by site are worth, with what is ``known`` of them."""
    found = {name: by_number(value) for name, value in draws.items()}
    shapes = {name: value.shape[2:] for name, value in draws.items()}
    return SampledPosterior(
        draws=draws,
        r_hat={name: of.r_hat.reshape(shapes[name]) for name, of in found.items()},
        ess={name: of.ess.reshape(shapes[name]) for name, of in found.items()},
        disagreeing=tuple(name for name, of in found.items() if of.disagree.any()),
        form=form,
        **known,
    )


def by_number(value: Tensor) -> Diagnosis:
    """Return what is known of each number of a site ``(C, n, ...)``, side by side."""
    return diagnose(value.reshape(*value.shape[:2], -1).movedim(2, 0).cpu())
