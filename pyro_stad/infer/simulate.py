"""``simulate``: pairs of parameters and data of any simulator, for a flow as its likelihood.

Simulators crash, return NaN where they lose their way, and now and then return the same thing
whatever they are asked. What fails is dropped and counted; what is broken in silence is refused,
since a flow would learn it without a word.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_stad._checks import check_count, check_seed
from pyro_stad._progress import progress_bar
from pyro_stad._random import forked, stream
from pyro_stad.density import ConditionalFlow
from pyro_stad.errors import SampleWarning
from pyro_stad.fitting import fit
from pyro_stad.infer.shared import SharedPrior

__all__ = ["Simulations", "simulate"]

_BATCH, _TRIALS = 1000, 5
_MANY, _TOO_MANY = 0.05, 0.9
_ATOM = 0.05  # share of the simulations that give one number
_DEAF = 5.0  # standard errors of a rank correlation


@dataclass(frozen=True, eq=False)
class Simulations:
    """Pairs that a simulator made.

    Attributes:
        theta: parameters, ``(N, C)``.
        x: data, ``(N, D)``.
        names: of the parameters; empty if they have none.
        failed: how many simulations were dropped, by reason.
    """

    theta: Tensor
    x: Tensor
    names: tuple[str, ...]
    failed: dict[str, int]

    def fit(self, **options: Any) -> ConditionalFlow:
        """Learn the likelihood: ``pyro_stad.fit(x, context=theta, **options)``."""
        if self.names:
            options = {"context_names": self.names, **options}
        return fit(self.x, context=self.theta, **options)

    def __repr__(self) -> str:
        lost = "".join(f", {count} lost ({reason})" for reason, count in self.failed.items())
        sizes = f"{self.x.shape[1]} given {self.theta.shape[1]}"
        return f"Simulations({len(self.x)} of x in {sizes}{lost})"


def simulate(
    simulator: Callable[[Tensor], Any],
    prior: Any,
    count: int,
    *,
    batched: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Simulations:
    """Draw parameters from a prior and data from a simulator.

    Arguments:
        simulator: from parameters ``(C,)`` to data, a tensor, array or number, of any shape that is
            always the same; or, if ``batched``, from ``(B, C)`` to ``(B, ...)``. Its random numbers
            are torch's, or its own.
        prior: a distribution of vectors ``(C,)`` or of numbers, a learned one with its names; or a
            mapping of names to distributions of numbers, in the order in which the simulator has
            them.
        count: simulations to be made.
        batched: whether the simulator takes many parameters at once.
        seed: of the parameters, and of torch's random numbers in the simulator.
        progress: whether to show a bar.

    Raises:
        TypeError: for a simulator or a prior that is none.
        ValueError: if hardly any simulation succeeds, data change their shape, are the same
            whatever the parameters are, come twice from the same parameters, or are one number in
            more than a twentieth of the simulations: then they have no density given them.

    Warns:
        SampleWarning: if more than a twentieth fail, for where the simulator fails nothing is
            learned; or if the data go with none of the parameters.
    """
    if not callable(simulator):
        raise TypeError(f"`simulator` must be callable; got {simulator!r}")
    check_count(count, "count", least=100)
    names = tuple(map(str, prior)) if isinstance(prior, Mapping) else _names(prior)
    failed: Counter[str] = Counter()
    kept: list[tuple[Tensor, Tensor]] = []
    step = _BATCH if batched else 1
    with forked(stream(check_seed(seed), "simulations")), torch.no_grad():
        theta = _parameters(prior, count)
        with progress_bar("simulations", count, shown=progress) as bar:
            for rows in theta.split(step):
                kept += _run(simulator, rows, failed, batched=batched)
                bar.update(len(rows))
        _check_many(len(kept), count, failed)
        _check_alive(simulator, kept, batched=batched)
    theta, x = (torch.stack(part) for part in zip(*kept))
    _warn_if_deaf(theta, x)
    if len(kept) < (1 - _MANY) * count:
        warnings.warn(
            f"{count - len(kept)} of {count} simulations failed ({dict(failed)}): the flow will "
            "know nothing of parameters where all do, and a truncated law where some do",
            SampleWarning,
            stacklevel=2,
        )
    return Simulations(theta, x, names, dict(failed))


def _names(prior: Any) -> tuple[str, ...]:
    """Return the names that a learned prior has for its coordinates; none of any other law."""
    return tuple(getattr(prior, "names", None) or ())


def _parameters(prior: Any, count: int) -> Tensor:
    if isinstance(prior, Mapping):
        SharedPrior.of(prior, None)  # says what is wrong with it
        return torch.stack([law.sample((count,)) for law in prior.values()], 1)
    if not hasattr(prior, "sample"):
        raise TypeError(f"`prior` must be a distribution, or a mapping of them; got {prior!r:.80}")
    theta = prior.sample((count,))
    theta = theta[:, None] if theta.ndim == 1 else theta
    if theta.ndim != 2:
        raise ValueError(f"`prior` must have events of shape (C,); got {tuple(theta.shape[1:])}")
    return theta


def _run(
    simulator: Callable[[Tensor], Any], theta: Tensor, failed: Counter[str], *, batched: bool
) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of rows of parameters, and count what failed."""
    try:
        made = simulator(theta if batched else theta[0])
        x = torch.as_tensor(made).to(theta)
    except Exception as error:  # A simulator raises what it likes.
        if len(theta) > 1:  # Not all of them are at fault.
            halves = theta.split(-(-len(theta) // 2))
            return [p for half in halves for p in _run(simulator, half, failed, batched=batched)]
        failed[f"{type(error).__name__}: {error!s:.80}".rstrip(": ")] += 1
        return []
    x = x if batched else x[None]
    if len(x) != len(theta):
        raise ValueError(
            f"`simulator` must return a row for each of {len(theta)} parameters, being batched; "
            f"got shape {tuple(x.shape)}"
        )
    x = x.reshape(len(x), -1)
    good = torch.isfinite(x).all(1)
    if not good.all():
        failed["not finite"] += int((~good).sum())
    return list(zip(theta[good], x[good]))


def _check_many(kept: int, count: int, failed: Counter[str]) -> None:
    if kept < (1 - _TOO_MANY) * count:
        raise ValueError(
            f"{count - kept} of {count} simulations failed ({dict(failed)}); check the simulator, "
            "and that it takes parameters of the prior's shape"
        )


def _check_alive(
    simulator: Callable[[Tensor], Any], kept: list[tuple[Tensor, Tensor]], *, batched: bool
) -> None:
    """Refuse data that have no density given the parameters, and say why they have none."""
    sizes = {len(x) for _, x in kept}
    if len(sizes) > 1:
        raise ValueError(f"`simulator` returns data of different sizes, {sorted(sizes)}")
    data = torch.stack([x for _, x in kept])
    fixed = _never_drawn(simulator, kept[:_TRIALS], batched=batched)
    for column, values in enumerate(data.T):
        distinct, counts = torch.unique(values, return_counts=True)
        share, most = counts.max().item() / len(values), distinct[counts.argmax()].item()
        if len(distinct) == 1:
            raise ValueError(
                f"`simulator` returns the same number, {most:.6g}, in coordinate {column} of its "
                "data whatever the parameters; leave it out"
            )
        if fixed[column]:
            raise ValueError(
                f"`simulator` returns the same data again for the same parameters, in coordinate "
                f"{column}: a function of them has no density. Leave it out, or let its noise be "
                "drawn anew in every call"
            )
        if share > _ATOM:
            raise ValueError(
                f"coordinate {column} of the data is {most:.6g} in {share:.0%} of the simulations: "
                "what is counted, clipped or censored has no density there. Add noise of a width "
                "that does not matter, or put that part of the likelihood into the model"
            )


def _never_drawn(
    simulator: Callable[[Tensor], Any], kept: list[tuple[Tensor, Tensor]], *, batched: bool
) -> list[bool]:
    """Return which coordinates came out alike twice for each of some parameters."""
    alike = torch.ones(len(kept[0][1]), dtype=torch.bool)
    for theta, _ in kept:
        twice = [_run(simulator, theta[None], Counter(), batched=batched) for _ in range(2)]
        if all(twice):
            (_, one), (_, other) = twice[0][0], twice[1][0]
            alike &= one == other
    return alike.tolist()


def _warn_if_deaf(theta: Tensor, x: Tensor) -> None:
    """Warn if neither place nor spread of any datum goes with any parameter, by ranks."""
    given, made = (
        torch.cat([_scores(side), _scores((side - side.median(0)[0]).abs())], 1)
        for side in (theta, x)
    )
    largest = (given.mT @ made / len(x)).abs().max().item()
    if largest < _DEAF / math.sqrt(len(x)):
        warnings.warn(
            "the data go with none of the parameters (largest rank correlation "
            f"{largest:.2g}): does `simulator` use what it is given?",
            SampleWarning,
            stacklevel=3,
        )


def _scores(values: Tensor) -> Tensor:
    """Return the ranks of columns ``(N, K)``, standardised."""
    ranks = values.argsort(0).argsort(0).double()
    return (ranks - ranks.mean(0)) / ranks.std(0)
