"""Models that a recognition guide would get wrong without a word, refused with the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.ops.provenance import get_provenance
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_stad.model.sites import is_latent, sampled

__all__ = ["bounds_of", "check_finite_rows", "check_present", "refuse"]


def refuse(trace: Any, create_plates: Callable[..., Any] | None) -> None:
    """Refuse masked latent variables, subsamples of the caller's, and supports that data move.

    Arguments:
        trace: of the model, with arguments that remember where they come from.
        create_plates: what the user has given for plates whose subsample is chosen outside.

    Raises:
        ValueError: as said.
    """
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        if site_is_subsample(site):
            chosen = site["fn"].subsample_size is None and site["value"].numel() < site["fn"].size
            if chosen and create_plates is None:
                raise ValueError(
                    f"the subsample of plate {name!r} is chosen by the caller, and the guide can't "
                    "know it: give it create_plates=lambda *args: pyro.plate("
                    f"{name!r}, size, subsample=index), of the model's arguments"
                )
    for site in sampled(trace):
        name = site["name"]
        if not is_latent(site):
            continue
        if site["mask"] is not None and not isinstance(site["mask"], bool):
            raise ValueError(
                f"latent site {name!r} is masked: a guide draws it all the same, and its bound has "
                "no upper end. Mask the observation instead, dist.Normal(...).mask(mask), and not "
                "the latent variable"
            )
        moved = sorted(set().union(*(get_provenance(bound) for bound in bounds_of(site))))
        if moved:
            raise ValueError(
                f"the support of latent site {name!r} depends on {moved}: the guide would keep the "
                "bounds that it was made with. Write it as low + (high - low) * u with u from "
                "Uniform(0, 1)"
            )


def bounds_of(site: Any) -> list[Any]:
    """Return the bounds of the support of a site: numbers or tensors."""
    support = site["fn"].support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    names = ("lower_bound", "upper_bound")
    return [getattr(support, name) for name in names if hasattr(support, name)]


def check_present(needed: list[str], data: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for data that the guide reads and a call does not bring."""
    missing = [name for name in needed if name not in data]
    if missing:
        raise ValueError(
            f"the guide reads the arguments {missing}, which this call has no tensor for; it has "
            f"{sorted(data)}. A guide needs the data whose posterior it is to return, by the same "
            "names as in its first call"
        )


def check_finite_rows(name: str, value: Tensor) -> None:
    """Raise ``ValueError`` for the first row that a network can't read."""
    bad = ~torch.isfinite(value)
    if bad.any():
        index = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"argument {name!r} is {value[index].item()} at row {index[0]}: a network can't read "
            "it. Fill it in, and give the model's observation a mask; or give the guide `features`"
        )
