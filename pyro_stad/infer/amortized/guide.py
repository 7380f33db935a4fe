r"""``AmortizedGuide``: a guide that reads each datum, in place of parameters for each.

.. math:: q(z_i \mid x_i, z_{<i}) = \text{posterior}(\text{encoder}(x_i, z_{<i})),

with one network for all members of a plate. What each network looks at is read off the model
(:mod:`pyro_stad.infer.amortized.sources`): the data that a latent variable's posterior depends on,
and the latent variables before it, so that the guide has the correlations of the posterior in
whatever family. Local variables are drawn in the order of the model, so that estimator B of Kingma
and Welling is right as well: no parent of a variable in the model comes after it in the guide.

Global variables are left to one of Pyro's own guides, and drawn first. Of one that has a local
variable for a parent, estimator B is not right; Pyro warns of the order then.

References:
    Kingma and Welling (2014), Auto-Encoding Variational Bayes; Webb et al. (2018), Faithful
    Inversion of Generative Models for Effective Amortized Inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor, nn

from pyro_stad._checks import check_choice, check_count, is_transformed
from pyro_stad.infer.amortized.arguments import Names, tensors
from pyro_stad.infer.amortized.coordinates import Unbounded, unbounded_sites
from pyro_stad.infer.amortized.encoder import Encoder, RowEncoder, perceptron
from pyro_stad.infer.amortized.plates import Plates
from pyro_stad.infer.amortized.posteriors import POSTERIORS, AbstractPosterior
from pyro_stad.infer.amortized.refusals import check_finite_rows, check_present
from pyro_stad.infer.amortized.sources import LocalSite, read_model
from pyro_stad.infer.amortized.weighing import WeighedPosteriors, weigh
from pyro_stad.model.sites import is_latent, sampled

__all__ = ["AmortizedGuide"]


class AmortizedGuide(AutoGuide):
    """A guide for models of many data, each with latent variables of its own.

    It is used as Pyro's guides are: the first call, with the model's arguments, makes the networks,
    and ``SVI`` trains them. The data must be arguments of the model, with the plates of the model
    as their leading dimensions; called with other data, of any number, the guide returns their
    posteriors. A learned prior is best seen by it in noise: give it ``FlowReparam()(model)``, and
    the same to ``SVI``.

    Arguments:
        model: the model.
        posterior: ``"mean_field"``, ``"low_rank"``, ``"flow"``, or one of their objects, such as
            ``LowRank(8)``: the family of each local variable.
        encoder: from the shape of a row of data, and a width, to a network that maps rows
            ``(B, *shape)`` to embeddings ``(B, width)``; None for a perceptron.
        width: of embeddings and hidden layers.
        features: by plate, functions of the model's arguments that return rows
            ``(plate sizes, ...)`` for the networks in place of the arguments themselves.
        global_guide: one of Pyro's guides, for the global variables: from a model to a guide.
        create_plates: as of Pyro's guides: a function of the arguments that returns the plates
            whose subsamples the caller has chosen.

    Raises:
        TypeError, ValueError: at once for options, in the first call for models that can't be used.

    Example:
        >>> import pyro_stad
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> guide = pyro_stad.AmortizedGuide(model)
        >>> svi = pyro.infer.SVI(
        ...     model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.TraceMeanField_ELBO()
        ... )
        >>> x = torch.randn(100)
        >>> for _ in range(3):
        ...     loss = svi.step(x)
        >>> guide(torch.zeros(7))["z"].shape  # data that it has never seen
        torch.Size([7])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        posterior: str | AbstractPosterior = "mean_field",
        encoder: Callable[[torch.Size, int], nn.Module] | None = None,
        width: int = 128,
        features: Mapping[str, Callable[..., Tensor]] | None = None,
        global_guide: Callable[[Callable[..., Any]], AutoGuide] = AutoNormal,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, create_plates=create_plates)
        if not callable(model):
            raise TypeError(f"`model` must be a Pyro model; got {type(model).__name__}")
        check_count(width, "width")
        self.family = _family(posterior)
        self.width, self.features = width, dict(features or {})
        self.make_encoder = perceptron if encoder is None else encoder
        self.make_global = global_guide
        self.local: list[LocalSite] = []

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        # Kept: a copy of a guide has no model, as Pyro's guides have none then.
        self.names = Names(self.model)
        self.local = read_model(self.model, args, kwargs, self.features, self.create_plates)
        if not self.local:
            raise ValueError(_nothing_local(self.prototype_trace))
        rows = {each.name: each for site in self.local for each in site.rows}
        data = self._data(args, kwargs)
        self.where = Plates(self.prototype_trace, list(rows.values()), data)
        coordinates = unbounded_sites(self.model, args, kwargs)
        self.coordinates = nn.ModuleList(coordinates.values())
        self._place = {name: index for index, name in enumerate(coordinates)}
        self.recognisers = nn.ModuleList(self._recogniser(site, data) for site in self.local)
        local = {site.name for site in self.local}
        others = [name for name in coordinates if name not in local]
        if others:
            self.globals = self.make_global(poutine.block(self.model, expose=others))

    def _recogniser(self, site: LocalSite, data: Mapping[str, Tensor]) -> Recogniser:
        own = self._unbounded(site.name)
        networks = []
        for rows in site.rows:
            flat = data[rows.name].reshape(-1, *rows.shape).to(own.loc)
            check_finite_rows(rows.name, flat)
            shape = rows.shape or torch.Size((1,))
            networks.append(RowEncoder(flat, self.make_encoder(shape, self.width)))
        upstream = sum(self._numbers(name, site) for name in site.upstream)
        encoder = Encoder(networks, upstream, self.width)
        return Recogniser(encoder, self.family.build(own.features, self.width)).to(own.loc)

    def _numbers(self, upstream: str, site: LocalSite) -> int:
        """Return how many numbers of an earlier variable one member of a site looks at."""
        value = self.where.values[upstream]
        return self._aligned(upstream, value, site).shape[-1]

    def _unbounded(self, name: str) -> Unbounded:
        return cast(Unbounded, self.coordinates[self._place[name]])

    def _aligned(self, upstream: str, value: Tensor, site: LocalSite) -> Tensor:
        numbers = self._unbounded(upstream).standardised(value)
        return self.where.aligned(upstream, numbers, site.plates)

    def _data(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the arguments by name, and what the functions of the user return, by plate."""
        found = tensors(self.names, args, kwargs)
        found |= {name: read(*args, **kwargs) for name, read in self.features.items()}
        check_present([rows.name for site in self.local for rows in site.rows], found)
        return found

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Return the data of a call, with plates made for as many of them."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        data = self._data(args, kwargs)
        self._prototype_frames.update(self.where.resized(data))
        self._create_plates(*args, **kwargs)
        return data

    def _check_prototype(self, part_trace: Any) -> None:
        """Accept the guide of the global variables: it is made from the model itself."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latent variables, given the arguments of the model: a tensor for each site."""
        data = self._prepared(args, kwargs)
        values = dict(self.globals(*args, **kwargs)) if hasattr(self, "globals") else {}
        return self._recognised(data, values, _drawn)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what ``state_dict`` has returned; the guide must have been called once before.

        Pyro's parameter store is not enough: how data and latent variables are standardised is in
        the state alone.
        """
        if self.prototype_trace is None:
            raise ValueError(
                "the guide has no networks yet to load into: call it once, with data of the same "
                "shapes as in training, and then load"
            )
        return super().load_state_dict(state_dict, *args, **kwargs)

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the median of each latent variable, given the medians of those before it.

        Of a flow, what the median of its base is carried to.
        """
        with torch.no_grad(), poutine.block():
            data = self._prepared(args, kwargs)
            known = self.globals.median(*args, **kwargs) if hasattr(self, "globals") else {}
            return self._recognised(data, dict(known), _middle)

    def _recognised(
        self,
        data: Mapping[str, Tensor],
        values: dict[str, Tensor],
        pick: Callable[..., Tensor],
    ) -> dict[str, Tensor]:
        """Return values of global variables, and those picked from the posterior of each datum."""
        for site, network in zip(self.local, cast(Iterable[Recogniser], self.recognisers)):
            unbounded = self._unbounded(site.name)
            rows = [self.where.members(r, data[r.name], self.plates) for r in site.rows]
            for each, value in zip(site.rows, rows):
                if not is_transformed(value):
                    check_finite_rows(each.name, value)
            upstream = [self._aligned(name, values[name], site) for name in site.upstream]
            pool = partial(self.where.pooled, site)
            embedding = network.encoder(rows, pool, upstream)
            with ExitStack() as stack:
                for name in site.plates:
                    stack.enter_context(self.plates[name])
                values[site.name] = pick(site.name, network.posterior, embedding, unbounded)
        return values

    def importance(
        self, *args: Any, draws: int = 1000, seed: int = 0, progress: bool = True, **kwargs: Any
    ) -> WeighedPosteriors:
        """Weigh draws of each datum's posterior to the model's own; see ``WeighedPosteriors``.

        Arguments:
            args, kwargs: of the model, with data that the guide need not have seen.
            draws: for each datum.
            seed: of the draws.
            progress: whether to show a bar.

        Raises:
            ValueError: if the model has global latent variables, or a plate takes a subsample.
        """
        if self.prototype_trace is None:
            raise ValueError("the guide has no networks yet: train it by SVI first")
        if self._model is None:
            raise ValueError("a copy of a guide has no model to weigh by: use the guide itself")
        return weigh(self, args, kwargs, draws=draws, seed=seed, progress=progress)


class Recogniser(nn.Module):
    """The networks of one latent variable: what reads its data, and the posterior of that."""

    def __init__(self, encoder: Encoder, posterior: AbstractPosterior) -> None:
        super().__init__()
        self.encoder, self.posterior = encoder, posterior


def _drawn(
    name: str, posterior: AbstractPosterior, embedding: Tensor, unbounded: Unbounded
) -> Tensor:
    law = posterior.law(embedding, unbounded.loc, unbounded.scale)
    return pyro.sample(name, unbounded.carried(law))


def _middle(
    name: str, posterior: AbstractPosterior, embedding: Tensor, unbounded: Unbounded
) -> Tensor:
    value = posterior.middle(embedding, unbounded.loc, unbounded.scale)
    for transform in unbounded.maps():
        value = transform(value)
    return value


def _family(posterior: Any) -> AbstractPosterior:
    if isinstance(posterior, AbstractPosterior):
        return posterior
    check_choice(posterior, "posterior", list(POSTERIORS))
    return POSTERIORS[posterior]


def _nothing_local(trace: Any) -> str:
    sites = [site["name"] for site in sampled(trace) if is_latent(site)]
    return (
        f"no latent variable of the model, of {sites}, is in a plate whose data are an argument: "
        "pass the data as arguments, with the plates as their leading dimensions, or name "
        "`features` of a plate. A model with global variables alone needs no networks; Pyro's "
        "AutoNormal is a guide for it"
    )
