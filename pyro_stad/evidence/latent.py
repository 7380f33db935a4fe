r"""A Pyro model as a likelihood of standard normal noise.

Every latent site is a map of standard normal noise: a flow prior by construction, a normal by
:math:`\mu + L u`, others by their quantiles, :math:`F^{-1}(\Phi(u))`. Site by site, in the order of
the model, so that priors may depend on earlier sites. With u all the noise of all the sites,

.. math:: Z = \int p(y|\theta)\, p(\theta)\, d\theta = E_{u \sim N(0, I)}[L(u)],

in which no prior density occurs: of a flow prior it takes the flow, and never its divergence.

The model is run once for many u, in a plate of its own to the left of all others, as Pyro's
vectorised inference does: observed sites must broadcast over it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    Uniform,
)

from pyro_stad.density import FLAGGED, FlowPrior, noise_tail

__all__ = ["LatentProblem", "from_normal"]

_PLATE = "_evidence_draws"


def from_normal(fn: Distribution, u: Tensor) -> Tensor:
    """Carry standard normal ``u`` to draws from ``fn``; both of its batch and event shape.

    Raises:
        NotImplementedError: if ``fn`` is neither a map of normals nor has quantiles.
    """
    if isinstance(fn, Independent):
        return from_normal(fn.base_dist, u)
    if isinstance(fn, Normal):
        return fn.loc + fn.scale * u
    if isinstance(fn, MultivariateNormal):
        return fn.loc + (fn.scale_tril @ u[..., None])[..., 0]
    if isinstance(fn, TransformedDistribution) and _maps_one_to_one(fn):
        x = from_normal(fn.base_dist, u)
        for transform in fn.transforms:
            x = transform(x)
        return x
    # The far tails of float arithmetic: quantiles of 0 and 1 may be infinite.
    smallest = torch.finfo(u.dtype).eps
    return fn.icdf(torch.special.ndtr(u).clamp(smallest, 1 - smallest))


def _maps_one_to_one(fn: TransformedDistribution) -> bool:
    """Whether ``fn`` maps noise one to one, and not a uniform, which has quantiles anyway."""
    base = fn.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    return not isinstance(base, Uniform) and all(t.bijective for t in fn.transforms)


class _FromNormal(Messenger):
    """Set every latent site from the next columns of ``u``, shape ``(N, size)``."""

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.u = u

    def __enter__(self) -> Any:
        self.at = 0
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if not _is_latent(msg):
            return
        fn, points = msg["fn"], len(self.u)
        shape = fn.batch_shape + fn.event_shape
        size = math.prod(shape) // points
        block = self.u[:, self.at : self.at + size]
        self.at += size
        msg["value"] = from_normal(fn, block.reshape(shape))
        msg["done"] = True


def _is_latent(site: Any) -> bool:
    deterministic = site["infer"].get("_deterministic", False)
    return not (site["is_observed"] or deterministic or site_is_subsample(site))


class LatentProblem:
    """The log-likelihood of a model as a function of standard normal noise.

    Arguments:
        model: a Pyro model whose latent sites are continuous.
        args, kwargs: what it is called with.

    Attributes:
        size: number D of noise variables.
        data: fingerprint of all observed values, whatever their sites are called.
        sites: shapes of the latent sites, by name.
        calls: likelihoods that were evaluated.

    Raises:
        ValueError: if the model has no latent site, no observation, or a latent site that is
            discrete or not a map of normal noise; the site is named.
    """

    def __init__(self, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        with torch.random.fork_rng(devices=[]), torch.no_grad(), poutine.block():
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        nodes: list[Any] = [s for s in trace.nodes.values() if s["type"] == "sample"]
        nodes = [site for site in nodes if not site_is_subsample(site)]
        latent: list[Any] = [site for site in nodes if _is_latent(site)]
        _check_sites(latent, nodes)
        self.sites: dict[str, tuple[int, ...]] = {
            site["name"]: tuple(site["value"].shape) for site in latent
        }
        self.size = sum(site["value"].numel() for site in latent)
        for site in latent:
            _check_map(site)
        self.flows = _flow_columns(latent)
        self.data = _fingerprint([site for site in nodes if site["is_observed"]])
        self.like: Tensor = latent[0]["value"]
        self.depth = max(len(site["fn"].batch_shape) for site in nodes)
        self.calls = 0
        self._check_rows()

    def _check_rows(self) -> None:
        """Refuse a model whose rows see each other, as one that picks an element of a site does."""
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(3, self.size, generator=generator).to(self.like)
        advice = (
            "Index from the right, as in theta[..., 0], and declare dimensions of data with "
            "plates or to_event"
        )
        with torch.no_grad():
            alone = torch.cat([self.log_likelihood(row[None]) for row in u])
            try:
                together = self.log_likelihood(u)
            except RuntimeError as error:
                raise ValueError(
                    f"the model runs for one draw, but not for a plate of them. {advice}"
                ) from error
        if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the model does not broadcast over draws: three draws have the log-likelihoods "
                f"{together.tolist()} together and {alone.tolist()} alone. {advice}"
            )

    def trace(self, u: Tensor) -> Any:
        """Return the model's trace at noise ``u``, shape ``(N, D)``."""

        def vectorised() -> None:
            with pyro.plate(_PLATE, len(u), dim=-1 - self.depth):
                self.model(*self.args, **self.kwargs)

        with _FromNormal(u):
            return poutine.trace(vectorised).get_trace()

    def log_likelihood(self, u: Tensor) -> Tensor:
        """Return the log-likelihood of noise ``u``, shape ``(N, D)``: ``(N,)``.

        NaN is minus infinity: a point at which the model can't be evaluated has no mass.
        """
        self.calls += len(u)
        trace = self.trace(u)
        total = u.new_zeros(len(u))
        trace.compute_log_prob(lambda name, site: site["is_observed"])
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site["is_observed"]:
                total = total + self._rows(name, site["log_prob"], len(u))
        return torch.nan_to_num(total, nan=-math.inf, posinf=math.inf, neginf=-math.inf)

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Return the latent sites at noise ``u``, each ``(N, ...)``."""
        nodes = self.trace(u).nodes
        return {
            name: nodes[name]["value"].reshape(len(u), *shape) for name, shape in self.sites.items()
        }

    def extrapolated(self, u: Tensor) -> Tensor:
        """Return which rows of noise are in the outermost thousandth of a flow prior, ``(N,)``."""
        flagged = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        for columns, features in self.flows:
            tail = noise_tail(u[:, columns].reshape(len(u), -1, features))
            flagged |= (tail < FLAGGED).any(-1)
        return flagged

    def _rows(self, name: str, log_prob: Tensor, points: int) -> Tensor:
        """Sum all dimensions but that of the draws."""
        missing = self.depth + 1 - log_prob.ndim
        log_prob = log_prob.reshape((1,) * missing + tuple(log_prob.shape))
        if log_prob.shape[0] != points:
            raise ValueError(
                f"site {name!r} has a log-likelihood of shape {tuple(log_prob.shape)}, expected "
                f"{points} draws in its first dimension: the model must broadcast over a plate "
                "to the left of its own"
            )
        return log_prob.reshape(points, -1).sum(-1)


def _flow_columns(latent: list[Any]) -> list[tuple[slice, int]]:
    """Return the columns of noise that flow priors take, and their numbers of features."""
    found, at = [], 0
    for site in latent:
        size = site["value"].numel()
        if isinstance(site["fn"], FlowPrior):
            found.append((slice(at, at + size), len(site["fn"].names)))
        at += size
    return found


def _fingerprint(observed: list[Any]) -> str:
    """Return a digest of observed values; what only adds a factor observes nothing."""
    values = [
        torch.as_tensor(site["value"]).detach().double().cpu().reshape(-1)
        for site in observed
        if not isinstance(site["fn"], Unit)
    ]
    data = torch.cat([torch.zeros(0, dtype=torch.float64), *values]).sort().values
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _check_sites(latent: list[Any], nodes: list[Any]) -> None:
    if not latent:
        raise ValueError("the model has no latent site, so that there is nothing to integrate")
    if len(latent) == len(nodes):
        raise ValueError("the model observes nothing, so that its evidence is one")
    for site in latent:
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"latent site {site['name']!r} is discrete ({type(site['fn']).__name__}); sum it "
                "out in the model"
            )


def _check_map(site: Any) -> None:
    fn = site["fn"]
    try:
        with torch.no_grad():
            value = from_normal(fn, torch.zeros_like(site["value"]))
    except NotImplementedError as error:
        raise ValueError(
            f"latent site {site['name']!r} has a {type(fn).__name__} for a prior, which is neither "
            "a map of normal noise nor has quantiles; write it as a transformed normal or uniform"
        ) from error
    if value.shape != site["value"].shape:
        raise ValueError(
            f"latent site {site['name']!r} has shape {tuple(site['value'].shape)}, but its prior, "
            f"as a map of normal noise, {tuple(value.shape)}; a {type(fn).__name__} that changes "
            "the number of coordinates can't be used"
        )
