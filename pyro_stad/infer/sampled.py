r"""What many chains have drawn of a posterior, and how far it can be believed.

R-hat compares the means of chains. Of C chains that agree, with S effective draws in all, halves
differ by their own chance, so that :math:`\hat R^2 \approx 1 + 2 C / S`: above 1.01 for short
chains, however many there are. Chains are said to disagree where it is above 1.01 and above three
times what their own draws, each less the mean of its chain, make one expect.

References:
    Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and
    localization: an improved R-hat; Margossian et al. (2024), Nested R-hat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_stad._arviz import from_dict, r_hat
from pyro_stad.data.effective import ess
from pyro_stad.model.forms import AbstractForm

__all__ = ["SampledPosterior", "summed_up"]

_ROWS = 4096
_WORST_R_HAT, _TIMES = 1.01, 3.0


@dataclass(frozen=True, eq=False)
class SampledPosterior:
    """Draws of a posterior by many chains.

    Attributes:
        draws: by site, each ``(chains, draws, ...)``.
        lp: log-density of the draws in the coordinates of the chains, up to a constant, ``(chains,
            draws)``.
        r_hat, ess: rank-normalised split R-hat, and effective draws (bulk) of all chains together,
            of each number of each site.
        disagreeing: sites of which chains disagree.
        form: the coordinates that chains moved in, ``"noise"`` or ``"parameters"``.
        pilot: what a pilot found of each form, squared jump for a network call; empty if none ran.
        kernel: how they moved.
        acceptance: share of the moves that were taken.
        evaluations: log-densities that were evaluated, point by point, after tempering.
        seconds: wall time, in all.
    """

    draws: dict[str, Tensor]
    lp: Tensor
    r_hat: dict[str, Tensor]
    ess: dict[str, Tensor]
    disagreeing: tuple[str, ...]
    form: str
    pilot: dict[str, float]
    kernel: str
    acceptance: float
    evaluations: int
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
        return from_dict({"posterior": numbers, "sample_stats": {"lp": self.lp.cpu().numpy()}})

    def summary(self) -> str:
        """Return means, sds, R-hat and effective draws, as text."""
        chains, count = self.lp.shape
        lines = [
            f"{chains} chains of {count} draws in {self.form}, by {self.kernel}: "
            f"{self.seconds:.1f} s, {self.acceptance:.0%} of the moves taken, "
            f"{self.evaluations:,} densities",
            f"  worst R-hat {self.worst_r_hat:.3f}, fewest effective draws {self.worst_ess:.0f}",
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
        return "\n".join(lines)

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


def summed_up(form: AbstractForm, x: Tensor, known: dict[str, Any]) -> SampledPosterior:
    """Return the posterior that chains ``(C, n, K)`` have drawn, with what is ``known`` of it."""
    draws = values_of(form, x)
    ratios = {name: _by_number(value, r_hat) for name, value in draws.items()}
    effective = {name: _by_number(value, ess) for name, value in draws.items()}
    return SampledPosterior(
        draws=draws,
        r_hat=ratios,
        ess=effective,
        disagreeing=tuple(name for name in draws if _disagree(draws[name], ratios[name])),
        form=form.name,
        **known,
    )


def _by_number(value: Tensor, statistic: Callable[[Any], float]) -> Tensor:
    """Return a statistic of the draws ``(C, n)`` of each number of a site, ``(...)``."""
    columns = value.reshape(*value.shape[:2], -1).double().cpu().unbind(-1)
    found = torch.tensor([float(statistic(column)) for column in columns], dtype=torch.float64)
    return found.reshape(value.shape[2:])


def _disagree(value: Tensor, ratios: Tensor) -> bool:
    """Whether the chains of a site are farther apart than their own draws explain."""
    far = ~(ratios < _WORST_R_HAT)
    if not far.any():
        return False
    own = value - value.mean(1, keepdim=True)
    # R-hat is that of places and of spreads, whichever is larger.
    effective = torch.minimum(_by_number(own, ess), _by_number(own.abs(), ess))
    expected = 2 * len(value) / effective
    return bool((far & ~(ratios.square() - 1 < _TIMES * expected)).any())
