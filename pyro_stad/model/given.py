"""The likelihood of a model at values of its only latent site, which a learned prior is of."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_stad.density import FlowPrior
from pyro_stad.model.sites import is_data
from pyro_stad.model.vectorised import AbstractSetter, VectorisedModel

__all__ = ["only_prior", "likelihood_of"]


class _FromValues(AbstractSetter):
    """Sets latent sites to values, flattened."""

    def value(self, name: str, fn: Any) -> Tensor:
        return self.take(fn.batch_shape + fn.event_shape)

    def split(self) -> list[_FromValues]:
        return [_FromValues(row[None]) for row in self.rows]


def only_prior(model: VectorisedModel) -> FlowPrior:
    """Return the learned prior of a model that has no other latent site.

    Raises:
        ValueError: if there are others, or its law is no learned prior of one event.
    """
    first, *others = model.latent
    law = first["fn"]
    if others or not isinstance(law, FlowPrior) or law.batch_shape.numel() != 1:
        names = [f"{site['name']!r} ~ {site['fn']!r:.60}" for site in model.latent]
        raise ValueError(
            "the model must have one latent site, whose law is a FlowPrior of one event; got "
            f"{', '.join(names)}. Use method='smc'"
        )
    return law


def likelihood_of(model: VectorisedModel, values: Tensor) -> Tensor:
    """Return the log-likelihood at values ``(N, *event_shape)`` of that site: ``(N,)``."""
    traces = model.trace(_FromValues(values.flatten(1)))
    parts = model.log_probs(traces, len(values), is_data).values()
    return sum(part.reshape(len(values), -1).sum(-1) for part in parts)  # type: ignore[return-value]
