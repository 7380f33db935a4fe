r"""Learning the whitening that depends on a context, by maximum likelihood of a normal law.

The least-squares fit of the points by their context comes first, in closed form; a network then
learns what is not linear, and how the scale changes
(:mod:`pyro_stad.fields.networks.location_scale`). It is stopped by held-out rows, and left at zero
where it describes them no better than least squares do.

References:
    Nix and Weigend (1994), Estimating the Mean and Variance of the Target Probability Distribution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_stad.data import Batches
from pyro_stad.fields.networks.location_scale import LocationScale
from pyro_stad.learn.loop import History, train
from pyro_stad.learn.settings import TrainingSettings

__all__ = ["fit_location_scale", "normal_log_prob", "residuals"]

# Of the residual's scale: where the context tells everything there is no density.
_LEAST = 1e-9


def residuals(module: LocationScale, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return whitened points ``(N, D)`` of rows ``(N, D + C)``, and log-determinants ``(N,)``."""
    loc, tril = module(rows[:, module.features :])
    white = torch.linalg.solve_triangular(
        tril, (rows[:, : module.features] - loc)[..., None], upper=False
    )
    return white[..., 0], torch.diagonal(tril, dim1=-2, dim2=-1).log().sum(-1)


def normal_log_prob(module: LocationScale, rows: Tensor) -> Tensor:
    """Return the log-densities of points under the normal law given their context, ``(N,)``."""
    white, log_det = residuals(module, rows)
    normal = -0.5 * white.square().sum(-1) - 0.5 * module.features * math.log(2 * math.pi)
    return normal - log_det


def fit_location_scale(
    module: LocationScale,
    kept: Batches,
    held: Batches,
    settings: TrainingSettings,
    names: tuple[str, ...],
    **options: Any,
) -> History:
    """Train ``module`` in place.

    Arguments:
        module: untrained.
        kept: training rows, points with their standardised context to the right.
        held: validation rows.
        settings: how long and how hard.
        names: of the coordinates of a point, for the message.
        options: as in ``pyro_stad.learn.train``.

    Raises:
        ValueError: if a coordinate is a linear function of the context.
        TrainingError: if training never met a finite loss.
    """
    _least_squares(module, kept, names)
    fixed = held.values if len(held) <= 4096 else held.subset(4096, options["generator"])

    def loss(trained: LocationScale, source: torch.Generator) -> Tensor:
        return -normal_log_prob(trained, kept.draw(settings.batch_size, source)).mean()

    def validate(trained: LocationScale) -> float:
        return -normal_log_prob(trained, fixed).mean().item()

    before, start = validate(module), {k: v.clone() for k, v in module.state_dict().items()}
    history = train(module, loss, validate, settings, **options)
    if not history.best < before:
        module.load_state_dict(start)
    return history


def _least_squares(module: LocationScale, kept: Batches, names: tuple[str, ...]) -> None:
    """Fill in slope, intercept and factor."""
    rows = kept.values.double()
    share = kept.shares.to(rows)[:, None]
    points, context = rows[:, : module.features], rows[:, module.features :]
    design = torch.cat([context, torch.ones_like(context[:, :1])], 1)
    # As often as their weights say. Contexts may depend on each other: the shortest solution.
    root = share.sqrt()
    solution = (
        torch.linalg.lstsq((root * design).cpu(), (root * points).cpu(), driver="gelsd")
        .solution.to(rows)
        .mT
    )
    left = points - design @ solution.mT
    scale = (share * left.square()).sum(0).sqrt()
    whole = (share * (points - (share * points).sum(0)).square()).sum(0).sqrt()
    told = scale < _LEAST * whole
    if told.any():
        name = names[int(told.nonzero()[0])]
        raise ValueError(
            f"column {name} is a linear function of the context, so that it has no density given "
            "it. Drop it from the samples, and compute it in the model"
        )
    correlation = (left / scale).mT @ (share * (left / scale))
    jitter = 1e-9 * torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
    factor = scale[:, None] * torch.linalg.cholesky(correlation + jitter)
    with torch.no_grad():
        module.slope.copy_(solution[:, :-1])
        module.intercept.copy_(solution[:, -1])
        module.factor.copy_(factor)
