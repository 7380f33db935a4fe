r"""How accurate a conditional density is from context to context, and not only in the mean.

At contexts that the training has not seen, draws of the flow itself get an exact trace each. Of
each context, the root mean square of the error, with its own mass left in, is one number; the worst
tenth of the contexts is reported beside the middle one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._joined import log_prob_at, own_draws
from pyro_stad.calibrate.audit import exact_log_prob
from pyro_stad.likelihood.base import AbstractLikelihood

__all__ = ["ContextAccuracy", "accuracy_over"]

_CONTEXTS, _DRAWS = 100, 20


@dataclass(frozen=True)
class ContextAccuracy:
    """Accuracy of a conditional density over contexts, in nats.

    Attributes:
        contexts: number of contexts.
        draws: own draws of the flow, given each.
        median: of the contexts' root mean square errors.
        worst_decile: mean of the largest tenth of them.
        over_normal: mean log-density of held-out data above that of the normal law that the
            whitening alone is, with its standard error.
        over_normal_error: that error.
    """

    contexts: int
    draws: int
    median: float
    worst_decile: float
    over_normal: float
    over_normal_error: float

    def __post_init__(self) -> None:
        check_count(self.contexts, "contexts")
        check_count(self.draws, "draws")

    def text(self) -> str:
        """Return it as two lines of text."""
        return (
            f"  error from context to context ({self.contexts} of them, root mean square): median "
            f"{self.median:.2g}, worst tenth {self.worst_decile:.2g} nat\n"
            f"  above a normal law given the context: {self.over_normal:+.3g} +- "
            f"{self.over_normal_error:.1g} nat a held-out sample"
        )


def accuracy_over(
    likelihood: AbstractLikelihood, held_out: Tensor, generator: torch.Generator
) -> ContextAccuracy:
    """Measure ``likelihood`` over contexts.

    Arguments:
        likelihood: the density, which needs a context.
        held_out: rows ``(N, D + C)`` that the training has not seen.
        generator: source of randomness.
    """
    size = likelihood.field.features
    context = held_out[:_CONTEXTS, size:]
    noise = torch.randn(
        (_DRAWS * len(context), size), generator=generator, dtype=held_out.dtype,
        device=held_out.device,
    )  # fmt: skip
    draws = own_draws(likelihood.transport(), noise, context)
    with torch.no_grad():
        error = log_prob_at(likelihood, draws) - exact_log_prob(likelihood, draws)
        normal = torch.distributions.Normal(torch.zeros_like(noise[0]), 1.0)
        gain = log_prob_at(likelihood, held_out) - normal.log_prob(held_out[:, :size]).sum(-1)
    each = error.reshape(_DRAWS, len(context)).square().mean(0).sqrt().sort().values
    return ContextAccuracy(
        len(context),
        _DRAWS,
        each.median().item(),
        each[-max(1, len(each) // 10) :].mean().item(),
        gain.mean().item(),
        (gain.std() / len(gain) ** 0.5).item(),
    )
