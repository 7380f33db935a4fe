"""A conditional flow calibrated anew, on pairs that its fit has not seen."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from pyro_stad._checks import check_choice, check_positive, check_seed
from pyro_stad._random import generator
from pyro_stad.calibrate import REFERENCES, default_tolerance
from pyro_stad.calibrate.contexts import accuracy_over
from pyro_stad.data import to_line
from pyro_stad.density.calibrated import recalibrate
from pyro_stad.files.conditional import StoredConditional
from pyro_stad.learn.location_scale import residuals
from pyro_stad.transport import Flow

__all__ = ["calibrated_flow"]

_FEWEST = 20  # pairs for a calibration; the 95 percent bound needs as many


def calibrated_flow(
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
    chosen, transport, calibration = recalibrate(
        parts.likelihood, parts.transport, rows, tolerance, reference, seed
    )
    source = generator(seed, "recalibration, contexts", rows.device)
    return parts._replace(
        likelihood=chosen, transport=cast(Flow, transport), calibration=calibration,
        accuracy=accuracy_over(chosen, rows, source),
    )  # fmt: skip


def whitened_rows(parts: StoredConditional, samples: Tensor, context: Tensor) -> Tensor:
    """Return points as the flow sees them, with their standardised context to the right."""
    given = parts.contexts.standardise(context)
    with torch.no_grad():
        line = to_line(samples, parts.bounds)
        white, _ = residuals(parts.location, torch.cat([line, given], 1))
    return torch.cat([white, given], 1)
