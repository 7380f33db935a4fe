r"""Enzyme kinetics: the Puromycin measurements, their law, and exact draws of a posterior.

The rate of a reaction at concentration c of the substrate, measured with normal errors:

.. math:: y = \frac{V c^n}{K^n + c^n} + \epsilon, \qquad \epsilon \sim N(0, \sigma^2),

with n = 1 after Michaelis and Menten, and n free after Hill. Experiment A measured four low
concentrations only, where the rate is nearly :math:`(V/K)\, c`: of V and K it tells the ratio, and
leaves a curved ridge that ends at the walls V > 0 and K > 0. Experiment B measured the others.

Four measurements at two concentrations are fitted best by their two means. So the largest
likelihood of A is known, and its posterior can be drawn exactly, by rejection from the prior.

The data are those of treated cells of Treloar (1974), in Bates and Watts (1988), Nonlinear
Regression Analysis and Its Applications.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_stad.demo.grid import Grid

__all__ = [
    "A",
    "ALL",
    "B",
    "NAMES",
    "draw_posterior_of_a",
    "hill",
    "log_evidence_of_hill",
    "log_likelihood",
    "log_prior",
    "michaelis_menten",
    "update",
]

NAMES = ("V", "K", "sigma")
A, B, ALL = slice(0, 4), slice(4, 12), slice(0, 12)

_CONCENTRATION = torch.tensor(
    [0.02, 0.02, 0.06, 0.06, 0.11, 0.11, 0.22, 0.22, 0.56, 0.56, 1.10, 1.10], dtype=torch.float64
)
_RATE = torch.tensor([76, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200], dtype=torch.float64)
_SCALES = torch.tensor([400.0, 0.5, 20.0], dtype=torch.float64)  # of the half-normal priors
_SPREAD = 0.5  # of the logarithm of Hill's exponent, whose prior has the median 1
_PROPOSALS = 100_000


def log_prior(theta: Tensor) -> Tensor:
    """Return the log-density of half-normal priors at ``theta``, shape ``(..., 3)``: ``(...)``."""
    return _half_normal(theta, _SCALES).sum(-1)


def log_likelihood(theta: Tensor, part: slice) -> Tensor:
    """Return the log-likelihood of V, K and sigma, shape ``(..., 3)``, by a part of the data."""
    peak, half, sigma = theta[..., None].unbind(-2)
    mean = peak * _saturation(half, _CONCENTRATION[part])
    return dist.Normal(mean, sigma, validate_args=False).log_prob(_RATE[part]).sum(-1)


def log_marginal_likelihood(theta: Tensor, part: slice) -> Tensor:
    r"""Return the log-likelihood of K, sigma and n, shape ``(..., 3)``, with V integrated out.

    The likelihood is normal in V: with g the rates at V = 1, their products with the half-normal
    prior of scale s have the precision :math:`P = s^{-2} + g^T g / \sigma^2` and the mean
    :math:`m = g^T y / (\sigma^2 P)`, and only the mass at positive V counts,

    .. math:: \log 2\Phi(m \sqrt P) - \log (s \sqrt P) + \tfrac12 m^2 P
        - \tfrac12 y^T y / \sigma^2 - \tfrac n2 \log 2 \pi\sigma^2.
    """
    half, sigma, exponent = theta[..., None].unbind(-2)
    response, scale = _RATE[part], _SCALES[0]
    unit = _saturation(half, _CONCENTRATION[part], exponent)
    sigma = sigma[..., 0]
    precision = scale**-2 + unit.square().sum(-1) / sigma**2
    centre = (unit * response).sum(-1) / (sigma**2 * precision)
    root = precision.sqrt()
    mass = math.log(2) + torch.special.log_ndtr(centre * root) - (scale * root).log()
    errors = response.square().sum() / sigma**2 + len(response) * (2 * math.pi * sigma**2).log()
    return mass + 0.5 * centre**2 * precision - 0.5 * errors


def log_evidence_of_hill(part: slice = ALL) -> float:
    """Return the log-evidence of Hill's law: V in closed form, the others on a grid."""

    def log_density(theta: Tensor) -> Tensor:
        outer = _half_normal(theta[..., :2], _SCALES[1:]).sum(-1)
        exponent = dist.LogNormal(theta.new_zeros(()), _SPREAD).log_prob(theta[..., 2])
        return outer + exponent + log_marginal_likelihood(theta, part)

    return Grid.over(log_density, (1e-6, 0.1, 0.02), (1e2, 1e3, 50.0), (140, 70, 100)).log_mass


def draw_posterior_of_a(count: int, generator: torch.Generator) -> Tensor:
    """Return exact draws of V, K and sigma given experiment A, shape ``(count, 3)``, in float64.

    One proposal in about eighty is kept.
    """
    pairs = _RATE[A].reshape(2, 2)
    variance = (pairs - pairs.mean(1, keepdim=True)).square().mean()
    highest = -0.5 * pairs.numel() * (1 + (2 * math.pi * variance).log())
    kept: list[Tensor] = []
    while sum(map(len, kept)) < count:
        noise = torch.randn(_PROPOSALS, 3, generator=generator, dtype=torch.float64)
        theta = noise.abs() * _SCALES
        level = torch.rand(_PROPOSALS, generator=generator, dtype=torch.float64).log() + highest
        kept.append(theta[level < log_likelihood(theta, A)])
    return torch.cat(kept)[:count]


def update(prior: dist.TorchDistribution) -> None:
    """Model: experiment B, with a prior of V, K and sigma that knows A."""
    _observe(*pyro.sample("theta", prior).unbind(-1), part=B)


def michaelis_menten() -> None:
    """Model: all measurements by Michaelis and Menten's law, from scratch."""
    _observe(*_from_scratch(), part=ALL)


def hill() -> None:
    """Model: all measurements by Hill's law, from scratch."""
    peak, half, sigma = _from_scratch()
    centre = torch.zeros((), dtype=torch.float64)
    _observe(peak, half, sigma, pyro.sample("n", dist.LogNormal(centre, _SPREAD)), part=ALL)


def _from_scratch() -> tuple[Tensor, ...]:
    return tuple(pyro.sample(name, dist.HalfNormal(scale)) for name, scale in zip(NAMES, _SCALES))


def _observe(
    peak: Tensor, half: Tensor, sigma: Tensor, exponent: Tensor | float = 1.0, *, part: slice
) -> None:
    # In the dtype of the prior; NUTS compiles nothing that mixes two.
    concentration, rate = _CONCENTRATION[part].to(peak), _RATE[part].to(peak)
    with pyro.plate("measurements", len(rate)):
        mean = peak * _saturation(half, concentration, exponent)
        pyro.sample("rate", dist.Normal(mean, sigma), obs=rate)


def _saturation(half: Tensor, concentration: Tensor, exponent: Tensor | float = 1.0) -> Tensor:
    r"""Return :math:`c^n / (K^n + c^n)`, in a form that no power overflows in."""
    return torch.sigmoid(exponent * (concentration.log() - half.log()))


def _half_normal(value: Tensor, scale: Tensor) -> Tensor:
    return dist.HalfNormal(scale, validate_args=False).log_prob(value)
