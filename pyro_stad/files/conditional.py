"""Files of conditional flows: as those of priors, with what makes a whitening of a context."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._config import decode, encode
from pyro_stad._files import write_tensors
from pyro_stad.calibrate import Calibration
from pyro_stad.calibrate.contexts import ContextAccuracy
from pyro_stad.data import Bounds, Layout
from pyro_stad.data.contexts import Contexts
from pyro_stad.fields import AbstractField
from pyro_stad.fields.networks.location_scale import LocationScale
from pyro_stad.files.foreign import restore
from pyro_stad.files.layouts import describe_bounds, describe_layout, read_bounds, read_layout
from pyro_stad.files.parts import check_finite, check_tensors
from pyro_stad.files.prior import build_likelihood, describe_likelihood
from pyro_stad.likelihood import AbstractLikelihood
from pyro_stad.registry import Source, build
from pyro_stad.report.fit import FitReport
from pyro_stad.transport import Flow

__all__ = [
    "CONDITIONAL",
    "StoredConditional",
    "build_conditional",
    "describe_conditional",
    "write_conditional",
]

CONDITIONAL = "pyro_stad conditional flow"
_VERSION = 1
_CONTEXT, _LOCATION = "context.", "location."
_KNOWN = ("loc", "scale", "seen", "distances")


class StoredConditional(NamedTuple):
    """What a conditional flow consists of.

    Attributes:
        likelihood: the density in whitened coordinates, which needs a context.
        transport: what draws are made by.
        location: the whitening, given a context.
        contexts: names, bounds and standardisation of contexts, and which were seen.
        layout: names of the coordinates of a point.
        bounds: of them, or None.
        report: how it was fitted, or None.
        calibration: how its density was chosen, and how accurate it is; or None.
        accuracy: how accurate it is from context to context, or None.
    """

    likelihood: AbstractLikelihood
    transport: Flow
    location: LocationScale
    contexts: Contexts
    layout: Layout
    bounds: Bounds | None
    report: FitReport | None
    calibration: Calibration | None
    accuracy: ContextAccuracy | None


def write_conditional(flow: StoredConditional, path: str | os.PathLike[str]) -> None:
    """Write ``flow`` to ``path``, atomically.

    Raises:
        TypeError: if it has parts of foreign types.
        ValueError: if its tensors are not finite.
        OSError: if the file can't be written; an older file at ``path`` stays as it was.
    """
    document, tensors = describe_conditional(flow)
    write_tensors(path, tensors, encode(document))


def describe_conditional(flow: StoredConditional) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description of a flow, and its tensors; ``build_conditional`` reads them."""
    document, tensors = describe_likelihood(flow.likelihood, flow.transport, flow.contexts.loc)
    contexts = flow.contexts
    document |= {
        "format": CONDITIONAL,
        "version": _VERSION,
        **describe_layout(flow.layout),
        "bounds": describe_bounds(flow.bounds),
        "context": {
            **describe_layout(contexts.layout),
            "bounds": describe_bounds(contexts.bounds),
        },
        "location": flow.location.settings(),
        "report": flow.report and flow.report.to_dict(),
        "calibration": flow.calibration and flow.calibration.to_dict(),
        "accuracy": flow.accuracy,
    }
    tensors |= {_CONTEXT + name: getattr(contexts, name) for name in _KNOWN}
    tensors |= {_LOCATION + name: part for name, part in flow.location.state_dict().items()}
    check_finite(tensors)
    return document, tensors


def build_conditional(
    tensors: dict[str, Tensor], document: dict[str, Any], field: AbstractField | None = None
) -> StoredConditional:
    """Return the flow that a file describes.

    Raises:
        LookupError, TypeError, ValueError: for a description that is none.
    """
    if document["version"] != _VERSION:
        raise ValueError(f"it has format version {document['version']}, expected {_VERSION}")
    layout, stored = read_layout(document), document["context"]
    bounds = read_bounds(document["bounds"], len(layout.names))
    known = {name: tensors.pop(_CONTEXT + name) for name in _KNOWN}
    dtype = known["loc"].dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"context.loc is {dtype}, expected torch.float32 or torch.float64")
    names = read_layout(stored)
    size, width = len(layout.names), len(names.names)
    shapes = {
        "loc": torch.Size([width]),
        "scale": torch.Size([width]),
        "seen": torch.Size([len(known["seen"]), width]),
        "distances": torch.Size([len(known["distances"])]),
    }
    check_tensors(known, shapes, dtype)
    contexts = Contexts(names, read_bounds(stored["bounds"], width), **known)
    location = _build_location(tensors, document["location"], size, width, dtype)
    source = Source(tensors, given={"features": size, "foreign": field})
    likelihood = build_likelihood(document, source, dtype)
    if likelihood.field.context_shape != (width,):
        raise ValueError(f"the field takes a context of {tuple(likelihood.field.context_shape)}")
    restore(likelihood, tensors, dtype)
    source = Source({}, given={"field": likelihood.field})
    return StoredConditional(
        likelihood,
        build(document["transport"], "transport", source),
        location,
        contexts,
        layout,
        bounds,
        decode(FitReport | None, document["report"], "report"),
        decode(Calibration | None, document["calibration"], "calibration"),
        decode(ContextAccuracy | None, document["accuracy"], "accuracy"),
    )


def _build_location(
    tensors: dict[str, Tensor], settings: dict[str, Any], size: int, width: int, dtype: torch.dtype
) -> LocationScale:
    names = [name for name in tensors if name.startswith(_LOCATION)]
    parts = {name.removeprefix(_LOCATION): tensors.pop(name) for name in names}
    # Before it is built: a network of a size that somebody made up would fill the memory.
    if parts["network.enter.weight"].shape != (settings["width"], width):
        raise ValueError(f"a location of {settings} does not fit its tensors")
    location = LocationScale(size, width, settings["width"], torch.Generator()).to(dtype)
    check_tensors(parts, {k: v.shape for k, v in location.state_dict().items()}, dtype)
    location.load_state_dict(parts)
    return location
