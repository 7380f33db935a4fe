"""Files of generators of one step: the file of their prior or flow, and one network more."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from pyro_stad._config import encode
from pyro_stad._files import write_tensors
from pyro_stad.fields import AbstractField
from pyro_stad.files.conditional import CONDITIONAL, StoredConditional, build_conditional
from pyro_stad.files.prior import StoredPrior, build_prior
from pyro_stad.registry import Source, build, describe
from pyro_stad.transport import OneStep

__all__ = ["ONE_STEP", "build_one_step", "write_one_step"]

ONE_STEP = "pyro_stad one-step generator"
_PREFIX = "one_step."


def write_one_step(
    described: tuple[dict[str, Any], dict[str, Tensor]],
    transport: OneStep,
    record: Any,
    path: str | os.PathLike[str],
) -> None:
    """Write a generator and what it was distilled from, atomically.

    Arguments:
        described: the description of its prior, or conditional flow, and the tensors.
        transport: the generator.
        record: how it was distilled.
        path: where to.

    Raises:
        TypeError, ValueError: if the generator can't be stored.
        OSError: if the file can't be written.
    """
    document, tensors = described
    document |= {"format": ONE_STEP, "conditional": document["format"] == CONDITIONAL}
    document["one_step"] = {
        "field": describe(transport.field, "field"),
        "transport": describe(transport, "transport"),
        "distilled": record,
    }
    tensors |= {_PREFIX + name: part for name, part in transport.field.state_dict().items()}
    write_tensors(path, tensors, encode(document))


def build_one_step(
    tensors: dict[str, Tensor], document: dict[str, Any], foreign: AbstractField | None = None
) -> tuple[StoredPrior | StoredConditional, OneStep, Any]:
    """Return the prior or flow, the generator, and the record of how it was distilled.

    Raises:
        LookupError, TypeError, ValueError: if the file does not describe them.
    """
    names = [name for name in tensors if name.startswith(_PREFIX)]
    parts = {name.removeprefix(_PREFIX): tensors.pop(name) for name in names}
    stored: StoredPrior | StoredConditional
    if document.get("conditional"):
        stored = build_conditional(tensors, document, foreign)
        like = stored.location.factor[0]
    else:
        stored = build_prior(tensors, document, foreign)
        like = stored.loc
    config, given = document["one_step"], {"features": like.numel()}
    field = build(config["field"], "field", Source(parts, given=given)).to(like.dtype)
    field.load_state_dict(parts)
    transport = build(config["transport"], "transport", Source({}, given={"field": field}))
    return stored, transport, config["distilled"]
