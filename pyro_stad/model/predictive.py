"""Pairs of latent variables and data that a model makes itself: draws of its joint law."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_stad._progress import progress_bar
from pyro_stad._random import forked, stream
from pyro_stad.model.sites import in_plate, is_data, is_factor
from pyro_stad.model.vectorised import VectorisedModel

__all__ = ["observed_row", "predictive"]

_ROWS = 1000


def predictive(
    model: VectorisedModel, count: int, seed: int, *, progress: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw latent variables from their priors, and data given them.

    Arguments:
        model: the model, of which it is known whether it broadcasts over draws.
        count: number of pairs.
        seed: of everything random.
        progress: whether to show a bar.

    Returns:
        Latent sites, each ``(count, ...)``, and what is observed, side by side, ``(count, C)``.

    Raises:
        ValueError: if the model has a factor, which no data can be drawn from; it is named.
    """
    for site in model.observed:
        if is_factor(site):
            raise ValueError(
                f"site {site['name']!r} is a factor, and no data are drawn from one: write it as a "
                "law of something observed, or take a prior that is not cut"
            )
    step = 1 if model.loops else _ROWS
    rows: list[tuple[dict[str, Tensor], Tensor]] = []
    with forked(stream(seed, "simulated data")), torch.no_grad():
        with progress_bar("simulations", count, shown=progress) as bar:
            for start in range(0, count, step):
                rows.append(_drawn(model, min(step, count - start)))
                bar.update(len(rows[-1][1]))
    values = {name: torch.cat([part[0][name] for part in rows]) for name in model.sites}
    return values, torch.cat([part[1] for part in rows])


def _drawn(model: VectorisedModel, count: int) -> tuple[dict[str, Tensor], Tensor]:
    free = poutine.uncondition(model.model)
    run: Callable[[], Any] = partial(free, *model.args, **model.kwargs)
    if not model.loops:
        run = in_plate(free, model.args, model.kwargs, count, model.depth)
    with pyro.validation_enabled(False):
        nodes: Any = poutine.trace(run).get_trace().nodes
    values = {
        name: nodes[name]["value"].reshape(count, *shape) for name, shape in model.sites.items()
    }
    return values, _side_by_side(
        [nodes[site["name"]] for site in model.observed], count, model.like
    )


def observed_row(model: VectorisedModel, args: tuple[Any, ...]) -> Tensor:
    """Return what the model observes with other arguments, as one row ``(1, C)``.

    Nothing is drawn for it: latent sites stay where they were in the first run.
    """
    still = {site["name"]: site["value"] for site in model.latent}
    fixed = poutine.condition(model.model, data=still)
    with torch.no_grad(), pyro.validation_enabled(False):
        nodes: Any = poutine.trace(fixed).get_trace(*args, **model.kwargs).nodes
    found = {name for name, site in nodes.items() if site["type"] == "sample" and is_data(site)}
    wanted = {site["name"]: tuple(site["value"].shape) for site in model.observed}
    for name, shape in wanted.items():
        got = tuple(nodes[name]["value"].shape) if name in found else None
        if got != shape:
            raise ValueError(
                f"site {name!r} observes {'nothing' if got is None else f'shape {got}'}, expected "
                f"shape {shape}: an emulator reads data of the shape that it was trained on"
            )
    return _side_by_side([nodes[name] for name in wanted], 1, model.like)


def _side_by_side(sites: list[Any], count: int, like: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(s["value"]).reshape(count, -1).to(like) for s in sites], 1)
