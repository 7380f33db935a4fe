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
from torch import Tensor, nn

from pyro_stad._checks import check_count
from pyro_stad._config import build, decode, describe, encode
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.calibrate import Calibration
from pyro_stad.data import Angle, Bounds, Layout, Margins, box
from pyro_stad.data.reference import Reference
from pyro_stad.divergence import (
    AbstractDivergence,
    AbstractDivergenceNetwork,
    Exact,
    Hutchinson,
    HutchPlusPlus,
    SeparateNetwork,
    Stein,
    TrunkHead,
    XTrace,
)
from pyro_stad.errors import CheckpointError
from pyro_stad.fields import AbstractField, AbstractTrunkField, FreeFormField, Gate, PathField
from pyro_stad.files.parts import (
    build_transport,
    check_finite,
    check_tensors,
    describe_parts,
    describe_transport,
    part_tensors,
    take_margins,
    take_reference,
    take_spread,
)
from pyro_stad.files.region import StoredRegion, region_tensors, take_region
from pyro_stad.learn.spread import Spread
from pyro_stad.likelihood import (
    CURVES,
    AbstractLikelihood,
    Correction,
    DistilledDensity,
    FlowODE,
    SteinPath,
)
from pyro_stad.ode import SOLVERS, AbstractSolver
from pyro_stad.paths import PATHS
from pyro_stad.report.fit import FitReport
from pyro_stad.transport import AbstractTransport

__all__ = ["MISTAKES", "StoredPrior", "read", "write"]

_FORMAT = "pyro_stad prior"
_VERSION = 1
# What constructors raise for a description that is none.
MISTAKES = (
    LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip
_PROBED: dict[str, type] = {"hutchinson": Hutchinson, "hutch++": HutchPlusPlus, "xtrace": XTrace}


class StoredPrior(NamedTuple):
    """What a prior consists of: the arguments of ``FlowPrior``."""

    likelihood: AbstractLikelihood
    loc: Tensor
    scale_tril: Tensor
    layout: Layout
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


def _describe_prior(prior: StoredPrior) -> tuple[dict[str, Any], dict[str, Tensor]]:
    likelihood = prior.likelihood
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "field": _describe_field(likelihood.field),
        "divergence": _describe_divergence(likelihood.divergence),
        "likelihood": _describe_likelihood(likelihood),
        "solver": describe(likelihood.solver, SOLVERS, "solver"),
        "transport": describe_transport(prior.transport),
        "chunk_size": likelihood.chunk_size,
        "log_mass": likelihood.log_mass,
        "names": prior.layout.names,
        "variables": prior.layout.variables,
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
    layout = _read_layout(document)
    size, dtype = len(layout.names), tensors["loc"].dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"loc is {dtype}, expected torch.float32 or torch.float64")
    bounds = _read_bounds(document["bounds"], size)
    margins = take_margins(document, tensors, size, dtype)
    reference = take_reference(document, tensors, size, dtype)
    spread = take_spread(document, tensors, size, dtype)
    # In its final precision: a likelihood makes its nodes in that of its field.
    field = _build_field(document["field"], size, tensors).to(dtype)
    divergence = _build_divergence(document["divergence"], field, tensors, "divergence")
    solver = build(document["solver"], SOLVERS, "solver")
    likelihood = _build_likelihood(document, field, divergence, solver, tensors).to(dtype)
    expected = {name: tensor.shape for name, tensor in likelihood.state_dict().items()}
    expected |= {"loc": torch.Size([size]), "scale_tril": torch.Size([size, size])}
    check_tensors(tensors, expected, dtype)
    loc, scale_tril = tensors.pop("loc"), tensors.pop("scale_tril")
    likelihood.load_state_dict(tensors)
    report = decode(FitReport | None, document["report"], "report")
    calibration = decode(Calibration | None, document["calibration"], "calibration")
    transport = build_transport(document, likelihood)
    return StoredPrior(
        likelihood, loc, scale_tril, layout, bounds, report, calibration, transport, margins,
        reference, spread,
    )  # fmt: skip


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


def _describe_likelihood(likelihood: AbstractLikelihood) -> dict[str, Any]:
    if isinstance(likelihood, SteinPath):
        curve = describe(likelihood.curve, CURVES, "curve")
        consistent = likelihood.consistent and _describe_divergence(likelihood.consistent)
        return {
            "name": "stein-path",
            "curve": curve,
            "nodes": likelihood.nodes,
            "consistent": consistent,
        }
    if isinstance(likelihood, FlowODE):
        return {"name": "flow-ode"}
    if isinstance(likelihood, DistilledDensity):
        correction = likelihood.correction
        sizes = {"width": correction.width, "depth": correction.depth}
        return {"name": "distilled", **sizes, "gate": asdict(likelihood.gate)}
    raise TypeError(f"a likelihood of type {type(likelihood).__name__} can't be saved")


def _build_likelihood(
    document: dict[str, Any],
    field: AbstractField,
    divergence: AbstractDivergence,
    solver: AbstractSolver,
    tensors: dict[str, Tensor],
) -> AbstractLikelihood:
    config = document["likelihood"]
    numbers: dict[str, Any] = {
        "chunk_size": document["chunk_size"],
        "log_mass": decode(float, document["log_mass"], "log_mass"),
    }
    if config["name"] == "flow-ode":
        return FlowODE(field, divergence, solver, **numbers)
    if config["name"] == "stein-path":
        curve = build(config["curve"], CURVES, "curve")
        consistent = config["consistent"]
        if consistent is not None:
            consistent = _build_divergence(consistent, field, tensors, "consistent")
        return SteinPath(
            field, divergence, solver, curve, config["nodes"],
            consistent=consistent, **numbers,
        )  # fmt: skip
    if config["name"] == "distilled":
        correction = _build_correction(config, field.features, tensors)
        gate = decode(Gate, config["gate"], "gate")
        return DistilledDensity(field, divergence, solver, correction, gate, **numbers)
    raise ValueError(f"unknown likelihood {config['name']!r}")


def _build_correction(
    config: dict[str, Any], features: int, tensors: dict[str, Tensor]
) -> Correction:
    """Return a correction of the sizes of its tensors: others could fill the memory."""
    width, depth = config["width"], config["depth"]
    check_count(width, "width")
    check_count(depth, "depth", most=len(tensors))
    shapes = [(width, features), *[(width, width)] * (depth - 1), (1, width)]
    names = [*(f"layers.{index}" for index in range(depth)), "out"]
    for name, shape in zip(names, shapes):
        tensor = tensors.get(f"correction.{name}.weight")
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise ValueError(
                f"`width` {width} and `depth` {depth} do not fit correction.{name}.weight, {found}"
            )
    return Correction(features, width, depth, torch.Generator())


def _describe_field(field: AbstractField) -> dict[str, Any]:
    if type(field) is PathField:
        return {"name": "path", "path": describe(field.path, PATHS, "path"), **_of_trunk(field)}
    if type(field) is FreeFormField:
        return {"name": "free-form", **_of_trunk(field)}
    raise TypeError(
        f"a prior with a {type(field).__name__} can't be saved, only one with a network of this "
        "package; save the foreign network by its own means and wrap it again"
    )


def _of_trunk(field: AbstractTrunkField) -> dict[str, Any]:
    sizes = {"width": field.trunk.width, "depth": field.trunk.depth}
    return {**sizes, "gate": field.gate and asdict(field.gate)}


def _build_field(
    config: dict[str, Any], features: int, tensors: dict[str, Tensor]
) -> AbstractField:
    sizes = {"features": features, **_sizes(config, tensors, "field.trunk")}
    # A file brings its own weights: none are to be drawn from the global generator.
    parts: dict[str, Any] = {
        **sizes,
        "generator": torch.Generator(),
        "gate": decode(Gate | None, config.get("gate"), "gate"),
    }
    if config["name"] == "path":
        return PathField(build(config["path"], PATHS, "path"), **parts)
    if config["name"] == "free-form":
        return FreeFormField(**parts)
    raise ValueError(f"unknown field {config['name']!r}")


def _describe_divergence(divergence: AbstractDivergence) -> dict[str, Any]:
    if type(divergence) is Exact:
        return {"name": "exact"}
    if not isinstance(divergence, Stein):
        return describe(divergence, _PROBED, "divergence")
    network: nn.Module = divergence.network
    if type(network) is TrunkHead:
        return {"name": "stein-head"}
    if type(network) is SeparateNetwork:
        return {"name": "stein-separate", "width": network.width, "depth": network.depth}
    raise TypeError(f"a divergence network of type {type(network).__name__} can't be saved")


def _sizes(config: dict[str, Any], tensors: dict[str, Tensor], trunk: str) -> dict[str, int]:
    """Return width and depth of a trunk, if they are those of its tensors.

    Before it is built: a network of a size that somebody made up would fill the memory.
    """
    width, depth = config["width"], config["depth"]
    check_count(width, "width")
    # Each layer but the first has a tensor of its own.
    check_count(depth, "depth", most=len(tensors))
    rows, columns = (len(tensors[f"{trunk}.enter.weight"]), tensors[f"{trunk}.out.weight"].shape[1])
    if (rows, columns) != (width * depth, width):
        raise ValueError(
            f"`width` {width} and `depth` {depth} do not fit the tensors of {trunk}, of {rows} "
            f"units in all and {columns} in the last layer"
        )
    return {"width": width, "depth": depth}


def _build_divergence(
    config: dict[str, Any], field: AbstractField, tensors: dict[str, Tensor], place: str
) -> AbstractDivergence:
    if config["name"] == "exact":
        return Exact()
    if config["name"] in _PROBED:
        return build(config, _PROBED, "divergence")
    network: AbstractDivergenceNetwork
    weights = torch.Generator()
    if config["name"] == "stein-head":
        network = TrunkHead.for_field(field, weights)
    elif config["name"] == "stein-separate":
        sizes = _sizes(config, tensors, f"{place}.network.trunk")
        network = SeparateNetwork(field.features, **sizes, generator=weights)
    else:
        raise ValueError(f"unknown divergence {config['name']!r}")
    return Stein(network)
