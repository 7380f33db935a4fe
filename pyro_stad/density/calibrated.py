"""A prior calibrated anew, on samples that its fit has not seen."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_stad._checks import (
    check_choice,
    check_count,
    check_finite,
    check_positive,
    check_seed,
    check_value,
)
from pyro_stad._random import generator
from pyro_stad.calibrate import (
    REFERENCES,
    Calibration,
    calibrate,
    calibrate_few,
    choose_grid,
    default_tolerance,
)
from pyro_stad.data import Batches
from pyro_stad.density.base import AbstractFlowPrior
from pyro_stad.errors import AccuracyWarning
from pyro_stad.learn.clouds import cloud_for
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.transport import AbstractInvertible

__all__ = ["calibrated", "recalibrate"]

_Prior = TypeVar("_Prior", bound=AbstractFlowPrior)

_FEWEST = 20  # points for a calibration; the 95 percent bound needs as many


def calibrated(
    prior: _Prior,
    samples: Tensor,
    tolerance: float | None,
    reference: str,
    seed: int,
    products: int | None,
) -> _Prior:
    """Return ``prior`` with the cheapest density that is accurate enough on ``samples``.

    Raises:
        TypeError, ValueError: for samples that can't be used, or no positive tolerance.

    Warns:
        AccuracyWarning: for what the calibration says is wrong.
    """
    if tolerance is None:
        tolerance = default_tolerance(prior.like.numel())
    check_positive(tolerance, "tolerance", " of nats")
    check_choice(reference, "reference", REFERENCES)
    if products is not None:
        check_count(products, "products")
    points = check_value(samples, prior.like, argument="samples")
    points = points.reshape(-1, *prior.like.shape)
    check_finite(points, prior.names, argument="samples")
    distinct, outside = len(points.unique(dim=0)), int((~prior.support.check(points)).sum())
    if distinct < _FEWEST or outside:
        raise ValueError(
            f"`samples` must be at least {_FEWEST} distinct points inside the bounds; got "
            f"{len(points)} points, {distinct} of them distinct and {outside} outside"
        )
    seed = check_seed(seed)
    points = prior.unroll(points, generator(seed, "recalibration, unrolling", points.device))
    parts = prior.likelihood, prior.transport
    found = recalibrate(*parts, points, tolerance, reference, seed, products)
    new = prior.like_this(lambda part: part, *found)
    return new.expand(prior.batch_shape) if prior.batch_shape else new


def recalibrate(
    likelihood: AbstractLikelihood,
    transport: AbstractInvertible,
    rows: Tensor,
    tolerance: float,
    reference: str,
    seed: int,
    products: int | None = None,
) -> tuple[AbstractLikelihood, AbstractInvertible, Calibration]:
    """Return the way to the density and the grid for draws that serve on rows, and how well.

    Arguments:
        likelihood, transport: of the flow.
        rows: whitened points, with their context to the right if the flow needs one.
        tolerance, reference, seed, products: see ``FlowPrior.calibrate``.

    Raises:
        ValueError: if no way to the density is finite there.

    Warns:
        AccuracyWarning: for what the calibration says is wrong.
    """

    def stream(purpose: str) -> torch.Generator:
        return generator(seed, f"recalibration, {purpose}", rows.device)

    cloud = cloud_for(likelihood.field, Batches(rows), stream("cloud"))
    ways = stream("ways")
    if products is not None or len(likelihood.field.event_shape) > 1:
        chosen, calibration = calibrate_few(
            likelihood, rows, cloud, tolerance, ways, products=products
        )
    else:
        chosen, calibration = calibrate(
            likelihood, rows, cloud, tolerance, ways, reference=reference
        )
    if math.isnan(calibration.audit.sd):
        raise ValueError(
            "no way to the density is finite at the samples of the calibration; are they from "
            "the law that was fitted?"
        )
    on_grid: Any = transport.on_grid(chosen.solver)
    if on_grid is not None:
        transport, draws = choose_grid(on_grid, rows, stream("grid"))
        calibration = replace(calibration, draws=draws)
    for trouble in calibration.troubles:
        warnings.warn(trouble, AccuracyWarning, stacklevel=5)
    return chosen, transport, calibration
