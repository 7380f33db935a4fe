"""Files of generators of one step: the file of their prior, and one network more."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from pyro_stad._config import encode
from pyro_stad._files import write_tensors
from pyro_stad.files.prior import StoredPrior, build_prior, describe_prior
from pyro_stad.registry import Source, build, describe
from pyro_stad.transport import OneStep

__all__ = ["ONE_STEP", "build_one_step", "write_one_step"]

ONE_STEP = "pyro_stad one-step generator"
_PREFIX = "one_step."


def write_one_step(
    prior: StoredPrior, transport: OneStep, record: Any, path: str | os.PathLike[str]
) -> None:
    """Write a generator and its prior, atomically.

    Raises:
        TypeError, ValueError: if the prior can't be stored; see ``write``.
        OSError: if the file can't be written.
    """
    document, tensors = describe_prior(prior)
    document["format"] = ONE_STEP
    document["one_step"] = {
        "field": describe(transport.field, "field"),
        "transport": describe(transport, "transport"),
        "distilled": record,
    }
    tensors |= {_PREFIX + name: part for name, part in transport.field.state_dict().items()}
    write_tensors(path, tensors, encode(document))


def build_one_step(
    tensors: dict[str, Tensor], document: dict[str, Any]
) -> tuple[StoredPrior, OneStep, Any]:
    """Return the prior, the generator, and the record of how it was distilled.

    Raises:
        LookupError, TypeError, ValueError: if the file does not describe them.
    """
    names = [name for name in tensors if name.startswith(_PREFIX)]
    parts = {name.removeprefix(_PREFIX): tensors.pop(name) for name in names}
    prior = build_prior(tensors, document)
    config, dtype = document["one_step"], prior.loc.dtype
    size = prior.loc.numel()
    field = build(config["field"], "field", Source(parts, given={"features": size})).to(dtype)
    field.load_state_dict(parts)
    source = Source({}, given={"field": field})
    return prior, build(config["transport"], "transport", source), config["distilled"]
