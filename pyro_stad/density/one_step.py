r"""``OneStepGenerator``: draws of a prior for one network call each, as a distribution for Pyro.

.. math:: z \sim N(0, I), \quad \theta = \mathrm{coordinates}^{-1}(g(z)).

It has draws, and gradients through them, but no density: g is no bijection. In a model it is used
in noise, by ``FlowReparam``, where no density is asked for: NUTS, SVI and evidence work on z, at
one call instead of a solve. What it draws is the prior's law as far as it was distilled; ``prior``
is kept, for all that needs a density.

Of one noise z, generator and flow draw nearly the same. Within ``drawn_by_flow`` a generator draws
by its flow, so that the same model at the same noise has two likelihoods: the ratio of them is what
corrects a posterior, or an evidence, of the generator. No determinant is in it, and so it holds
where g folds.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_stad._checks import check_count, check_generator
from pyro_stad.data.standardise import real_events
from pyro_stad.density.given import GivenPrior
from pyro_stad.density.prior import FlowPrior
from pyro_stad.files.one_step import write_one_step
from pyro_stad.files.prior import describe_prior
from pyro_stad.transport import OneStep

__all__ = ["Distilled", "OneStepGenerator", "drawn_by_flow"]

_BY_FLOW = ContextVar("drawn_by_flow", default=False)


@contextmanager
def drawn_by_flow() -> Iterator[None]:
    """Let generators draw by the flow of their prior, of the same noise, within this context."""
    token = _BY_FLOW.set(True)
    try:
        yield
    finally:
        _BY_FLOW.reset(token)


@dataclass(frozen=True)
class Distilled:
    """How a generator was distilled, and how true its draws are.

    Attributes:
        method: ``"regression"``, ``"em"`` or ``"both"``.
        steps: optimiser steps, in all.
        seconds: that they took.
        distance, distance_error: energy distance of its draws to the flow's, whitened, with its
            standard error; zero, within the error, for draws of the same law.
        displacement: root mean square of how far draws are from where the flow carries the same
            noise, a whitened coordinate. EM keeps no such coupling.
        seed: of everything random.
    """

    method: str
    steps: int
    seconds: float
    distance: float
    distance_error: float
    displacement: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.steps, "steps", least=0)

    def text(self) -> str:
        """Return it as a few lines of text."""
        off = "" if math.isnan(self.displacement) else f", displacement {self.displacement:.2g}"
        return (
            f"  distilled by {self.method}, {self.steps} steps in {self.seconds:.0f} s: energy "
            f"distance to the flow's draws {self.distance:+.2g} +- {self.distance_error:.1g}{off}"
        )


class OneStepGenerator(dist.TransformedDistribution, dist.TorchDistribution):
    """Draws of a prior in one network call each; ``pyro_stad.distil_one_step`` makes it.

    Arguments:
        prior: what it draws from; it has the density, and the batch shape.
        transport: the generator of whitened draws.
        distilled: how it came about, or None.
        validate_args: as in Pyro.

    Example:
        >>> import pyro_stad
        >>> draws = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = pyro_stad.fit(draws, progress=False, budget="tiny", members=0)
        >>> generator = pyro_stad.distil_one_step(prior, steps=20, progress=False)
        >>> generator.sample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        prior: FlowPrior,
        transport: OneStep,
        distilled: Distilled | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(prior, FlowPrior):
            raise TypeError(f"`prior` must be a FlowPrior; got {prior!r:.80}")
        if not isinstance(transport, OneStep):
            raise TypeError(f"`transport` must be a OneStep; got {type(transport).__name__}")
        self.prior, self.distilled = prior, distilled
        if any(part.requires_grad for part in transport.parameters()):
            transport.requires_grad_(False)  # not where torch.vmap looks on
        self.transport = transport.eval()
        # What a prior was given, as networks see it; one without a context has none.
        white = prior.encoded.white if isinstance(prior, GivenPrior) else None
        push = _Push(self.transport, prior.transport, prior.like.ndim, white)
        transforms = [push, *prior.coordinates.transforms]
        super().__init__(prior.base_dist, transforms, validate_args=validate_args)  # type: ignore[arg-type]

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Draws have gradients, through the one call."""
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates."""
        return self.prior.names

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The support of the prior."""
        return self.prior.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneStepGenerator:
        """Return the same generator with another batch shape; nothing is copied."""
        return OneStepGenerator(
            self.prior.expand(torch.Size(batch_shape)), self.transport, self.distilled,
            validate_args=self._validate_args,
        )  # fmt: skip

    def log_prob(self, value: Tensor) -> NoReturn:
        """Refuse: a generator has no density.

        Raises:
            NotImplementedError: always, with the ways out.
        """
        raise NotImplementedError(
            "a generator of one step has no density. Its prior has one: generator.prior.log_prob. "
            "In a model say pyro_stad.FlowReparam()(model): it then works on the noise, of which "
            "the density is known"
        )

    def rsample(
        self, sample_shape: Any = (), *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return draws of shape ``sample_shape + batch_shape + event_shape``, with gradients.

        Arguments:
            sample_shape: as in Pyro.
            generator: source of the noise; None for torch's global one.
        """
        check_generator(generator, self.prior.like.device)
        if generator is None:
            x = self.base_dist.rsample(torch.Size(sample_shape))
        else:
            like = self.base_dist.mean
            shape = torch.Size(sample_shape) + like.shape
            x = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        for transform in self.transforms:
            x = transform(x)
        return x

    def sample(self, sample_shape: Any = (), **options: Any) -> Tensor:
        """Return draws without gradients; see ``rsample``."""
        with torch.no_grad():
            return self.rsample(sample_shape, **options)

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """Return a copy on another device or in another dtype."""
        moved = copy.deepcopy(self.transport).to(target)
        return type(self)(self.prior.to(target), moved, self.distilled)

    def summary(self) -> str:
        """Return what it is, how it was distilled and how true it is, as text."""
        made = "  not distilled here" if self.distilled is None else self.distilled.text()
        return f"{self!r}\n{made}\nof {self.prior.summary()}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write generator and prior to ``path``; ``pyro_stad.load`` reads both back."""
        record = None if self.distilled is None else asdict(self.distilled)
        write_one_step(describe_prior(self.prior.stored()), self.transport, record, path)

    def __repr__(self) -> str:
        size = self.prior.event_shape.numel()
        return (
            f"OneStepGenerator(D={size}, batch_shape={tuple(self.batch_shape)}, {self.transport!r})"
        )


class _Push(Transform):
    """The map from noise to whitened draws, which has no way back.

    Arguments:
        transport: the generator.
        flow: that it was distilled from; see ``drawn_by_flow``.
        dims: dimensions of an event.
        white: the context as networks see it, ``(*batch, C)``, or None.
    """

    bijective = False

    def __init__(
        self, transport: OneStep, flow: Any, dims: int, white: Tensor | None = None
    ) -> None:
        super().__init__()
        self.white = white
        self.transport, self.flow, self._dims = transport, flow, dims
        self.domain = self.codomain = real_events(dims)

    def with_cache(self, cache_size: int = 1) -> _Push:
        """Return self: see ``FlowTransform.with_cache``."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, *x.shape[x.ndim - self._dims :])
        transport = self.flow if _BY_FLOW.get() else self.transport
        if self.white is not None:
            context = self.white.expand(*x.shape[:-1], self.white.shape[-1])
            transport = transport.given(context.reshape(len(rows), -1))
        return transport.push(rows).reshape(x.shape)

    def _inverse(self, y: Tensor) -> NoReturn:
        raise NotImplementedError(
            "a generator of one step has no way back from values to noise: start chains from its "
            "own draws, without `initial_params` or substituted values of the site"
        )
