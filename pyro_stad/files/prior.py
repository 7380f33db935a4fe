r"""Files of priors: safetensors, a JSON description, a checksum; no pickle anywhere.

The description names every part by its registry and holds its settings, so that loading builds the
same objects by their constructors and then fills in tensors whose names, shapes and dtypes must
match exactly. A checksum says that a file is whole, not that it is honest: constructors refuse what
is out of range, and the sizes of networks are held against the tensors before anything is built.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_stad._checks import check_count
from pyro_stad._config import decode, encode
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.calibrate import Calibration
from pyro_stad.data import Angle, Bounds, Layout, Margins, box
from pyro_stad.data.reference import Reference
from pyro_stad.errors import CheckpointError
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

__all__ = ["MISTAKES", "StoredPrior", "read", "write"]

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
    document, tensors = _describe_prior(prior)
    if region is not None:
        document["region"] = asdict(region.mass)
        tensors |= region_tensors(region)
    write_tensors(path, tensors, encode(document))


def _check_transport(prior: StoredPrior) -> None:
    """Refuse a transport of which the file would not hold all."""
    transport, field = prior.transport, prior.likelihood.field
    others = [name for name in transport.state_dict() if not name.startswith("field.")]
    if others or getattr(transport, "field", field) is not field:
        raise TypeError(
            f"{transport!r} can't be stored: files hold transports of the likelihood's own field, "
            "without tensors besides. Use likelihood.transport()"
        )


def _describe_prior(prior: StoredPrior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _check_transport(prior)
    likelihood = prior.likelihood
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "field": describe(likelihood.field, "field"),
        "divergence": describe(likelihood.divergence, "divergence"),
        "likelihood": describe(likelihood, "likelihood"),
        "solver": describe(likelihood.solver, "solver"),
        "transport": describe(prior.transport, "transport"),
        "chunk_size": likelihood.chunk_size,
        "log_mass": likelihood.log_mass,
        "names": prior.layout and prior.layout.names,
        "variables": prior.layout and prior.layout.variables,
        "bounds": prior.bounds and [_describe_bound(bound) for bound in prior.bounds],
        **describe_parts(prior.margins, prior.reference, prior.spread),
        "report": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }
    tensors = {**likelihood.state_dict(), "loc": prior.loc, "scale_tril": prior.scale_tril}
    tensors |= part_tensors(prior.margins, prior.reference, prior.spread)
    check_finite({**tensors, "log_mass": torch.tensor(likelihood.log_mass, device="cpu")})
    return document, tensors


def read(path: str | os.PathLike[str]) -> tuple[StoredPrior, StoredRegion | None]:
    """Read what ``write`` wrote: a prior, and what is known of the region that it is cut to.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, truncated, of another format or version, or does
            not hold exactly the tensors that its description asks for, all finite.
    """
    tensors, document = read_tensors(path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a prior of pyro_stad")
    if document.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has format version {document.get('version')}; this pyro_stad reads "
            f"{_VERSION}. Install the version that wrote it, or fit again"
        )
    try:
        region = take_region(tensors, document)
        return _build_prior(tensors, document), region
    except MISTAKES as error:
        raise CheckpointError(f"{path} does not describe a prior: {error}") from error


def _build_prior(tensors: dict[str, Tensor], document: dict[str, Any]) -> StoredPrior:
    layout = None if document["names"] is None else _read_layout(document)
    shape, dtype = tensors["loc"].shape, tensors["loc"].dtype
    size = shape.numel() if layout is None else len(layout.names)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"loc is {dtype}, expected torch.float32 or torch.float64")
    bounds = _read_bounds(document["bounds"], size)
    margins = take_margins(document, tensors, size, dtype)
    reference = take_reference(document, tensors, size, dtype)
    spread = take_spread(document, tensors, size, dtype)
    likelihood = _build_likelihood(document, Source(tensors, given={"features": size}), dtype)
    expected = {name: tensor.shape for name, tensor in likelihood.state_dict().items()}
    scale = tensors["scale_tril"].shape
    if layout is not None:
        # Scales alone where a factor would be too large.
        shape = torch.Size([size])
        scale = scale if len(scale) < 2 else torch.Size([size, size])
    expected |= {"loc": shape, "scale_tril": scale}
    check_tensors(tensors, expected, dtype)
    loc, scale_tril = tensors.pop("loc"), tensors.pop("scale_tril")
    likelihood.load_state_dict(tensors)
    report = decode(FitReport | None, document["report"], "report")
    calibration = decode(Calibration | None, document["calibration"], "calibration")
    # Of before draws had a grid of their own, there is none.
    config, parts = document.get("transport"), Source({}, given={"field": likelihood.field})
    transport = likelihood.transport() if config is None else build(config, "transport", parts)
    return StoredPrior(
        likelihood, loc, scale_tril, layout, bounds, report, calibration, transport, margins,
        reference, spread,
    )  # fmt: skip


def _build_likelihood(
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


def _read_layout(document: dict[str, Any]) -> Layout:
    """Return the names and variables, which have to agree."""
    names = decode(tuple[str, ...], document["names"], "names")
    variables = []
    for variable in decode(tuple[list, ...], document["variables"], "variables"):
        name, shape = variable
        sizes = decode(tuple[int, ...], shape, "variables")
        for size in sizes:
            check_count(size, "variables", least=0, most=len(names))
        variables.append((decode(str, name, "variables"), sizes))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`names` must be different names, one at the least; got {list(names)}")
    if sum(math.prod(sizes) for _, sizes in variables) != len(names):
        raise ValueError(f"`variables` must make up {len(names)} coordinates; got {variables}")
    return Layout(names, tuple(variables))


def _read_bounds(stored: Any, size: int) -> Bounds | None:
    """Return one pair per coordinate."""
    if stored is None:
        return None
    # Numbers are written as words here, in files of every age: JSON has no infinity.
    pairs = tuple(_build_bound(bound) for bound in stored)
    if len(pairs) != size or not all(low < high for low, high in box(pairs)):
        raise ValueError(f"`bounds` must be {size} pairs that increase; got {stored!r:.80}")
    return pairs


def _describe_bound(bound: tuple[float, float] | Angle) -> Any:
    if isinstance(bound, Angle):
        return {"name": "angle", **asdict(bound)}
    # JSON has no infinity.
    return [repr(side) for side in bound]


def _build_bound(config: Any) -> tuple[float, float] | Angle:
    if isinstance(config, dict):
        return Angle(*(float(config[key]) for key in ("low", "high", "centre", "overlap")))
    low, high = config
    return float(low), float(high)
