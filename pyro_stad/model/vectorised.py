"""A Pyro model that runs once for many draws of its latent sites.

It runs in a plate of its own to the left of all others, as Pyro's vectorised inference does, so
that observed sites must broadcast over draws. A model that does not is found out here, and runs
draw by draw, which gives the same numbers for more time.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_stad._random import forked, generator
from pyro_stad.model.sites import check_whole, in_plate, is_data, is_factor, is_latent, sampled

__all__ = ["AbstractSetter", "VectorisedModel"]

_TRIES = 30
_ADVICE = (
    "Index from the right, as in theta[..., 0], and declare dimensions of data with plates or "
    "to_event"
)


class AbstractSetter(Messenger, ABC):
    """Sets every latent site, in the order of the model, from the next columns of ``rows``.

    Arguments:
        rows: shape ``(N, size)``, one row for each draw.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    @abstractmethod
    def value(self, name: str, fn: Any) -> Tensor:
        """Return the value of a site with law ``fn``."""

    @abstractmethod
    def split(self) -> list[Any]:
        """Return a setter for each draw."""

    def join(self, parts: list[Any]) -> None:
        """Take over what the setters of the draws have kept, if anything."""

    def take(self, shape: torch.Size) -> Tensor:
        """Return the next columns, for all draws, with ``shape``."""
        size = math.prod(shape) // len(self.rows)
        block = self.rows[:, self.at : self.at + size]
        self.at += size
        return block.reshape(shape)

    def __enter__(self) -> Any:
        self.at = 0
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg):
            msg["value"] = self.value(msg["name"], msg["fn"])
            msg["done"] = True


class VectorisedModel:
    """A model with its arguments.

    Arguments:
        model: a Pyro model whose latent sites are continuous.
        args, kwargs: what it is called with.

    Attributes:
        latent: its latent sites, as a first run had them.
        sites: their shapes, by name.
        data: fingerprint of all observed values, whatever their sites are called.
        like: a value of a latent site, for dtype and device.
        loops: whether it runs draw by draw, since it does not broadcast over them.

    Raises:
        TypeError: if the model is not callable.
        ValueError: if the model has no latent site, no observation, a discrete latent site, a prior
            that can't be drawn from, or a subsample of the data.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not callable(model):
            raise TypeError(f"`model` must be a Pyro model, a callable; got {model!r}")
        self.model, self.args, self.kwargs = model, args, kwargs
        self.loops = False
        sites = _first_run(model, args, kwargs)
        self.latent = [site for site in sites if is_latent(site)]
        self.observed = [site for site in sites if is_data(site)]
        _check_sites(self.latent, self.observed)
        self.sites: dict[str, tuple[int, ...]] = {
            site["name"]: tuple(site["value"].shape) for site in self.latent
        }
        self.data = _fingerprint(self.observed)
        self.like: Tensor = self.latent[0]["value"]
        self.depth = max(len(site["fn"].batch_shape) for site in sites)

    def trace(self, setter: AbstractSetter, args: tuple[Any, ...] | None = None) -> list[Any]:
        """Return the traces of all draws of ``setter``: one of them all, or one of each.

        ``args`` take the place of the model's.
        """
        if self.loops:
            parts = setter.split()
            traces = [self._run(part, None, args) for part in parts]
            setter.join(parts)
            return traces
        return [self._run(setter, len(setter.rows), args)]

    def _run(self, setter: AbstractSetter, points: int | None, args: tuple[Any, ...] | None) -> Any:
        """Return the trace of a plate of draws, or of one draw and no plate."""
        args = self.args if args is None else args
        run: Callable[[], Any] = partial(self.model, *args, **self.kwargs)
        if points is not None:
            run = in_plate(self.model, args, self.kwargs, points, self.depth)
        # Checked by its first run. A draw that has no likelihood is to be counted, not to raise.
        with setter, pyro.validation_enabled(False):
            return poutine.trace(run).get_trace()

    def log_probs(
        self, traces: list[Any], points: int, which: Callable[[Any], bool]
    ) -> dict[str, Tensor]:
        """Return the log-probabilities of sites of the traces, each ``(points, ...)``.

        Those of others are not computed: a learned prior's would take its divergence.
        """
        names = [site["name"] for site in sampled(traces[0]) if which(site)]
        with pyro.validation_enabled(False):
            for trace in traces:
                trace.compute_log_prob(lambda name, _: name in names)
        if self.loops:
            each = {name: [trace.nodes[name]["log_prob"] for trace in traces] for name in names}
            return {name: torch.stack(values) for name, values in each.items()}
        (trace,) = traces
        return {name: self._rows(name, trace.nodes[name]["log_prob"], points) for name in names}

    def values(self, traces: list[Any], points: int) -> dict[str, Tensor]:
        """Return the latent sites of the traces, each ``(points, ...)``."""
        found = {}
        for name, shape in self.sites.items():
            parts = [trace.nodes[name]["value"].reshape(-1, *shape) for trace in traces]
            found[name] = torch.cat(parts)
        return found

    def check_rows(self, log_density: Callable[[Tensor], Tensor], size: int) -> None:
        """Find out whether the model broadcasts over draws; let it run draw by draw if not.

        Raises:
            ValueError: if the model draws random numbers of its own.

        Warns:
            UserWarning: if it does not broadcast, with how to make it.
        """
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.loops = True
            rows, alone = self._possible_rows(log_density, size)
            if not torch.equal(alone.nan_to_num(), log_density(rows).nan_to_num()):
                raise ValueError(
                    "the model draws random numbers of its own: the same draw of its latent sites "
                    "has two likelihoods. Make them latent sites, or pass them in as data"
                )
            self.loops = False
            try:
                together, reason = log_density(rows), ""
            except Exception as error:  # A model raises what it likes.
                together, reason = torch.full_like(alone, torch.nan), f" ({_first_line(error)})"
        # A number in double precision has its way beside another number, not beside a row of them.
        pair = together.double(), alone.double()
        if torch.allclose(*pair, rtol=1e-3, atol=1e-3, equal_nan=not reason):
            return
        self.loops = True
        warnings.warn(
            f"the model does not broadcast over draws{reason}, and runs draw by draw: right, but "
            f"many times slower. {_ADVICE}",
            UserWarning,
            stacklevel=6,
        )

    def _possible_rows(
        self, log_density: Callable[[Tensor], Tensor], size: int
    ) -> tuple[Tensor, Tensor]:
        """Return three rows of noise, ``(3, D)``, and their log-densities, finite if any are.

        Where nothing is possible, as outside a cut, all ways to run a model agree.
        """
        source = generator(0, "rows of noise")
        rows = self.like.new_empty(0, size)
        # In the dtype that the model has, which may be another than that of its latent sites.
        alone = self.like.new_empty(0, dtype=torch.float64)
        for _ in range(_TRIES):
            more = torch.randn(3, size, generator=source).to(self.like)
            found = log_density(more)
            rows, alone = torch.cat([rows, more]), torch.cat([alone.to(found), found])
            if int(torch.isfinite(alone).sum()) >= len(more):
                break
        best = (~torch.isfinite(alone)).double().argsort(stable=True)[: len(more)]
        return rows[best], alone[best]

    def _rows(self, name: str, log_prob: Tensor, points: int) -> Tensor:
        missing = self.depth + 1 - log_prob.ndim
        log_prob = log_prob.reshape((1,) * missing + tuple(log_prob.shape))
        if log_prob.shape[0] != points:
            raise ValueError(
                f"site {name!r} has a log-likelihood of shape {tuple(log_prob.shape)}, expected "
                f"{points} draws in its first dimension: the model must broadcast over a plate "
                "to the left of its own"
            )
        return log_prob


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _fingerprint(observed: list[Any]) -> str:
    """Return a digest of observed values; what only adds a factor observes nothing."""
    values = [
        torch.as_tensor(site["value"]).detach().double().cpu().reshape(-1)
        for site in observed
        if not is_factor(site)
    ]
    data = torch.cat([torch.zeros(0, dtype=torch.float64), *values]).sort().values
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _first_run(model: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
    """Return the sample sites of one run of the model, subsamples of plates apart."""
    try:
        with forked(0), torch.no_grad(), poutine.block():
            trace = poutine.trace(model).get_trace(*args, **kwargs)
    except NotImplementedError as error:
        raise ValueError(
            "the model has a prior that can't be drawn from, as ImproperUniform can't; an "
            f"evidence needs proper priors ({error})"
        ) from error
    check_whole(trace, "an evidence")
    return sampled(trace)


def _check_sites(latent: list[Any], observed: list[Any]) -> None:
    if not latent:
        raise ValueError("the model has no latent site, so that there is nothing to integrate")
    if not observed:
        raise ValueError(
            "the model observes nothing: pass it data, or there is nothing to learn from"
        )
    for site in observed:
        if bool(torch.isnan(torch.as_tensor(site["value"])).any()):
            raise ValueError(f"site {site['name']!r} observes nan; leave out what is missing")
    for site in latent:
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"latent site {site['name']!r} is discrete ({type(site['fn']).__name__}); sum it "
                "out in the model"
            )
