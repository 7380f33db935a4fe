"""``simulate``: pairs of parameters and data of any simulator, for a flow as its likelihood.

Simulators crash, return NaN where they lose their way, and now and then return the same thing
whatever they are asked. What fails is dropped and counted; what is broken in silence is refused,
since a flow would learn it without a word.
"""

from __future__ import annotations

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
        prior: a distribution of vectors ``(C,)`` or of numbers; or a mapping of names to
            distributions of numbers, in the order in which the simulator has them.
        count: simulations to be made.
        batched: whether the simulator takes many parameters at once.
        seed: of the parameters, and of torch's random numbers in the simulator.
        progress: whether to show a bar.

    Raises:
        TypeError: for a simulator or a prior that is none.
        ValueError: if hardly any simulation succeeds, data change their shape, are the same
            whatever the parameters are, or come twice from the same parameters, so that they have
            no density given them.

    Warns:
        SampleWarning: if more than a twentieth fail: where the simulator fails, nothing is learned.
    """
    if not callable(simulator):
        raise TypeError(f"`simulator` must be callable; got {simulator!r}")
    check_count(count, "count", least=100)
    names = tuple(map(str, prior)) if isinstance(prior, Mapping) else ()
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
    if len(kept) < (1 - _MANY) * count:
        warnings.warn(
            f"{count - len(kept)} of {count} simulations failed ({dict(failed)}): the flow will "
            "know nothing of parameters where all do, and a truncated law where some do",
            SampleWarning,
            stacklevel=2,
        )
    return Simulations(theta, x, names, dict(failed))


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
    """Refuse a simulator that does not listen, or that has no noise."""
    sizes = {len(x) for _, x in kept}
    if len(sizes) > 1:
        raise ValueError(f"`simulator` returns data of different sizes, {sorted(sizes)}")
    data = torch.stack([x for _, x in kept])
    dead = (data == data[0]).all(0)
    if dead.any():
        raise ValueError(
            f"`simulator` returns the same number, {data[0][dead][0].item():.6g}, in coordinate "
            f"{int(dead.nonzero()[0])} of its data whatever the parameters; leave it out"
        )
    distinct = len(torch.unique(data, dim=0))
    if distinct < 0.5 * len(data):
        raise ValueError(
            f"`simulator` returned only {distinct} different data in {len(data)} simulations; it "
            "repeats itself, or its data are discrete and have no density"
        )
    for theta, _ in kept[:_TRIALS]:
        twice = [_run(simulator, theta[None], Counter(), batched=batched) for _ in range(2)]
        if all(twice):
            (_, one), (_, other) = twice[0][0], twice[1][0]
            same = one == other
            if same.any():
                raise ValueError(
                    f"`simulator` returns the same data again for the same parameters, in "
                    f"coordinates {same.nonzero()[:, 0].tolist()}: a function of them has no "
                    "density. Leave those out, or let its noise be drawn anew in every call"
                )
