"""A conditional flow calibrated anew, on pairs that its fit has not seen."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_positive, check_seed
from pyro_stad._random import generator
from pyro_stad.calibrate import REFERENCES, calibrate, choose_grid, default_tolerance
from pyro_stad.calibrate.contexts import accuracy_over
from pyro_stad.data import Batches, outer_transforms
from pyro_stad.errors import AccuracyWarning
from pyro_stad.files.conditional import StoredConditional
from pyro_stad.learn.clouds import cloud_for
from pyro_stad.learn.location_scale import residuals

__all__ = ["recalibrated"]

_FEWEST = 20  # pairs for a calibration; the 95 percent bound needs as many


def recalibrated(
    parts: StoredConditional,
    samples: Tensor,
    context: Tensor,
    tolerance: float | None,
    reference: str,
    seed: int,
) -> StoredConditional:
    """Return the flow with the cheapest density that is accurate enough on pairs.

    Arguments:
        parts: the flow.
        samples: points ``(N, D)``, inside their bounds.
        context: their contexts ``(N, C)``, checked.
        tolerance, reference, seed: see ``ConditionalFlow.calibrate``.

    Raises:
        ValueError: for too few pairs, or where no way to the density is finite.

    Warns:
        AccuracyWarning: for what the calibration says is wrong.
    """
    size, seed = samples.shape[1], check_seed(seed)
    tolerance = default_tolerance(size) if tolerance is None else tolerance
    check_positive(tolerance, "tolerance", " of nats")
    check_choice(reference, "reference", REFERENCES)
    rows = whitened_rows(parts, samples, context)
    distinct = len(rows.unique(dim=0))
    if distinct < _FEWEST:
        raise ValueError(
            f"`samples` must be at least {_FEWEST} distinct ones, with contexts; got {distinct}"
        )

    def stream(purpose: str) -> torch.Generator:
        return generator(seed, f"recalibration, {purpose}", rows.device)

    cloud = cloud_for(parts.likelihood.field, Batches(rows), stream("cloud"))
    chosen, calibration = calibrate(
        parts.likelihood, rows, cloud, tolerance, stream("ways"), reference=reference
    )
    if math.isnan(calibration.audit.sd):
        raise ValueError(
            "no way to the density is finite at the samples of the calibration; are they from the "
            "law that was fitted?"
        )
    transport, draws = choose_grid(parts.transport.on_grid(chosen.solver), rows, stream("grid"))
    for trouble in calibration.troubles:
        warnings.warn(trouble, AccuracyWarning, stacklevel=4)
    return parts._replace(
        likelihood=chosen, transport=transport, calibration=replace(calibration, draws=draws),
        accuracy=accuracy_over(chosen, rows, stream("contexts")),
    )  # fmt: skip


def whitened_rows(parts: StoredConditional, samples: Tensor, context: Tensor) -> Tensor:
    """Return points as the flow sees them, with their standardised context to the right."""
    line = samples
    for transform in reversed(outer_transforms(parts.bounds, samples[0])):
        line = transform.inv(line)
    given = parts.contexts.standardise(context)
    with torch.no_grad():
        white, _ = residuals(parts.location, torch.cat([line, given], 1))
    return torch.cat([white, given], 1)
