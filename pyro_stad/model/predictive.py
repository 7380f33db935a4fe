"""Pairs of latent variables and data that a model makes itself: draws of its joint law.

What is drawn is what laws draw. A mask or a scale of a site changes its density and no draw, so
that of such a model pairs would have another posterior: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_stad._progress import progress_bar
from pyro_stad._random import forked, stream
from pyro_stad.density import unwrap
from pyro_stad.model.sites import in_plate, is_factor
from pyro_stad.model.vectorised import VectorisedModel

__all__ = ["Reader", "check_predictive", "predictive", "prior_draws"]

_ROWS = 1000


def check_predictive(model: VectorisedModel) -> None:
    """Refuse a model whose draws are not of its density.

    Raises:
        ValueError: if a site is a factor, masked or scaled, or observed as more than its law draws.
    """
    for site in model.observed:
        if is_factor(site):
            raise ValueError(
                f"site {site['name']!r} is a factor, and no data are drawn from one: write it as a "
                "law of something observed. A cut of a prior is a factor under FlowReparam, and "
                "none without"
            )
    for site in [*model.latent, *model.observed]:
        masked = site["mask"] is not None or _is_masked(site["fn"])
        if masked or torch.as_tensor(site["scale"] != 1).any():
            raise ValueError(
                f"site {site['name']!r} is {'masked' if masked else 'scaled'}, and what a model "
                "draws knows nothing of that: it would be the posterior of another model"
            )
        drawn = site["fn"].batch_shape + site["fn"].event_shape
        if torch.as_tensor(site["value"]).shape != drawn:
            raise ValueError(
                f"site {site['name']!r} has shape {tuple(torch.as_tensor(site['value']).shape)}, "
                f"and its law draws {tuple(drawn)}: put it into a plate, or expand its law"
            )


def _is_masked(fn: Any) -> bool:
    while fn is not None and not isinstance(fn, dist.MaskedDistribution):
        fn = unwrap(fn)
    return fn is not None


def predictive(
    model: VectorisedModel, count: int, seed: int, purpose: str, *, progress: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Draw latent variables from their priors, and data given them.

    Arguments:
        model: the model, of which it is known whether it broadcasts over draws.
        count: number of pairs.
        seed: of everything random.
        purpose: what they are for: another one's are others.
        progress: whether to show a bar.

    Returns:
        Latent sites, each ``(count, ...)``, and what is observed, side by side, ``(count, C)``.
    """
    step = 1 if model.loops else _ROWS
    rows: list[tuple[dict[str, Tensor], Tensor]] = []
    with forked(stream(seed, f"simulated data, {purpose}")), torch.no_grad():
        with progress_bar("simulations", count, shown=progress) as bar:
            for start in range(0, count, step):
                rows.append(_drawn(model, min(step, count - start)))
                bar.update(len(rows[-1][1]))
    values = {name: torch.cat([part[0][name] for part in rows]) for name in model.sites}
    return values, torch.cat([part[1] for part in rows])


def prior_draws(model: VectorisedModel, count: int, seed: int) -> dict[str, Tensor]:
    """Return latent sites as their priors draw them, each ``(count, ...)``."""
    step = 1 if model.loops else count
    with forked(stream(seed, "draws of priors")), torch.no_grad():
        parts = [
            _latent(model, _run(model, model.model, step), step) for _ in range(0, count, step)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in model.sites}


def _run(model: VectorisedModel, free: Callable[..., Any], count: int) -> Any:
    run: Callable[[], Any] = partial(free, *model.args, **model.kwargs)
    if not model.loops:
        run = in_plate(free, model.args, model.kwargs, count, model.depth)
    with pyro.validation_enabled(False):
        return poutine.trace(run).get_trace().nodes


def _latent(model: VectorisedModel, nodes: Any, count: int) -> dict[str, Tensor]:
    return {
        name: nodes[name]["value"].reshape(count, *shape) for name, shape in model.sites.items()
    }


def _drawn(model: VectorisedModel, count: int) -> tuple[dict[str, Tensor], Tensor]:
    nodes = _run(model, poutine.uncondition(model.model), count)
    values = _latent(model, nodes, count)
    observed = [nodes[site["name"]] for site in model.observed]
    return values, _side_by_side(observed, count, model.like)


class Reader:
    """Reads what a model observes off its arguments, and draws nothing.

    Latent sites stay where they were in the first run; so that the laws of what is observed are
    those of the first run too, unless arguments have changed that are no data.

    Arguments:
        model: the model.
    """

    def __init__(self, model: VectorisedModel) -> None:
        self.model = model
        self._still = {site["name"]: site["value"] for site in model.latent}
        self._first = {site["name"]: site["value"] for site in model.observed}
        self._laws = self._log_probs(self._run(model.args))

    @property
    def names(self) -> list[str]:
        """Names of the numbers that are observed, side by side."""
        return [
            name if value.ndim == 0 else f"{name}[{index}]"
            for name, value in ((n, torch.as_tensor(v)) for n, v in self._first.items())
            for index in range(value.numel())
        ]

    def row(self, args: tuple[Any, ...]) -> Tensor:
        """Return what is observed with other arguments, as one row ``(1, C)``.

        Raises:
            ValueError: if that is nothing, of other shapes than at first, or not finite; or if
                arguments that are no data are others.
        """
        nodes = self._run(args)
        for name, known in self._first.items():
            self._check(name, nodes.get(name), torch.as_tensor(known))
        for name, law in self._log_probs(nodes).items():
            if not torch.allclose(law, self._laws[name], equal_nan=True):
                raise ValueError(
                    f"the law of {name!r} is another one than in training, for the same latent "
                    "variables: an argument that is no data has changed. What varies from datum to "
                    "datum has to be observed, with a law of its own; else train again"
                )
        return _side_by_side([nodes[name] for name in self._first], 1, self.model.like)

    def _check(self, name: str, site: Any, known: Tensor) -> None:
        seen = None if site is None or not site["is_observed"] else torch.as_tensor(site["value"])
        if seen is None or seen.shape != known.shape:
            told = "nothing" if seen is None else f"shape {tuple(seen.shape)}"
            raise ValueError(
                f"site {name!r} observes {told}, expected shape {tuple(known.shape)}: data are "
                "read in the shape that they had in training"
            )
        if not bool(torch.isfinite(seen).all()):
            raise ValueError(f"site {name!r} observes nan or infinity")

    def _run(self, args: tuple[Any, ...]) -> Any:
        fixed = poutine.condition(self.model.model, data=self._still)
        with torch.no_grad(), pyro.validation_enabled(False):
            return poutine.trace(fixed).get_trace(*args, **self.model.kwargs).nodes

    def _log_probs(self, nodes: Any) -> dict[str, Tensor]:
        """Return what the laws of the observed sites say of the first data."""
        with torch.no_grad(), pyro.validation_enabled(False):
            return {name: nodes[name]["fn"].log_prob(x) for name, x in self._first.items()}


def _side_by_side(sites: list[Any], count: int, like: Tensor) -> Tensor:
    return torch.cat([torch.as_tensor(s["value"]).reshape(count, -1).to(like) for s in sites], 1)
