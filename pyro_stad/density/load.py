"""Priors back from files."""

from __future__ import annotations

import os
from typing import Any, overload

import torch
from torch import Tensor

from pyro_stad._checks import check_device
from pyro_stad._config import decode
from pyro_stad._context import own_context
from pyro_stad._files import read_tensors
from pyro_stad.density.conditional import ConditionalFlow
from pyro_stad.density.conditional_one_step import ConditionalGenerator
from pyro_stad.density.one_step import Distilled, OneStepGenerator
from pyro_stad.density.prior import FlowPrior
from pyro_stad.density.truncated import Region, TruncatedPrior, contains
from pyro_stad.errors import CheckpointError
from pyro_stad.fields import AbstractField
from pyro_stad.files import StoredRegion, read
from pyro_stad.files.conditional import CONDITIONAL, StoredConditional, build_conditional
from pyro_stad.files.foreign import check_given
from pyro_stad.files.one_step import ONE_STEP, build_one_step
from pyro_stad.files.prior import MISTAKES

__all__ = ["load"]


@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = ...,
    region: None = ...,
    field: AbstractField | None = ...,
) -> FlowPrior: ...
@overload
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = ...,
    region: Region,
    field: AbstractField | None = ...,
) -> TruncatedPrior: ...
@own_context()
def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    region: Region | None = None,
    field: AbstractField | None = None,
) -> FlowPrior | TruncatedPrior | ConditionalFlow | OneStepGenerator | ConditionalGenerator:
    """Read a prior, a conditional flow, or a generator of one step, that ``save`` wrote.

    No code in the file can run.

    Arguments:
        path: the file.
        device: where to put the prior.
        region: the function that the prior was cut by, which no file can hold, if it was.
        field: the network of somebody else that the prior is of, as ``from_noise`` and its sisters
            wrap it, if it is of one: no file can hold that either.

    Raises:
        ValueError: if the prior was cut and there is no ``region``, or another one; or the other
            way round; the same of ``field``.
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, truncated, of another format or version, or does
            not hold exactly the tensors that its description asks for, all finite.
    """
    where = check_device(device)
    tensors, document = read_tensors(path)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a prior of pyro_stad")
    check_given(document, field, path)
    if document.get("format") == CONDITIONAL:
        return _conditional(tensors, document, region, field, path).to(where)
    if document.get("format") == ONE_STEP:
        return _one_step(tensors, document, region, field, path).to(where)
    stored, known = read(path, tensors, document, field)
    try:
        prior = FlowPrior(**stored._asdict()).to(where)
    except MISTAKES as error:
        raise CheckpointError(f"{path} does not describe a prior: {error}") from error
    if known is None and region is None:
        return prior
    if known is None:
        raise ValueError(f"`region` is not for {path}, a prior without a cut")
    if region is None:
        raise ValueError(
            f"{path} is cut to a region, which is a function that no file can hold: say "
            "load(..., region=f) with the f that it was cut by"
        )
    return _cut(prior, region, known, path)


def _conditional(
    tensors: dict[str, Tensor],
    document: dict[str, Any],
    region: Any,
    field: AbstractField | None,
    path: str | os.PathLike[str],
) -> ConditionalFlow:
    if region is not None:
        raise ValueError(f"`region` is not for {path}, a conditional flow")
    try:
        return ConditionalFlow(build_conditional(tensors, document, field))
    except MISTAKES as error:
        raise CheckpointError(f"{path} does not describe a conditional flow: {error}") from error


def _one_step(
    tensors: dict[str, Tensor],
    document: dict[str, Any],
    region: Any,
    field: AbstractField | None,
    path: str | os.PathLike[str],
) -> OneStepGenerator | ConditionalGenerator:
    if region is not None:
        raise ValueError(f"`region` is not for {path}, a generator of one step")
    try:
        stored, transport, record = build_one_step(tensors, document, field)
        distilled = decode(Distilled | None, record, "distilled")
        if isinstance(stored, StoredConditional):
            return ConditionalGenerator(ConditionalFlow(stored), transport, distilled)
        return OneStepGenerator(FlowPrior(**stored._asdict()), transport, distilled)
    except MISTAKES as error:
        raise CheckpointError(f"{path} does not describe a generator: {error}") from error


def _cut(
    prior: FlowPrior, region: Region, known: StoredRegion, path: str | os.PathLike[str]
) -> TruncatedPrior:
    """Cut a prior by the region that its file knows."""
    probes = known.probes.to(prior.transforms[1].loc)
    differs = contains(region, prior.unpack, probes) != known.inside.to(probes.device)
    if differs.any():
        raise ValueError(
            f"`region` is not the one that {path} was cut by: they differ at {int(differs.sum())} "
            f"of {len(differs)} points that the file holds"
        )
    return TruncatedPrior(prior, region, known.mass, probes)
