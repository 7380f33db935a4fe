"""Calibration on a few points, where an exact trace is dear: images.

As in :mod:`pyro_stad.calibrate.choose`, with what can be had for a few dozen traces, exact ones or
sampled ones (:mod:`pyro_stad.calibrate.standard`). The ways are curves that follow the flow, and
the flow: in hundreds of dimensions a point of the data is no point of the laws at middle times, and
the constant curve goes where no field was learned. Mass is divided out by draws, and measured again
by others. Nobody looks for bumps: that takes thousands of densities and dozens of traces more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_stad._joined import log_prob_at, own_draws
from pyro_stad.calibrate.audit import LARGEST_LOG, Audit, own_noise, stein_residuals
from pyro_stad.calibrate.choose import conformal_bound
from pyro_stad.calibrate.record import Calibration, Trial
from pyro_stad.calibrate.standard import Standard, reference
from pyro_stad.calibrate.suspects import disagreement
from pyro_stad.learn.clouds import AbstractCloud
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.curves import Coarse
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.likelihood.stein_path import SteinPath

__all__ = ["calibrate_few"]


def calibrate_few(
    likelihood: AbstractLikelihood,
    held_out: Tensor,
    cloud: AbstractCloud,
    tolerance: float,
    generator: torch.Generator,
    *,
    products: int | None,
) -> tuple[AbstractLikelihood, Calibration]:
    """Choose the way to the density of a flow, divide out its mass, bound its error, audit it.

    Arguments:
        likelihood: the flow, with its divergence, on a time grid that is fine enough.
        held_out: a few dozen points that the training has not seen, whitened, ``(B, ...)``.
        cloud: a law of points with scores, for the Stein residual.
        tolerance: largest standard deviation of the error, in nats.
        generator: source of randomness.
        products: Jacobian-vector products a call for a sampled trace, or None for exact ones.

    Returns:
        The likelihood, which shares the networks, and its calibration.
    """
    at_data, noise = reference(likelihood, held_out, products, generator)
    first, second = (_own(likelihood, held_out, products, generator) for _ in range(2))
    standard = Standard(held_out, at_data, *first, noise)
    with torch.no_grad():
        chosen, trials = _chosen(standard, _ways(likelihood), tolerance)
        error = standard.error(chosen)
        bound = conformal_bound(disagreement(chosen, held_out), error.abs())
        log_z, relative = Standard(held_out, at_data, *second, noise).mass(chosen)
        mass = math.exp(log_z) if not log_z > LARGEST_LOG else math.inf
        measured = Audit(
            points=len(held_out),
            bias=error.mean().item(),
            sd=standard.spread(error),
            worst=error.abs().max().item(),
            highest=error.max().item(),
            solver_error=_grid_error(chosen, held_out),
            normaliser=mass,
            normaliser_error=relative * mass,
            stein=stein_residuals(chosen, cloud, generator, len(held_out)),
            log_normaliser=log_z,
            noise=noise,
        )
    return chosen, Calibration(tolerance, "exact", tuple(trials), bound, measured)


def _own(
    likelihood: AbstractLikelihood,
    like: Tensor,
    products: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return as many draws of the flow as there are data, with their log-densities."""
    noise = own_noise(likelihood, like, generator, len(like))
    draws = own_draws(likelihood.transport(), noise, None)
    return draws, reference(likelihood, draws, products, generator)[0]


def _ways(likelihood: AbstractLikelihood) -> Iterator[AbstractLikelihood]:
    """Yield the ways to the density, from the cheapest on; the last is the flow itself."""
    flow = FlowODE.of(likelihood)
    calls = flow.sequential_calls()
    if likelihood.field.has_score:
        for steps in (2, 4):
            parts = flow.field, flow.divergence, flow.solver, Coarse(steps)
            way = SteinPath(*parts, 16, chunk_size=flow.chunk_size)
            if calls is None or way.sequential_calls() < calls:
                yield way
    yield flow


def _chosen(
    standard: Standard, ways: Iterator[AbstractLikelihood], tolerance: float
) -> tuple[AbstractLikelihood, list[Trial]]:
    """Return the first way that is accurate enough, or else the best, and what was found of all."""
    tried, trials = [], []
    for way in ways:
        way, trial = standard.measured(way)
        tried.append(way)
        trials.append(trial)
        if standard.at_most(trial.sd) <= tolerance:
            return way, trials
    # NaN is worse than anything.
    best = min(range(len(trials)), key=lambda i: (math.isnan(trials[i].sd), trials[i].sd))
    return tried[best], trials


def _grid_error(likelihood: AbstractLikelihood, x: Tensor) -> float:
    """Return by how much a grid twice as fine moves the log-density of the flow."""
    flow = FlowODE.of(likelihood)
    finer = flow.replace(solver=flow.solver.finer())
    return (log_prob_at(flow, x) - log_prob_at(finer, x)).std().item()
