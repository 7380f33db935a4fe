"""A cut in the file of a prior: its mass, and points by which its function is known again.

A function can't be written without pickle, so a file holds points on both sides of the cut, and
whoever loads it has to bring the function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad.files.parts import check_tensors

__all__ = ["Mass", "StoredRegion", "region_tensors", "take_region"]


@dataclass(frozen=True)
class Mass:
    """What a flow has inside a region.

    Attributes:
        value, error: the mass and its standard error.
        draws: the draws of the flow that it was counted from.
    """

    value: float
    error: float
    draws: int

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g} of {self.draws:,} draws"


class StoredRegion(NamedTuple):
    """What a file knows of a region: its mass, and points ``(N, D)`` with which are inside."""

    mass: Mass
    probes: Tensor
    inside: Tensor


def region_tensors(region: StoredRegion) -> dict[str, Tensor]:
    """Return the points of a region, and which of them are inside."""
    return {"probes": region.probes, "probes_inside": region.inside.to(region.probes.dtype)}


def take_region(tensors: dict[str, Tensor], document: dict[str, Any]) -> StoredRegion | None:
    """Return what a file knows of a region, if there is one, taken out of ``tensors``.

    Raises:
        LookupError, TypeError, ValueError: if that is no region.
    """
    config = document.get("region")
    if config is None:
        return None
    mass = Mass(float(config["value"]), float(config["error"]), int(config["draws"]))
    if not 0 < mass.value <= 1:
        raise ValueError(f"a region's mass must lie in (0, 1]; got {mass.value}")
    probes, inside = tensors.pop("probes"), tensors.pop("probes_inside")
    expected = {"probes": torch.Size([len(inside), len(document["names"])])}
    check_tensors({"probes": probes}, expected, tensors["loc"].dtype)
    return StoredRegion(mass, probes, inside > 0)
