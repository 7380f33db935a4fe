r"""The oracle: models whose evidence is known, in closed form or by quadrature in one dimension.

- *normal*: N(0, I), every coordinate observed as 1 with variance 1/4.
- *mixture*: a flow prior on the exact field of a Gaussian mixture, two linear combinations
  :math:`y = A x + e` observed: a mixture of :math:`N(A m_k, A C_k A^T + I/4)`.
- *mean and precision*: an exponential precision, a normal mean given it, four data.
- *funnel*: a log variance N(0, 9) and D - 1 normals of that variance, each observed as 1.
- *shells*: two Gaussian shells of radius 2 and width 0.1, centred at -3.5 and 3.5 on the first
  axis, in the box (-6, 6)^D.
- *proportion*: 3 successes of 10 with a uniform probability; 1/11 for any number of them.
- *narrow and wide*: two normal modes of equal mass in the box (-8, 8)^D, one of width 1 at -2, one
  of width 1/20 at 2.
- *Rosenbrock*: :math:`\sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2`, a valley in the box (-5, 5)^D,
  whose evidence is a product of integrals over one coordinate after the other.
- *spike*: :math:`1 / \max(|x|, 10^{-8})` in (-1, 1), whose evidence is :math:`1 - \log 10^{-8}`.

References:
    Neal (2003), Slice Sampling (funnel); Feroz, Hobson and Bridges (2009), MultiNest (shells);
    Lange (2023), nautilus: boosting Bayesian importance nested sampling with deep learning
    (Rosenbrock).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

__all__ = ["PROBLEMS", "KnownEvidence"]


class KnownEvidence(NamedTuple):
    """A model, what it observes, and the logarithm of its evidence."""

    model: Callable[..., None]
    data: tuple[Tensor, ...]
    log_z: float


def normal(size: int) -> KnownEvidence:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(y.new_zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.ones(size)
    return KnownEvidence(model, (y,), dist.Normal(0.0, 1.25**0.5).log_prob(y).sum().item())


def mixture(size: int) -> KnownEvidence:
    weights, means, covariances = parts = random_mixture(size)
    names = tuple(f"x{i}" for i in range(size))
    layout = Layout(names, tuple((name, ()) for name in names))
    field = GaussianMixtureField(OptimalTransport(), *parts)
    double = torch.float64
    flow = FlowODE(field, Exact(), RK4(16))
    loc, tril = torch.zeros(size, dtype=double), torch.eye(size, dtype=double)
    prior = FlowPrior(flow, loc, tril, layout)
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(2, size, generator=generator, dtype=double) / size**0.5

    def model(y: Tensor) -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x @ matrix.mT, 0.5).to_event(1), obs=y)

    y = torch.tensor([0.8, -0.4], dtype=double)
    noise = 0.25 * torch.eye(2, dtype=double)
    components = MultivariateNormal(means @ matrix.mT, matrix @ covariances @ matrix.mT + noise)
    log_z = torch.logsumexp(components.log_prob(y) + weights.log(), 0).item()
    return KnownEvidence(model, (y,), log_z)


def mean_and_precision(size: int = 2) -> KnownEvidence:
    def model(y: Tensor) -> None:
        precision = pyro.sample("precision", dist.Exponential(torch.tensor(1.0)))
        mean = pyro.sample("mean", dist.Normal(0.0, precision.rsqrt()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)

    y = torch.tensor([0.3, -1.1, 0.7, 1.9])
    n, mean = len(y), y.mean()
    rate = 1 + 0.5 * (y - mean).square().sum() + 0.5 * n * mean**2 / (1 + n)
    log_z = math.lgamma(1 + n / 2) - (1 + n / 2) * rate.log() - 0.5 * math.log(1 + n)
    return KnownEvidence(model, (y,), (log_z - 0.5 * n * math.log(2 * math.pi)).item())


def funnel(size: int) -> KnownEvidence:
    def model(y: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(y.new_zeros(()), 3.0))
        spread = (0.5 * t[..., None]).exp().expand(*t.shape, size - 1)
        x = pyro.sample("x", dist.Normal(0.0, spread).to_event(1))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    t = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    each = dist.Normal(0.0, (1 + t.exp()).sqrt()).log_prob(torch.ones_like(t))
    whole = dist.Normal(0.0, 3.0).log_prob(t) + (size - 1) * each
    log_z = (torch.logsumexp(whole, 0) + math.log(80 / 400_000)).item()
    return KnownEvidence(model, (torch.ones(size - 1),), log_z)


def shells(size: int) -> KnownEvidence:
    width, radius = 0.1, 2.0

    def model() -> None:
        box = dist.Uniform(-6.0, 6.0).expand([size]).to_event(1)
        x = pyro.sample("x", box)
        first = torch.eye(size).to(x)[0]
        shell = [
            dist.Normal(radius, width).log_prob((x - centre * first).square().sum(-1).sqrt())
            for centre in (-3.5, 3.5)
        ]
        pyro.factor("shells", torch.logaddexp(*shell))

    # Surface of the unit sphere, and the integral over the radius.
    surface = math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)
    r = torch.linspace(1e-6, radius + 12 * width, 200_001, dtype=torch.float64)
    whole = dist.Normal(radius, width).log_prob(r) + (size - 1) * r.log()
    radial = (torch.logsumexp(whole, 0) + (r[1] - r[0]).log()).item()
    return KnownEvidence(model, (), math.log(2) + surface + radial - size * math.log(12.0))


def narrow_and_wide(size: int) -> KnownEvidence:
    def model() -> None:
        x = pyro.sample("x", dist.Uniform(-8.0, 8.0).expand([size]).to_event(1))
        modes = [
            dist.Normal(centre, width).log_prob(x).sum(-1)
            for centre, width in ((-2.0, 1.0), (2.0, 0.05))
        ]
        pyro.factor("modes", torch.logaddexp(*modes) - math.log(2.0))

    return KnownEvidence(model, (), -size * math.log(16.0))


def rosenbrock(size: int) -> KnownEvidence:
    def model() -> None:
        x = pyro.sample("x", dist.Uniform(-5.0, 5.0).expand([size]).to_event(1))
        left, right = x[..., :-1], x[..., 1:]
        valley = 100 * (right - left.square()).square() + (1 - left).square()
        pyro.factor("valley", -valley.sum(-1))

    # From the last coordinate to the first: what is left to integrate depends on one number.
    x = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    step = x[1] - x[0]
    kernel = step * torch.exp(-100 * (x - x[:, None].square()).square() - (1 - x[:, None]).square())
    rest, log_z = torch.ones_like(x), -size * math.log(10.0)
    for _ in range(size - 1):
        rest = kernel @ rest
        log_z += rest.max().log().item()
        rest = rest / rest.max()
    return KnownEvidence(model, (), log_z + (step * rest.sum()).log().item())


def proportion(size: int = 1) -> KnownEvidence:
    def model(successes: Tensor) -> None:
        share = pyro.sample("share", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.sample("successes", dist.Binomial(10, share), obs=successes)

    return KnownEvidence(model, (torch.tensor(3.0),), -math.log(11))


def spike(size: int = 1) -> KnownEvidence:
    def model() -> None:
        x = pyro.sample("x", dist.Uniform(torch.tensor(-1.0), 1.0))
        pyro.factor("spike", -x.abs().clamp_min(1e-8).log())

    return KnownEvidence(model, (), math.log(1 - math.log(1e-8)))


PROBLEMS: dict[str, tuple[Callable[[int], KnownEvidence], int]] = {
    **{f"normal, D = {d}": (normal, d) for d in (2, 10, 20, 50)},
    **{f"mixture flow, D = {d}": (mixture, d) for d in (2, 5, 10)},
    **{f"shells, D = {d}": (shells, d) for d in (2, 5, 10, 20)},
    **{f"funnel, D = {d}": (funnel, d) for d in (2, 10)},
    **{f"narrow and wide, D = {d}": (narrow_and_wide, d) for d in (2, 5)},
    **{f"Rosenbrock, D = {d}": (rosenbrock, d) for d in (10, 20)},
    "mean and precision": (mean_and_precision, 2),
    "proportion": (proportion, 1),
    "spike": (spike, 1),
}
