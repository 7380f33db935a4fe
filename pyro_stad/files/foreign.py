"""Networks of somebody else in files: they are left out, and known again by what they say.

A file can't hold a network that it can't build. It holds all the rest: the head that was distilled,
the calibration, and what the network says at a few points, so that another one is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_stad._random import generator
from pyro_stad.fields import AbstractField, ForeignField
from pyro_stad.files.parts import check_finite, check_tensors
from pyro_stad.likelihood import AbstractLikelihood

__all__ = ["check_given", "own_tensors", "restore", "said"]

_FUNCTION, _PROBE = "field.function.", "foreign.probe"
_POINTS, _SAME = 4, 1e-2


def own_tensors(likelihood: AbstractLikelihood, like: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a likelihood that a file holds.

    Arguments:
        likelihood: the likelihood.
        like: a tensor of the dtype and device of data, for networks that show no weights.
    """
    tensors = dict(likelihood.state_dict())
    if not isinstance(likelihood.field, ForeignField):
        return tensors
    kept = {name: part for name, part in tensors.items() if not name.startswith(_FUNCTION)}
    return {**kept, _PROBE: said(likelihood.field, like)}


def restore(likelihood: AbstractLikelihood, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Fill in the tensors of a file, all of them.

    Raises:
        ValueError: if they are not those that the likelihood has, or if its network is another one
            than when it was stored.
    """
    known = likelihood.state_dict()
    theirs: dict[str, Tensor] = {}
    if isinstance(likelihood.field, ForeignField):
        before = tensors.pop(_PROBE)
        check_finite({_PROBE: before})
        found = said(likelihood.field, torch.zeros((), dtype=dtype, device="cpu"))
        # NaN is not less than anything.
        if found.shape != before.shape or not bool(
            (before - found).abs().max() <= _SAME * before.abs().max()
        ):
            raise ValueError(
                "`field` is another network than the one that the file was made with: at the "
                "points that the file holds they differ"
            )
        theirs = {name: part for name, part in known.items() if name.startswith(_FUNCTION)}
    expected = {name: part.shape for name, part in known.items() if name not in theirs}
    check_tensors(tensors, expected, dtype)
    likelihood.load_state_dict({**theirs, **tensors})


def check_given(document: dict[str, Any], field: AbstractField | None, path: Any) -> None:
    """Refuse a file without the network that it needs, and a network without need.

    Raises:
        ValueError: for either.
    """
    described = document.get("field")
    known = described if isinstance(described, dict) else {}
    needed = known.get("name") == "foreign"
    if needed and field is None:
        raise ValueError(
            f"{path} is of a network of somebody else, which no file holds: say load(..., field=f) "
            f"with the field that from_{known.get('face')} makes of it"
        )
    if field is not None and not needed:
        raise ValueError(f"`field` is not for {path}, which holds its own network")


def said(field: ForeignField, like: Tensor) -> Tensor:
    """Return the velocity at a few points of all times, in float64 on the CPU.

    Arguments:
        field: the network.
        like: a tensor of the dtype and device that it takes, if it shows no weights.
    """
    like = next(field.parameters(), like)
    source = generator(0, "probe of a foreign network")
    shape = (_POINTS, *field.event_shape)
    x = torch.randn(shape, generator=source, dtype=torch.float64, device="cpu").to(like)
    part = torch.linspace(0.1, 0.9, _POINTS, dtype=like.dtype, device=like.device)
    if field.context_shape:
        field = field.given(x.new_zeros(_POINTS, *field.context_shape))
    with torch.no_grad():
        return field.velocity(field.at_fraction(part), x).double().cpu()
