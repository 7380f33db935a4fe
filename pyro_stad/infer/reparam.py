r"""``FlowReparam``: learned priors in the coordinates in which a sampler moves well.

Two forms of a site :math:`\theta \sim` prior:

- *noise*: :math:`z \sim N(0, I)`, :math:`\theta = T(z)`. No density is asked for and no divergence
  computed; the likelihood sees :math:`T(z)`. Where data say little, the posterior of z is nearly
  normal, whatever the prior; where they say much, it is as bent as T.
- *whitened*: x has the flow's density in its whitened coordinates, and :math:`\theta` is an affine
  map of it, and the bijection of the bounds. It costs a density, as :math:`\theta` itself does, but
  is free of its scales and correlations. Of a conditional flow it is non-centred: x does not move
  when the context does.

A cut (``FlowPrior.truncate``) is a factor of the model then, zero or one over the mass inside.

References:
    Kingma and Welling (2014), Efficient Gradient-Based Inference through Transformations between
    Bayes Nets and Neural Nets; Papaspiliopoulos, Roberts and Skoeld (2007), A General Framework
    for the Parametrization of Hierarchical Models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from pyro.infer.reparam.strategies import Strategy
from torch import Tensor
from torch.distributions import Independent, Transform, TransformedDistribution

from pyro_stad._checks import check_choice
from pyro_stad.density import (
    NOISE_OF,
    FlowPrior,
    OneStepGenerator,
    TruncatedPrior,
    WhitenedPrior,
)

__all__ = ["FORMS", "FlowReparam"]

FORMS = ("noise", "whitened")


class Split(NamedTuple):
    """A law as the image of another one.

    Attributes:
        base: the law of the base site.
        transforms: the maps from its values to those of the site, in order.
        cuts: what bars points of the site, each a function from places on the way, after so many
            of the transforms, to logarithms of factors.
    """

    base: Any
    transforms: tuple[Transform, ...]
    cuts: tuple[tuple[int, Callable[[Tensor], Tensor]], ...] = ()

    def forward(self, value: Tensor) -> Tensor:
        """Carry values of the base site to those of the site."""
        for transform in self.transforms:
            value = transform(value)
        return value

    def back(self, value: Tensor) -> Tensor:
        """Carry values of the site to those of the base site."""
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value

    def factors(self, value: Tensor) -> list[Tensor]:
        """Return the logarithms of the factors of the cuts, at a value of the base site."""
        found = []
        for count, cut in self.cuts:
            place = value
            for transform in self.transforms[:count]:
                place = transform(place)
            found.append(cut(place))
        return found


class FlowReparam(Strategy, Reparam):  # type: ignore[misc]
    """Reparametrise learned priors: as noise, or in their whitened coordinates.

    One object serves as a strategy, for all latent sites that have a learned prior, as in
    ``FlowReparam()(model)`` or ``poutine.reparam(model, config=FlowReparam())``, and for single
    sites, as in ``poutine.reparam(model, config={"theta": FlowReparam("whitened")})``. The base
    site of ``theta`` is ``theta_base``; ``theta`` is computed from it. Observed sites are left as
    they are.

    Arguments:
        form: ``"noise"`` or ``"whitened"``; see :mod:`pyro_stad.infer.reparam`.

    Example:
        >>> import pyro_stad
        >>> source = torch.Generator().manual_seed(0)
        >>> draws = torch.randn(400, 2, generator=source)
        >>> prior = pyro_stad.fit(draws, progress=False, budget="tiny")
        >>> model = FlowReparam()(lambda: pyro.sample("theta", prior))
        >>> list(pyro.poutine.trace(model).get_trace().nodes)[1:-1]
        ['theta_base', 'theta']
    """

    def __init__(self, form: str = "noise") -> None:
        super().__init__()
        check_choice(form, "form", FORMS)
        self.form = form

    def __repr__(self) -> str:
        return f"FlowReparam({self.form!r})"

    def configure(self, msg: Any) -> FlowReparam | None:
        """Return what reparametrises a site: this, for learned priors that are not observed."""
        if msg["is_observed"]:
            return None
        try:
            split(msg["fn"], self.form, msg["name"])
        except TypeError:  # Not learned, or masked: it works as it is.
            return None
        return self

    def apply(self, msg: Any) -> Any:
        """Replace a site by a base site and a map of it.

        Raises:
            TypeError: if the law of the site has no learned prior inside, or one that is masked.
        """
        if msg["is_observed"]:
            return {key: msg[key] for key in ("fn", "value", "is_observed")}
        fn, value = msg["fn"], msg["value"]
        parts = split(fn, self.form, msg["name"])
        start = None
        # What only a default initialisation has put there is not to be kept: noise is drawn anew.
        if value is not None and getattr(value, "_pyro_custom_init", True):
            with torch.no_grad():
                start = parts.back(value)
        else:
            value = None
        base = self._wrap(parts.base, max(fn.event_dim, parts.base.event_dim))
        infer: Any = {"is_observed": False}
        if self.form == "noise":
            # It does not show whose it is, and others have to know.
            infer[NOISE_OF] = fn
        at = pyro.sample(f"{msg['name']}_base", base, obs=start, infer=infer)
        value = parts.forward(at) if value is None else value
        for index, factor in enumerate(parts.factors(at)):
            # Of a batch that the site takes for one event, all at once.
            inner = factor.ndim - (value.ndim - fn.event_dim)
            factor = factor.sum(tuple(range(-inner, 0))) if inner > 0 else factor
            pyro.factor(f"{msg['name']}_cut_{index}", factor)
        return {
            "fn": dist.Delta(value, event_dim=fn.event_dim).mask(False),
            "value": value,
            "is_observed": True,
        }


@singledispatch
def split(fn: Any, form: str, name: str) -> Split:
    """Return a law with a learned prior inside as the image of noise, or of a whitened law.

    Raises:
        TypeError: if there is none, or a law on the way that is no map of it.
    """
    raise TypeError(
        f"FlowReparam is for learned priors, alone, in plates, cut, or behind transforms; site "
        f"{name!r} has a {type(fn).__name__}. Leave the site out of `config`"
    )


@split.register
def _(fn: FlowPrior, form: str, name: str) -> Split:
    if form == "noise":
        return Split(fn.base_dist, tuple(fn.transforms))
    return Split(WhitenedPrior(fn), tuple(fn.transforms[1:]))


@split.register
def _(fn: OneStepGenerator, form: str, name: str) -> Split:
    if form != "noise":
        raise TypeError(
            f"FlowReparam({form!r}) needs a density, and site {name!r} has a generator of one "
            "step. Use FlowReparam('noise')"
        )
    return Split(fn.base_dist, tuple(fn.transforms))


@split.register
def _(fn: TruncatedPrior, form: str, name: str) -> Split:
    inner = split(fn.prior, form, name)

    def cut(value: Tensor) -> Tensor:
        log_mass = torch.as_tensor(fn.mass.value).log().to(value)
        return torch.where(fn.contains(value), -log_mass, -torch.inf)

    return inner._replace(cuts=(*inner.cuts, (len(inner.transforms), cut)))


@split.register
def _(fn: Independent, form: str, name: str) -> Split:
    return split(fn.base_dist, form, name)


@split.register
def _(fn: TransformedDistribution, form: str, name: str) -> Split:
    inner = split(fn.base_dist, form, name)
    return inner._replace(transforms=(*inner.transforms, *fn.transforms))
