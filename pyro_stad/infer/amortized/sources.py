"""What the posterior of a latent variable depends on, read off the model itself.

Two questions are answered by running the model once with tensors that remember where they come from
(Pyro's provenance tracking). Which latent variables and observations does the posterior of a latent
variable depend on? Those of its Markov blanket, ``pyro.infer.inspect.get_dependencies``. And which
arguments of the model do these depend on? Those whose leading dimensions are plates of the model
are data, a row for each member of the plates; a network can read them.

A latent variable in a plate of data is local: each datum has its own. All others are global.

References:
    Webb et al. (2018), Faithful Inversion of Generative Models for Effective Amortized Inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from torch import Tensor

from pyro_stad.infer.amortized.arguments import Names, changed, tensors
from pyro_stad.infer.amortized.refusals import refuse
from pyro_stad.model.sites import is_computed, is_data, is_latent, sampled

__all__ = ["DataRows", "LocalSite", "read_model"]


@dataclass(frozen=True)
class DataRows:
    """Data: a tensor whose leading dimensions are plates.

    Attributes:
        name: of the argument; or that of a plate, for what a function of the user returns.
        plates: names of the plates along its leading dimensions, outermost first.
        shape: of one row.
    """

    name: str
    plates: tuple[str, ...]
    shape: torch.Size


@dataclass(frozen=True)
class LocalSite:
    """A latent variable that each datum has of its own.

    Attributes:
        name: of the site.
        plates: names of its plates, outermost first.
        rows: the data that its posterior depends on.
        upstream: latent variables that are drawn before it and that its posterior depends on.
    """

    name: str
    plates: tuple[str, ...]
    rows: tuple[DataRows, ...]
    upstream: tuple[str, ...]


def read_model(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    features: Mapping[str, Callable[..., Tensor]],
    create_plates: Callable[..., Any] | None = None,
) -> list[LocalSite]:
    """Return the local latent variables of a model, in its order, and what each depends on.

    Arguments:
        model: the model.
        args, kwargs: its arguments, data among them.
        features: functions of the arguments, by plate, whose rows stand in place of the data.
        create_plates: what makes plates whose subsample the caller chooses.

    Raises:
        ValueError: for data of which no row is one of a plate's, or a plate that there is not.
    """
    trace, origins = _run(model, args, kwargs)
    refuse(trace, create_plates)
    sites = {site["name"]: site for site in sampled(trace) if not is_computed(site)}
    _check_plates(features, sites.values())
    with poutine.block():
        blanket: Any = get_dependencies(model, args, kwargs)["posterior_dependencies"]
    graph = _Graph(sites, {(a, b) for a, others in blanket.items() for b in others})
    latent = [name for name, site in sites.items() if is_latent(site)]
    local = [name for name in latent if _is_local(name, graph, origins, features)]
    order = [name for name in latent if name not in local] + local
    found = []
    for name in local:
        before = order[: order.index(name)]
        reached, stopped = graph.reached(name, before)
        inner = next((p.name for p in reversed(graph.stacks[name]) if p.name in features), None)
        if inner is None:
            rows = _rows(name, reached, graph.stacks, origins)
        else:
            rows = (_own_rows(inner, graph.stacks[name], features, args, kwargs),)
        plates = tuple(plate.name for plate in graph.stacks[name])
        found.append(LocalSite(name, plates, rows, tuple(n for n in before if n in stopped)))
    return found


class _Graph:
    """Which sites of a model say something of one another directly.

    Arguments:
        sites: those with a law, by name.
        pairs: of names.
    """

    def __init__(self, sites: Mapping[str, Any], pairs: Collection[tuple[str, str]]) -> None:
        self.sites = sites
        self.stacks = {name: _stack(site) for name, site in sites.items()}
        self.near: dict[str, set[str]] = {name: set() for name in sites}
        for one, other in pairs:
            self.near[one].add(other)
            self.near[other].add(one)

    def reached(self, name: str, known: Collection[str]) -> tuple[list[str], set[str]]:
        """Return what says something of a site once the values of some others are known.

        The way to an observation may lead over latent variables of the same plates that are not
        known yet: the mean of a group is learned from its members' data, by way of the members.

        Returns:
            The site and all on the way, and those of the known ones at which ways ended.
        """
        own = {plate.name for plate in self.stacks[name]}
        found, stopped, ahead = {name: None}, set(), [name]
        while ahead:
            for other in sorted(self.near[ahead.pop()]):
                if other in known:
                    stopped.add(other)
                elif other not in found and own & {p.name for p in self.stacks[other]}:
                    found[other] = None
                    if is_latent(self.sites[other]):
                        ahead.append(other)
        return list(found), stopped


def _is_local(
    name: str,
    graph: _Graph,
    origins: Mapping[str, Mapping[str, Tensor]],
    features: Collection[str],
) -> bool:
    if any(plate.name in features for plate in graph.stacks[name]):
        return True
    return bool(_rows(name, graph.reached(name, ())[0], graph.stacks, origins))


def _run(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    """Return a trace, and the arguments that the law of each site, or its value, comes from."""
    names = Names(model)
    known = tensors(names, args, kwargs)
    marked, by_name = changed(
        names, args, kwargs, lambda name, tensor: ProvenanceTensor(tensor, frozenset({name}))
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        trace = poutine.block(poutine.trace(model).get_trace)(*marked, **by_name)
        origins = {}
        for site in sampled(trace):
            if is_computed(site):
                continue
            found = get_provenance(site["fn"].log_prob(site["value"]))
            # A law may forget where its point came from; the point itself does not.
            found = found | get_provenance(site["value"]) if is_data(site) else found
            origins[site["name"]] = {name: known[name] for name in known if name in found}
    return trace, origins


def _stack(site: Any) -> list[Any]:
    """Return the plates of a site, outermost first."""
    return sorted((f for f in site["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)


def _rows(
    name: str, near: list[str], stacks: Mapping[str, list[Any]], origins: Mapping[str, Any]
) -> tuple[DataRows, ...]:
    """Return the arguments that are data of a site: along plates that it is in."""
    own = {plate.name for plate in stacks[name]}
    found: dict[str, DataRows] = {}
    for other in near:
        for argument, tensor in origins[other].items():
            plates = _along(tensor, stacks[other])
            if argument not in found and own & {plate.name for plate in plates}:
                names = tuple(plate.name for plate in plates)
                found[argument] = DataRows(argument, names, tensor.shape[len(plates) :])
    return tuple(found.values())


def _along(tensor: Tensor, stack: list[Any]) -> tuple[Any, ...]:
    """Return as many of the plates as the leading dimensions of a tensor can be along.

    Raises:
        ValueError: if they can be along these plates or those.
    """
    for count in range(min(len(stack), tensor.ndim), 0, -1):
        fits = []
        for plates in combinations(stack, count):
            sizes = [(plate.full_size or plate.size, plate.size) for plate in plates]
            if all(n in s for n, s in zip(tensor.shape, sizes)):
                fits.append(plates)
        if len(fits) > 1:
            which = [tuple(plate.name for plate in plates) for plates in fits]
            raise ValueError(
                f"an argument of shape {tuple(tensor.shape)} may be along the plates {which}, "
                "which have the same sizes: make the guide with data of other sizes, or say by "
                "`features` what is read"
            )
        if fits:
            return fits[0]
    return ()


def _own_rows(
    plate: str,
    stack: list[Any],
    features: Mapping[str, Callable[..., Tensor]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> DataRows:
    """Return what a function of the user's returns for a plate and those around it."""
    value = features[plate](*args, **kwargs)
    around = stack[: 1 + [p.name for p in stack].index(plate)]
    along = _along(value, around) if isinstance(value, Tensor) else ()
    if len(along) < 1 or along[-1].name != plate:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        sizes = [p.full_size or p.size for p in around]
        raise ValueError(
            f"`features[{plate!r}]` must return a tensor with a row for each member of the plate, "
            f"of shape ({', '.join(map(str, sizes))}, ...); got {shape}"
        )
    return DataRows(plate, tuple(p.name for p in along), value.shape[len(along) :])


def _check_plates(features: Mapping[str, Any], sites: Collection[Any]) -> None:
    known = sorted({plate.name for site in sites for plate in _stack(site)})
    unknown = [name for name in features if name not in known]
    if unknown:
        raise ValueError(f"`features` has {unknown}, which are no plates of the model: {known}")
