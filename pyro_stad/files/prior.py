r"""Files of priors: safetensors, a JSON description, a checksum; no pickle anywhere.

The description names every part by its registry and holds its settings, so that loading builds the
same objects by their constructors and then fills in tensors whose names, shapes and dtypes must
match exactly. A checksum says that a file is whole, not that it is honest: constructors refuse what
is out of range, and the sizes of networks are held against the tensors before anything is built.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._config import decode, encode
from pyro_stad._files import write_tensors
from pyro_stad.calibrate import Calibration, Sampling
from pyro_stad.data import Bounds, Layout, Margins
from pyro_stad.data.reference import Reference
from pyro_stad.errors import CheckpointError
from pyro_stad.fields import AbstractField
from pyro_stad.files.foreign import own_tensors, restore
from pyro_stad.files.layouts import describe_bounds, describe_layout, read_bounds, read_layout
from pyro_stad.files.parts import (
    check_finite,
    check_tensors,
    describe_parts,
    part_tensors,
    take_margins,
    take_reference,
    take_spread,
)
from pyro_stad.files.region import StoredRegion, region_tensors, take_region
from pyro_stad.learn.spread import Spread
from pyro_stad.likelihood import (
    AbstractLikelihood,
)
from pyro_stad.registry import Source, build, describe
from pyro_stad.report.fit import FitReport
from pyro_stad.transport import AbstractTransport

__all__ = [
    "MISTAKES",
    "StoredPrior",
    "build_likelihood",
    "build_prior",
    "describe_likelihood",
    "describe_prior",
    "read",
    "write",
]

_FORMAT = "pyro_stad prior"
_VERSION = 1
# What constructors raise for a description that is none.
MISTAKES = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip


class StoredPrior(NamedTuple):
    """What a prior consists of: the arguments of ``FlowPrior``."""

    likelihood: AbstractLikelihood
    loc: Tensor
    scale_tril: Tensor
    layout: Layout | None
    bounds: Bounds | None
    report: FitReport | None
    calibration: Calibration | None
    transport: AbstractTransport
    margins: Margins | None
    reference: Reference | None
    spread: Spread | None
    sampling: Sampling | None = None


def write(
    prior: StoredPrior, path: str | os.PathLike[str], region: StoredRegion | None = None
) -> None:
    """Write ``prior`` to ``path``, atomically: an older file stays until the new one is whole.

    A calibration that is not finite is kept as it is.

    Arguments:
        prior: what it consists of.
        path: the file.
        region: what is to be known of the region that it is cut to, if it is.

    Raises:
        TypeError: if the prior has parts of foreign types.
        ValueError: if its tensors are not finite, so that no file of it could be read.
        OSError: if the file can't be written; an older file at ``path`` stays as it was.
    """
    document, tensors = describe_prior(prior)
    if region is not None:
        document["region"] = asdict(region.mass)
        tensors |= region_tensors(region)
    write_tensors(path, tensors, encode(document))


def _check_transport(transport: AbstractTransport, field: AbstractField) -> None:
    """Refuse a transport of which the file would not hold all."""
    others = [name for name in transport.state_dict() if not name.startswith("field.")]
    if others or getattr(transport, "field", field) is not field:
        raise TypeError(
            f"{transport!r} can't be stored: files hold transports of the likelihood's own field, "
            "without tensors besides. Use likelihood.transport()"
        )


def describe_likelihood(
    likelihood: AbstractLikelihood, transport: AbstractTransport, like: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says of a density and its transport, and the tensors of both.

    ``like`` is a tensor of the dtype and device of data.
    """
    _check_transport(transport, likelihood.field)
    check_finite({"log_mass": torch.tensor(likelihood.log_mass, device="cpu")})
    document = {
        "field": describe(likelihood.field, "field"),
        "divergence": describe(likelihood.divergence, "divergence"),
        "likelihood": describe(likelihood, "likelihood"),
        "solver": describe(likelihood.solver, "solver"),
        "transport": describe(transport, "transport"),
        "chunk_size": likelihood.chunk_size,
        "log_mass": likelihood.log_mass,
    }
    return document, own_tensors(likelihood, like)


def describe_prior(prior: StoredPrior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a file says of a prior, and its tensors."""
    document, tensors = describe_likelihood(prior.likelihood, prior.transport, prior.loc)
    document |= {
        "format": _FORMAT,
        "version": _VERSION,
        **describe_layout(prior.layout),
        "bounds": describe_bounds(prior.bounds),
        **describe_parts(prior.margins, prior.reference, prior.spread),
        "report": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
        "sampling": prior.sampling and prior.sampling.to_dict(),
    }
    tensors |= {"loc": prior.loc, "scale_tril": prior.scale_tril}
    tensors |= part_tensors(prior.margins, prior.reference, prior.spread)
    check_finite(tensors)
    return document, tensors


def read(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    document: dict[str, Any],
    field: AbstractField | None = None,
) -> tuple[StoredPrior, StoredRegion | None]:
    """Build what ``write`` wrote: a prior, and what is known of the region that it is cut to.

    Arguments:
        path, tensors, document: the file.
        field: the network of somebody else, if the prior has one.

    Raises:
        CheckpointError: if the file is of another format or version, or does not hold exactly the
            tensors that its description asks for, all finite.
    """
    if document.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a prior of pyro_stad")
    if document.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has format version {document.get('version')}; this pyro_stad reads "
            f"{_VERSION}. Install the version that wrote it, or fit again"
        )
    try:
        region = take_region(tensors, document)
        return build_prior(tensors, document, field), region
    except MISTAKES as error:
        raise CheckpointError(f"{path} does not describe a prior: {error}") from error


def build_prior(
    tensors: dict[str, Tensor], document: dict[str, Any], field: AbstractField | None = None
) -> StoredPrior:
    """Return the prior that ``describe_prior`` has described.

    Raises:
        LookupError, TypeError, ValueError: if it is none.
    """
    layout = None if document["names"] is None else read_layout(document)
    shape, dtype = tensors["loc"].shape, tensors["loc"].dtype
    size = shape.numel() if layout is None else len(layout.names)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"loc is {dtype}, expected torch.float32 or torch.float64")
    bounds = read_bounds(document["bounds"], size)
    margins = take_margins(document, tensors, size, dtype)
    reference = take_reference(document, tensors, size, dtype)
    spread = take_spread(document, tensors, size, dtype)
    source = Source(tensors, given={"features": size, "foreign": field})
    likelihood = build_likelihood(document, source, dtype)
    scale = tensors["scale_tril"].shape
    if layout is not None:
        # Scales alone where a factor would be too large.
        shape = torch.Size([size])
        scale = scale if len(scale) < 2 else torch.Size([size, size])
    affine = {name: tensors.pop(name) for name in ("loc", "scale_tril")}
    check_tensors(affine, {"loc": shape, "scale_tril": scale}, dtype)
    restore(likelihood, tensors, dtype)
    report = decode(FitReport | None, document["report"], "report")
    calibration = decode(Calibration | None, document["calibration"], "calibration")
    # Of before draws had a grid of their own, there is none.
    config, parts = document.get("transport"), Source({}, given={"field": likelihood.field})
    transport = likelihood.transport() if config is None else build(config, "transport", parts)
    # Of before a prior could have a sampler, there is none.
    described = document.get("sampling")
    sampling = None if described is None else Sampling.from_dict(described)
    return StoredPrior(
        likelihood, affine["loc"], affine["scale_tril"], layout, bounds, report, calibration,
        transport, margins, reference, spread, sampling,
    )  # fmt: skip


def build_likelihood(
    document: dict[str, Any], source: Source, dtype: torch.dtype
) -> AbstractLikelihood:
    """Return the likelihood without its numbers, in its final precision."""
    # At once: a likelihood makes its nodes in the precision of its field.
    field = build(document["field"], "field", source.under("field")).to(dtype)
    source = source.with_parts(
        field=field,
        solver=build(document["solver"], "solver"),
        chunk_size=document["chunk_size"],
        log_mass=decode(float, document["log_mass"], "log_mass"),
    )
    divergence = build(document["divergence"], "divergence", source.under("divergence"))
    source = source.with_parts(divergence=divergence)
    return build(document["likelihood"], "likelihood", source).to(dtype)
