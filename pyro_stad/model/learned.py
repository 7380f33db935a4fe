"""The learned priors of a model, and the generators of one step: which noise is theirs."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pyro_stad.density import (
    FlowPrior,
    OneStepGenerator,
    TruncatedPrior,
    find_cut,
    find_flow,
    find_generator,
    law_of,
)

__all__ = ["LearnedNoise", "generators_in", "learned_in", "owed_to"]


class LearnedNoise(NamedTuple):
    """A site whose prior is a flow: prior, columns of noise, calls for one draw, and cut."""

    prior: FlowPrior
    columns: slice
    calls: int | None
    cut: TruncatedPrior | None

    @property
    def features(self) -> int:
        """Number of coordinates of one draw."""
        return self.prior.like.numel()

    def noise(self, u: Tensor) -> Tensor:
        """Return its part of all noise ``(N, D)``, draw by draw of the prior."""
        return u[:, self.columns].reshape(-1, *self.prior.like.shape).to(self.prior.like)


def learned_in(latent: list[Any], *, by_flow: bool) -> list[LearnedNoise]:
    """Return where the learned priors of latent sites take their noise.

    Arguments:
        latent: the sites, in the order of the model.
        by_flow: whether the flows of generators are among them.
    """
    found, at = [], 0
    for site in latent:
        size, law = site["value"].numel(), law_of(site)
        generator = find_generator(law) if by_flow else None
        flow = find_flow(law if generator is None else generator.prior)
        if flow is not None:
            features, calls = flow.like.numel(), flow.transport.sequential_calls()
            calls = calls and calls * size // features
            found.append(LearnedNoise(flow, slice(at, at + size), calls, find_cut(law)))
        at += size
    return found


def generators_in(latent: list[Any]) -> dict[str, OneStepGenerator]:
    """Return the generators of one step among the laws of latent sites, by name."""
    found = {site["name"]: find_generator(law_of(site)) for site in latent}
    return {name: generator for name, generator in found.items() if generator is not None}


def owed_to(name: str, generator: OneStepGenerator) -> str:
    """Return what a posterior owes to a generator: its law is not quite its prior's."""
    known, far = generator.distilled, "unknown"
    if known is not None:
        far = f"{known.distance:+.2g} +- {known.distance_error:.1g}"
    return (
        f"{name!r} is drawn by a generator of one step, and posterior and evidence are those of "
        f"its law, {far} in energy distance, whitened, from its prior's. For those of the prior "
        "say correct=True, or put generator.prior into the model"
    )
