"""How a prior draws: by the flow of its ODE, or by a sampler that it was given.

A sampler serves draws alone. Noise forms of a model, ``TransformReparam`` and ``FlowReparam``, and
``rsample_and_log_prob``, are those of the flow, which is a map; and so is the density.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_count, check_generator, check_seed
from pyro_stad._random import generator as seeded
from pyro_stad.calibrate import Sampling, choose_sampler_of
from pyro_stad.density.base import AbstractFlowPrior
from pyro_stad.drawing import SAMPLERS, AbstractSampler, candidates

__all__ = ["Drawn", "choose_sampler"]


class Drawn(AbstractFlowPrior):
    """The part of a prior that draws."""

    sampling: Sampling | None = None

    @property
    def sampler(self) -> AbstractSampler | None:
        """What draws; None for the flow of the ODE, on the grid that was chosen for draws."""
        return None if self.sampling is None else self.sampling.sampler

    def with_sampler(self, sampler: AbstractSampler | str | None) -> Self:
        """Return a prior that draws by a sampler; None for the flow of its ODE.

        Arguments:
            sampler: from ``pyro_stad.drawing``, or its name in ``SAMPLERS`` for 50 steps.
        """
        return self.with_sampling(None if sampler is None else Sampling(_known(sampler)))

    def with_sampling(self, sampling: Sampling | None) -> Self:
        """Return a prior that draws as was chosen."""
        new = self.like_this(
            lambda part: part, self.likelihood, self.transport, self.calibration, sampling=sampling
        )
        return new.expand(self.batch_shape) if self.batch_shape else new

    def rsample(
        self,
        sample_shape: Any = (),
        *,
        sampler: AbstractSampler | str | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return draws of shape ``sample_shape + batch_shape + event_shape``, with gradients.

        Arguments:
            sample_shape: as in Pyro.
            sampler: what draws, instead of the prior's own.
            generator: source of all noise; None for torch's global one, as Pyro draws.
            progress: whether to show a bar.
        """
        check_generator(generator, self.like.device)
        chosen = self.sampler if sampler is None else _known(sampler)
        z = self._noise(torch.Size(sample_shape), generator)
        if chosen is None:
            x = self.transforms[0](z)
        else:
            x = self.drawn_white(chosen, z, generator, progress=progress)
        for transform in self.transforms[1:]:
            x = transform(x)
        return x

    def _noise(self, sample_shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return self.base_dist.rsample(sample_shape)
        like = self.base_dist.mean
        shape = sample_shape + like.shape
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sample(self, sample_shape: Any = (), **options: Any) -> Tensor:
        """Return draws without gradients; see ``rsample``."""
        with torch.no_grad():
            return self.rsample(sample_shape, **options)

    def drawn_white(
        self,
        sampler: AbstractSampler,
        z: Tensor,
        generator: torch.Generator | None,
        *,
        progress: bool,
    ) -> Tensor:
        """Return what a sampler makes of noise ``(*batch, *event_shape)``, whitened."""
        rows = z.reshape(-1, *self.like.shape)
        field = self.likelihood.field
        return sampler.draw(field, rows, generator, progress=progress).reshape(z.shape)


def _known(sampler: AbstractSampler | str) -> AbstractSampler:
    if isinstance(sampler, str):
        check_choice(sampler, "sampler", SAMPLERS)
        return SAMPLERS[sampler]()
    if not isinstance(sampler, AbstractSampler):
        raise TypeError(
            "`sampler` must be a sampler of pyro_stad.drawing, such as DDIM(20), or a name in "
            f"{sorted(SAMPLERS)}; got {type(sampler).__name__}"
        )
    return sampler


def choose_sampler(prior: Any, budget: int = 20, *, seed: int = 0, progress: bool = True) -> Any:
    """Return the prior with the sampler that draws truest for a number of network calls.

    Every sampler is tried, on every grid, against draws of a long solve; see
    :mod:`pyro_stad.calibrate.samplers`. What was found is in ``sampling`` of the result, in its
    ``summary()`` and in its file.

    Arguments:
        prior: a prior.
        budget: network calls, one after the other, of a draw.
        seed: of everything random.
        progress: whether to show a bar.

    Raises:
        TypeError: if ``prior`` is no prior of this package, or is given a context.
        ValueError: if ``budget`` is no number of calls.
    """
    if not isinstance(prior, Drawn) or prior.likelihood.context is not None:
        raise TypeError(f"`prior` must be a FlowPrior without a context; got {prior!r:.80}")
    check_count(budget, "budget")
    field = prior.likelihood.field
    tried = list(candidates(budget, needs_score=field.has_score))
    source = seeded(check_seed(seed), "samplers", prior.like.device)
    chosen = choose_sampler_of(field, prior.like[None], tried, source, progress=progress)
    return prior.with_sampling(chosen)
