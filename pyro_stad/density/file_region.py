"""A cut in the file of a prior: its mass, and points by which its function is known again.

A function can't be written without pickle, so a file holds points on both sides of the cut, and
whoever loads it has to bring the function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad.density.file_parts import check_tensors
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.truncated import Mass, TruncatedPrior, contains

__all__ = ["KnownRegion", "cut", "region_tensors", "take_region"]


class KnownRegion(NamedTuple):
    """What a file knows of a region."""

    mass: Mass
    probes: Tensor
    inside: Tensor


def region_tensors(prior: TruncatedPrior) -> dict[str, Tensor]:
    """Return the points of a cut prior, and which of them are inside."""
    inside = prior.contains(prior.probes).to(prior.probes.dtype)
    return {"probes": prior.probes, "probes_inside": inside}


def take_region(tensors: dict[str, Tensor], document: dict[str, Any]) -> KnownRegion | None:
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
    return KnownRegion(mass, probes, inside > 0)


def cut(prior: FlowPrior, region: Any, known: KnownRegion, path: Any) -> TruncatedPrior:
    """Cut a prior by the region that its file knows.

    Raises:
        ValueError: if the function is another one.
    """
    probes = known.probes.to(prior.transforms[1].loc)
    differs = contains(region, prior.layout, probes) != known.inside.to(probes.device)
    if differs.any():
        raise ValueError(
            f"`region` is not the one that {path} was cut by: they differ at {int(differs.sum())} "
            f"of {len(differs)} points that the file holds"
        )
    return TruncatedPrior(prior, region, known.mass, probes)
