"""What a prior is, how it was fitted and how accurate it is, as text."""

from __future__ import annotations

from typing import Any

import torch

from pyro_stad.data import Angle, Margins
from pyro_stad.density.base import AbstractFlowPrior
from pyro_stad.likelihood import PhaseDensity

__all__ = ["summarise"]

_LOOKED_AT = 100  # samples


def summarise(prior: AbstractFlowPrior) -> str:
    """Return a few lines on ``prior``."""
    lines = [repr(prior)]
    if prior.names:
        lines.append(f"  parameters: {', '.join(prior.names)}")
    if prior.bounds is not None:
        lines.append(f"  bounds: {dict(zip(prior.names, map(_bound, prior.bounds)))}")
    if prior.margins is not None:
        lines.append(f"  margin maps: {_mapped(prior.margins, prior.names)}")
    if prior.is_periodic:
        lines.append("  angles are unrolled: accuracies are those of the law on the line")
    lines.append("  not fitted here" if prior.report is None else prior.report.text())
    known = prior.calibration
    lines.append("  not calibrated" if known is None else known.text())
    if isinstance(prior.likelihood, PhaseDensity) and prior.reference is not None:
        lines.append(_momenta(prior.likelihood, prior.reference.rows))
    if prior.sampling is not None:
        lines.append(prior.sampling.text())
    lines.append(_learning(prior))
    return "\n".join(lines)


def _momenta(likelihood: PhaseDensity, rows: torch.Tensor) -> str:
    """Return what the number of momenta is worth at samples."""
    if likelihood.momenta < 2:
        return "  one momentum: a bound, of which the gap is unknown"
    with torch.no_grad():
        found = likelihood.gap(rows[:_LOOKED_AT])
    return (
        f"  {likelihood.momenta} momenta: {found.gap.mean().item():.2g} nat above the bound of "
        f"one, standard error {found.error.mean().item():.2g} nat, in the mean at samples"
    )


def _learning(prior: AbstractFlowPrior) -> str:
    """Return how large the error of learning is at the samples that were kept."""
    spread, reference = prior.spread, prior.reference
    if spread is None or reference is None:
        return "  error of learning: unknown, without members"
    with torch.no_grad():
        error = spread.error(spread(reference.rows)).square().mean().sqrt().item()
    return (
        f"  error of learning: {error:.2g} nat at samples (root mean square), of {spread.members} "
        f"members, their spread times {spread.factor.item():.2g}"
    )


def _mapped(margins: Margins, names: tuple[str, ...]) -> str:
    """Return which coordinates are mapped, and what their tails are where there are no walls."""
    return "; ".join(
        f"{names[column]}, tails {left} (left), {right} (right)"
        for column, (left, right) in zip(margins.columns, margins.tails)
    )


def _bound(bound: Any) -> Any:
    return f"periodic in [{bound.low:g}, {bound.high:g})" if isinstance(bound, Angle) else bound
