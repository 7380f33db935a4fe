r"""Maximum likelihood: how a free-form field is trained.

The log-density of a batch by the flow, with one fresh Hutchinson probe per point for the
divergence, plus a small penalty on the kinetic energy :math:`\int \lVert v\rVert^2 dt`, which keeps
trajectories straight and hence a coarse grid accurate.

References:
    Grathwohl et al. (2019), FFJORD: Free-form Continuous Dynamics for Scalable Reversible
    Generative Models; Finlay et al. (2020), How to Train Your Neural ODE: the World of Jacobian
    and Kinetic Regularization.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_stad._random import signs
from pyro_stad.data import Batches
from pyro_stad.fields import FreeFormField
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.settings import TrainingSettings
from pyro_stad.ode import RK4

__all__ = ["train_free_form"]

_KINETIC_PENALTY = 0.01
_SOLVER = RK4(steps=4)


def train_free_form(
    field: FreeFormField,
    kept: Batches,
    held: Batches,
    settings: TrainingSettings,
    **options: Any,
) -> History:
    """Train ``field`` in place.

    Arguments:
        field: the field, on whitened data.
        kept: training data.
        held: validation data; validated with fixed points and probes.
        settings: how long and how hard. A step costs a backpropagated ODE solve, tens of
            times a step of matching.
        options: passed on to ``pyro_stad.learn.train``.
    """
    generator = options["generator"]
    fixed = held.draw(max(settings.batch_size, 512), generator)
    fixed_probes = signs(fixed.shape, generator, fixed)

    def loss(module: FreeFormField, source: torch.Generator) -> Tensor:
        x = kept.draw(settings.batch_size, source)
        return _penalised(module, x, signs(x.shape, source, x))

    def validate(module: FreeFormField) -> float:
        return _penalised(module, fixed, fixed_probes).item()

    return train(field, loss, validate, settings, **options)


def _penalised(field: FreeFormField, x: Tensor, probes: Tensor) -> Tensor:
    """Return the negative log-likelihood per coordinate (less a constant) plus the penalty."""
    features = x.shape[-1]

    def augmented(t: Tensor, state: Tensor) -> Tensor:
        velocity, products = field.jacobian_products(t, state[:, :features], probes[None])
        divergence = (probes * products[0]).sum(-1)
        energy = velocity.square().sum(-1)
        return torch.cat([velocity, divergence[:, None], energy[:, None]], dim=-1)

    start = torch.cat([x, x.new_zeros(len(x), 2)], dim=-1)
    end = _SOLVER.integrate(augmented, start, FreeFormField.t_min, FreeFormField.t_max)
    nats = 0.5 * end[:, :features].square().sum(-1) - end[:, features]
    return (nats + _KINETIC_PENALTY * end[:, -1]).mean() / features
