r"""Files of priors: safetensors, a JSON description, a checksum; no pickle anywhere.

The description names every part by its registry and holds its settings, so that loading builds the
same objects by their constructors and then fills in tensors whose names, shapes and dtypes must
match exactly.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from pyro_stad._checks import check_device
from pyro_stad._config import build, describe
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.data import Layout
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.report import FitReport
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
from pyro_stad.likelihood import CURVES, AbstractLikelihood, Calibration, FlowODE, SteinPath
from pyro_stad.ode import SOLVERS, AbstractSolver
from pyro_stad.paths import PATHS
from pyro_stad.teacher import AbstractField, FreeFormField, PathField

__all__ = ["load", "save_prior"]

_FORMAT = "pyro_stad prior"
_VERSION = 1
_PROBED: dict[str, type] = {"hutchinson": Hutchinson, "hutch++": HutchPlusPlus, "xtrace": XTrace}


def save_prior(prior: FlowPrior, path: str | os.PathLike[str]) -> None:
    """Write ``prior`` to ``path``, atomically: an older file stays until the new one is whole.

    Raises:
        TypeError: if the prior has parts of foreign types.
        OSError: if the file can't be written; an older file at ``path`` stays as it was.
    """
    likelihood = prior.likelihood
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "field": _describe_field(likelihood.field),
        "divergence": _describe_divergence(likelihood.divergence),
        "likelihood": _describe_likelihood(likelihood),
        "solver": describe(likelihood.solver, SOLVERS, "solver"),
        "chunk_size": likelihood.chunk_size,
        "log_mass": likelihood.log_mass,
        "names": prior.layout.names,
        "variables": prior.layout.variables,
        # JSON has no infinity.
        "bounds": prior.bounds and [[repr(low), repr(high)] for low, high in prior.bounds],
        "report": prior.report and prior.report.to_dict(),
        "calibration": prior.calibration and prior.calibration.to_dict(),
    }
    affine = prior.transforms[1]
    tensors = dict(likelihood.state_dict())
    write_tensors(path, {**tensors, "loc": affine.loc, "scale_tril": affine.scale_tril}, document)


def load(path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> FlowPrior:
    """Read a prior that ``FlowPrior.save`` wrote. No code in the file can run.

    Arguments:
        path: the file.
        device: where to put the prior.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, truncated, of another format or version, or does
            not hold exactly the tensors that its description asks for, all finite.
    """
    where = check_device(device)
    tensors, document = read_tensors(path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a prior of pyro_stad")
    if document.get("version") != _VERSION:
        raise CheckpointError(
            f"{path} has format version {document.get('version')}; this pyro_stad reads "
            f"{_VERSION}. Install the version that wrote it, or fit again"
        )
    try:
        prior = _build_prior(tensors, document)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not describe a prior: {error}") from error
    return prior.to(where)


def _build_prior(tensors: dict[str, Tensor], document: dict[str, Any]) -> FlowPrior:
    variables = tuple((name, tuple(shape)) for name, shape in document["variables"])
    layout = Layout(tuple(document["names"]), variables)
    field = _build_field(document["field"], len(layout.names))
    divergence = _build_divergence(document["divergence"], field)
    solver = build(document["solver"], SOLVERS, "solver")
    likelihood = _build_likelihood(document, field, divergence, solver)
    likelihood.log_mass = float(document["log_mass"])
    size, dtype = len(layout.names), tensors["loc"].dtype
    likelihood.to(dtype)
    expected = {name: tensor.shape for name, tensor in likelihood.state_dict().items()}
    expected |= {"loc": torch.Size([size]), "scale_tril": torch.Size([size, size])}
    _check_tensors(tensors, expected, dtype)
    loc, scale_tril = tensors.pop("loc"), tensors.pop("scale_tril")
    likelihood.load_state_dict(tensors)
    bounds = document["bounds"]
    bounds = bounds and tuple((float(low), float(high)) for low, high in bounds)
    report = document["report"] and FitReport.from_dict(document["report"])
    calibration = document["calibration"] and Calibration.from_dict(document["calibration"])
    return FlowPrior(likelihood, loc, scale_tril, layout, bounds, report, calibration)


def _check_tensors(
    tensors: dict[str, Tensor], expected: dict[str, torch.Size], dtype: torch.dtype
) -> None:
    missing, extra = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or extra:
        raise ValueError(f"missing tensors {sorted(missing)}, unexpected {sorted(extra)}")
    for name, shape in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {tuple(shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite")


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
    raise TypeError(f"a likelihood of type {type(likelihood).__name__} can't be saved")


def _build_likelihood(
    document: dict[str, Any],
    field: AbstractField,
    divergence: AbstractDivergence,
    solver: AbstractSolver,
) -> AbstractLikelihood:
    config, chunk_size = document["likelihood"], document["chunk_size"]
    if config["name"] == "flow-ode":
        return FlowODE(field, divergence, solver, chunk_size)
    if config["name"] == "stein-path":
        curve = build(config["curve"], CURVES, "curve")
        consistent = config["consistent"] and _build_divergence(config["consistent"], field)
        return SteinPath(
            field, divergence, solver, curve, config["nodes"],
            consistent=consistent, chunk_size=chunk_size,
        )  # fmt: skip
    raise ValueError(f"unknown likelihood {config['name']!r}")


def _describe_field(field: AbstractField) -> dict[str, Any]:
    if type(field) is PathField:
        sizes = {"width": field.trunk.width, "depth": field.trunk.depth}
        return {"name": "path", "path": describe(field.path, PATHS, "path"), **sizes}
    if type(field) is FreeFormField:
        return {"name": "free-form", "width": field.trunk.width, "depth": field.trunk.depth}
    raise TypeError(
        f"a prior with a {type(field).__name__} can't be saved, only one with a network of this "
        "package; save the foreign network by its own means and wrap it again"
    )


def _build_field(config: dict[str, Any], features: int) -> AbstractField:
    sizes = {"features": features, "width": config["width"], "depth": config["depth"]}
    if config["name"] == "path":
        return PathField(build(config["path"], PATHS, "path"), **sizes)
    if config["name"] == "free-form":
        return FreeFormField(**sizes)
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


def _build_divergence(config: dict[str, Any], field: AbstractField) -> AbstractDivergence:
    if config["name"] == "exact":
        return Exact()
    if config["name"] in _PROBED:
        return build(config, _PROBED, "divergence")
    network: AbstractDivergenceNetwork
    if config["name"] == "stein-head":
        network = TrunkHead.for_field(field)
    else:
        network = SeparateNetwork(field.features, config["width"], config["depth"])
    return Stein(network)
