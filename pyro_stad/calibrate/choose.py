r"""Calibration: the cheapest way to the density that is accurate enough, and what it is off by.

On held-out data, with :math:`e = \log\hat p - \log p_{exact}` against the exact trace on a time
grid known to be fine enough:

1. *Mass.* The flow's own draws have density :math:`p_{exact}`, which is normalised, so that
   :math:`Z = E[\exp e]` over them is the mass of :math:`\hat p`. It is divided out once it is known
   to differ from one: by more than two standard errors.
2. *Choice.* Ways to the density are tried from the cheapest on, by network calls that have to wait
   for each other, then by nodes. One is taken if the standard deviation of e is within the
   tolerance :math:`\tau`; or if it describes the data as well as the flow does, that is, if its log
   score, the mean of :math:`e - \log Z` over held-out data, is at least :math:`-\tau^2/2`, what an
   error with standard deviation :math:`\tau` costs, or as much lower as its own standard error is,
   but no lower than twice that. With ``reference="exact"`` only the first counts. A way that would
   serve is looked over, and refused, however good it is at the data, for a *bump* or a *collapse*
   (:mod:`pyro_stad.calibrate.exact_points`). If nothing serves, it is the way with the least
   standard deviation of those that are not refused.
3. *Bound.* Two ways to one density agree where the networks are consistent. Their difference d(x)
   scales a bound :math:`c\,(d(x) + d_0)` on the error at x, with :math:`d_0` the median of d, and c
   the conformal quantile of :math:`|e| / (d + d_0)` at the bound's level: whatever d is worth, the
   bound holds at that rate for data like the held-out ones.

Why the score. Where data are hard to learn, the flow is wrong about them by far more than
:math:`\tau`, and which of two curves through its imperfect field is right, the data know better.
For a mixture in 8 dimensions the exact trace was 0.50 nat off the truth (standard deviation;
Kullback-Leibler divergence 0.123 nat); the constant curve, 0.31 nat off the exact trace, was 0.50
nat off the truth as well, and its divergence 0.109 nat.

References:
    Jagwani, Thorp, Deger and Peiris (2026), StAD (arXiv 2605.16486); Papadopoulos, Gammerman and
    Vovk (2008), Normalized Nonconformity Measures for Regression Conformal Prediction.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_stad._joined import log_prob_at
from pyro_stad.calibrate.audit import audit
from pyro_stad.calibrate.exact_points import ExactPoints
from pyro_stad.calibrate.record import REFERENCES, Calibration, ErrorBound, Trial
from pyro_stad.calibrate.suspects import disagreement
from pyro_stad.errors import TrainingError, TrainingWarning
from pyro_stad.learn.clouds import AbstractCloud
from pyro_stad.likelihood.base import AbstractLikelihood
from pyro_stad.likelihood.curves import Coarse, Constant
from pyro_stad.likelihood.distilled import DistilledDensity
from pyro_stad.likelihood.flow_ode import FlowODE
from pyro_stad.likelihood.stein_path import SteinPath
from pyro_stad.ode import RK4, AbstractFixedGrid

__all__ = [
    "REFERENCES",
    "calibrate",
    "choose_steps",
    "conformal_bound",
]

_NODES = (8, 16, 32)
_LEVEL = 0.95


def calibrate(
    likelihood: AbstractLikelihood,
    held_out: Tensor,
    cloud: AbstractCloud,
    tolerance: float,
    generator: torch.Generator,
    *,
    others: Tensor | None = None,
    reference: str = "data",
    train: Callable[[], DistilledDensity] | None = None,
) -> tuple[AbstractLikelihood, Calibration]:
    """Choose the way to the density of a flow, divide out its mass, bound its error, audit it.

    Arguments:
        likelihood: the flow, with its divergence, on a time grid that is fine enough.
        held_out: data that the training has not seen, whitened, with shape ``(B, D)``.
        cloud: a law of points with scores, for the Stein residual.
        tolerance: largest standard deviation of the error, in nats.
        generator: source of randomness.
        others: all that the training has not seen, shape ``(N, D)``, if ``held_out`` is only a
            part: what is cheap is looked at there, and the most suspect points are tried.
        reference: ``"data"`` also takes what describes the data as well as the exact trace does;
            ``"exact"`` only what is close to the exact trace.
        train: distils the density, if ``likelihood`` is not itself a distilled one.

    Returns:
        The likelihood, which shares the networks, and its calibration.
    """
    points = ExactPoints.of(likelihood, held_out, others, generator)
    standard = points.standard
    with torch.no_grad():
        chosen, trials = _chosen(points, _ways(likelihood, train), tolerance, reference)
        bound = conformal_bound(disagreement(chosen, held_out), standard.error(chosen).abs())
    measured = audit(chosen, held_out, cloud, generator, exact=standard.at_data, others=others)
    return chosen, Calibration(tolerance, reference, tuple(trials), bound, measured)


def choose_steps(
    likelihood: AbstractLikelihood, held_out: Tensor, tolerance: float, candidates: tuple[int, ...]
) -> AbstractFixedGrid:
    """Return the coarsest Runge-Kutta grid whose log-density is converged to ``tolerance``.

    Converged means that doubling the steps moves the log-density of held-out points by a root
    mean square of at most ``tolerance`` nats; with none, the finest candidate is returned.

    Arguments:
        likelihood: the flow, for its field and divergence.
        held_out: whitened data with shape ``(B, D)``.
        tolerance: in nats.
        candidates: numbers of steps to try, increasing, each twice the one before.
    """
    with torch.no_grad():
        coarse = None
        for steps in candidates:
            fine = log_prob_at(FlowODE.of(likelihood, solver=RK4(steps)), held_out)
            if coarse is not None and (fine - coarse).square().mean().sqrt() <= tolerance:
                return RK4(steps // 2)
            coarse = fine
    return RK4(candidates[-1])


def _chosen(
    points: ExactPoints, ways: Iterator[AbstractLikelihood], tolerance: float, reference: str
) -> tuple[AbstractLikelihood, list[Trial]]:
    """Return the first way that serves, or else the best, and what was found of all tried."""
    tried: list[AbstractLikelihood] = []
    trials: list[Trial] = []
    for way in ways:
        way, trial = points.standard.measured(way)
        tried.append(way)
        trials.append(trial)
        # A look for bumps costs more exact traces than all else: not for what does not serve.
        if trials[-1].serves(tolerance, reference):
            trials[-1] = points.looked_over(way, trials[-1])
            if not trials[-1].is_refused:
                return way, trials
    # NaN is worse than anything. The flow itself is the last one, and the refuge.
    by_error = sorted(range(len(trials)), key=lambda i: (math.isnan(trials[i].sd), trials[i].sd))
    for i in by_error:
        if trials[i].bump is None and not math.isnan(trials[i].sd):
            trials[i] = points.looked_over(tried[i], trials[i])
        if not (trials[i].is_refused or math.isnan(trials[i].sd)):
            return tried[i], trials
    lost = math.isnan(trials[by_error[0]].sd)
    return tried[-1 if lost else by_error[0]], trials


def _ways(
    likelihood: AbstractLikelihood, train: Callable[[], DistilledDensity] | None
) -> Iterator[AbstractLikelihood]:
    """Yield the ways to the density, from the cheapest on; the last is the flow itself."""
    parts = likelihood.field, likelihood.divergence, likelihood.solver
    kept: dict[str, Any] = {"chunk_size": likelihood.chunk_size}
    if not likelihood.integrates:
        yield likelihood.replace(log_mass=0.0)
    elif train is not None:
        try:
            with torch.enable_grad():
                distilled = train()
        except TrainingError as error:
            # One way less is no reason to lose the fit.
            warnings.warn(f"{error}. It is left out", TrainingWarning, stacklevel=4)
        else:
            yield distilled
    if likelihood.field.has_score:
        for nodes in _NODES:
            yield SteinPath(*parts, Constant(), nodes, **kept).freeze()
        known = getattr(likelihood, "consistent", None)
        if known is not None:
            # Of files alone: such heads were trained before there was a distilled density.
            yield SteinPath(*parts, Constant(), 16, consistent=known, **kept).freeze()
        flow_calls = likelihood.solver.sequential_calls()
        for steps in (2, 4, 8):
            way = SteinPath(*parts, Coarse(steps), nodes=max(16, 2 * steps), **kept)
            if flow_calls is None or way.sequential_calls() < flow_calls:
                yield way
    yield FlowODE(*parts, **kept)


def conformal_bound(difference: Tensor, error: Tensor) -> ErrorBound:
    """Return the bound of errors where two ways are ``difference`` apart; both ``(N,)``."""
    floor = max(difference.median().item(), torch.finfo(error.dtype).tiny)
    if not bool(difference.any()):
        floor = 1.0
    ratio = (error / (difference + floor)).sort().values
    # The conformal quantile: the k-th smallest of n, k the integer part of (n + 1) level, upwards.
    rank = min(math.ceil((len(ratio) + 1) * _LEVEL), len(ratio))
    return ErrorBound(_LEVEL, ratio[rank - 1].item(), floor)
