"""Priors as maps of noise: every law that has quantiles, in both tails, in both precisions."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

import pyro_stad
from pyro_stad.model.maps import from_normal, noise_limit
from pyro_stad.model.quantiles import has_quantile
from pyro_stad.model.quantiles_scipy import SHAPED, shaped_quantile

# The law, and the same law of SciPy, whose tails are right.
LAWS = {
    "uniform": (dist.Uniform(-1.0, 3.0), stats.uniform(-1, 4)),
    "half normal": (dist.HalfNormal(2.0), stats.halfnorm(scale=2)),
    "half cauchy": (dist.HalfCauchy(2.0), stats.halfcauchy(scale=2)),
    "cauchy": (dist.Cauchy(1.0, 2.0), stats.cauchy(1, 2)),
    "exponential": (dist.Exponential(0.5), stats.expon(scale=2)),
    "weibull": (dist.Weibull(2.0, 0.75), stats.weibull_min(0.75, scale=2)),
    "pareto": (dist.Pareto(2.0, 3.0), stats.pareto(3, scale=2)),
    "generalised pareto": (dist.GeneralizedPareto(1.0, 2.0, 0.25), stats.genpareto(0.25, 1, 2)),
    "generalised pareto, ended": (
        dist.GeneralizedPareto(1.0, 2.0, -0.25), stats.genpareto(-0.25, 1, 2)
    ),
    "laplace": (dist.Laplace(1.0, 2.0), stats.laplace(1, 2)),
    "asymmetric laplace": (
        dist.AsymmetricLaplace(1.0, 2.0, 0.5), stats.laplace_asymmetric(0.5, 1, 2)
    ),
    "soft laplace": (dist.SoftLaplace(0.0, 1.0), stats.hypsecant()),
    "gumbel": (dist.Gumbel(1.0, 2.0), stats.gumbel_r(1, 2)),
    "logistic": (dist.Logistic(1.0, 2.0), stats.logistic(1, 2)),
    "skew logistic": (dist.SkewLogistic(0.0, 1.0, 1.5), stats.genlogistic(1.5)),
    "log normal": (dist.LogNormal(0.0, 0.5), stats.lognorm(0.5)),
    "gamma": (dist.Gamma(0.75, 2.0), stats.gamma(0.75, scale=0.5)),
    "chi-square": (dist.Chi2(3.0), stats.chi2(3)),
    "beta": (dist.Beta(0.5, 2.0), stats.beta(0.5, 2)),
    "student t": (dist.StudentT(3.0, 1.0, 2.0), stats.t(3, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_keep_their_digits_in_both_tails(name):
    """The survival function of the image of u is that of u, to eight standard deviations."""
    law, known = LAWS[name]
    u = torch.linspace(-8, 8, 33, dtype=torch.float64)
    x = from_normal(law, u).numpy()
    below, above = stats.norm.cdf(u), stats.norm.sf(u)
    # A support that ends on the right, away from zero, has only so many numbers before its end.
    ended = math.isfinite(known.support()[1])
    upper = (u > 0).numpy() if not ended else (u.numpy() > 0) & (u.numpy() < 5)
    assert known.cdf(x[u < 0]) == pytest.approx(below[u < 0], rel=1e-6)
    assert known.sf(x[upper]) == pytest.approx(above[upper], rel=1e-6)
    low, high = known.support()
    assert ((x >= low) & (x <= high)).all()


@pytest.mark.parametrize("name", LAWS)
def test_single_precision_rounds_the_quantile_and_nothing_else(name):
    torch.set_default_dtype(torch.float32)  # that of the parameters
    law, _ = LAWS[name]
    u = torch.linspace(-8, 8, 33, dtype=torch.float64)
    exact, single = from_normal(law, u), from_normal(law, u.float())
    assert single.dtype == torch.float32
    assert torch.isfinite(law.log_prob(single)).all()
    torch.testing.assert_close(single.double(), exact, rtol=2e-6, atol=2e-6)


def test_kumaraswamy_and_continuous_bernoulli():
    """Two laws that SciPy has not: by their distribution functions."""
    u = torch.linspace(-8, 5, 27, dtype=torch.float64)
    a, b = torch.tensor(2.0), torch.tensor(0.5)
    x = from_normal(dist.Kumaraswamy(a, b), u)
    torch.testing.assert_close(
        -torch.expm1(b * torch.log1p(-(x**a))),
        torch.as_tensor(stats.norm.cdf(u)),
        rtol=1e-6,
        atol=0,
    )
    for odds in (-3.0, 0.0, 2.0):
        x = from_normal(dist.ContinuousBernoulli(logits=torch.tensor(odds)), u)
        share = torch.expm1(odds * x) / math.expm1(odds) if odds else x
        torch.testing.assert_close(share, torch.as_tensor(stats.norm.cdf(u)), rtol=1e-6, atol=0)


def test_every_law_of_torch_with_quantiles_is_right_in_its_tails():
    """A law that a new torch or Pyro adds must be written down, or is only right to a limit."""
    missing = []
    for name in sorted({*dist.__all__, *torch.distributions.__all__}):
        kind = getattr(dist, name, None) or getattr(torch.distributions, name)
        if not (isinstance(kind, type) and issubclass(kind, torch.distributions.Distribution)):
            continue
        own = next(k for k in kind.__mro__ if "icdf" in vars(k))
        generic = own in (torch.distributions.Distribution, dist.TransformedDistribution)
        generic |= own is torch.distributions.TransformedDistribution
        normal = issubclass(kind, torch.distributions.Normal)
        if not generic and not normal and not any(k in kind.__mro__ for k in known_kinds()):
            missing.append(name)
    assert not missing


def known_kinds():
    from pyro_stad.model.quantiles import _QUANTILES

    return _QUANTILES


# The prior, its density by SciPy, and a datum some 4 to 8 standard deviations out, on each side.
FAR = {
    "exponential": (dist.Exponential, (1.0,), stats.expon(), (20.0,)),
    "half normal": (dist.HalfNormal, (1.0,), stats.halfnorm(), (7.0,)),
    "half cauchy": (dist.HalfCauchy, (1.0,), stats.halfcauchy(), (1e5,)),
    "weibull": (dist.Weibull, (1.0, 1.0), stats.weibull_min(1), (30.0,)),
    "laplace": (dist.Laplace, (0.0, 1.0), stats.laplace(), (-20.0, 20.0)),
    "gumbel": (dist.Gumbel, (0.0, 1.0), stats.gumbel_r(), (-3.0, 20.0)),
    "logistic": (dist.Logistic, (0.0, 1.0), stats.logistic(), (-25.0, 25.0)),
    "gamma": (dist.Gamma, (2.0, 1.0), stats.gamma(2), (30.0,)),
    "student t": (dist.StudentT, (10.0, 0.0, 1.0), stats.t(10), (-25.0, 25.0)),
    "log normal": (dist.LogNormal, (0.0, 0.5), stats.lognorm(0.5), (30.0,)),
    "inverse gamma": (dist.InverseGamma, (3.0, 2.0), stats.invgamma(3, scale=2), (300.0,)),
    "pareto": (dist.Pareto, (1.0, 3.0), stats.pareto(3), (2e3,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("name", FAR)
def test_evidence_of_far_data(name, dtype):
    """Data that pull into a tail: against quadrature, on every side that has one."""
    kind, parameters, known, data = FAR[name]
    for datum in data:
        sd = 0.4 if abs(datum) < 50 else 0.01 * abs(datum)

        def model(y, sd=sd):
            x = pyro.sample("x", kind(*(torch.tensor(p, dtype=dtype) for p in parameters)))
            pyro.sample("y", dist.Normal(x, sd), obs=y)

        truth = math.log(
            integrate.quad(
                lambda x, datum=datum, sd=sd: known.pdf(x) * stats.norm.pdf(datum, x, sd),
                datum - 12 * sd, datum + 12 * sd, points=[datum],
            )[0]
        )  # fmt: skip
        y = torch.tensor(datum, dtype=dtype)
        with warnings.catch_warnings():
            # Few particles lose their way where the map from noise is steep, and are found out.
            warnings.simplefilter("ignore", pyro_stad.EvidenceWarning)
            found = pyro_stad.log_evidence(model, y, particles=300, progress=False)
        assert abs(found.log_z - truth) < 0.1
        assert not found.unresolved


def test_smc_alone_is_held_against_importance_sampling():
    """A half Cauchy prior and a datum of a hundred thousand: SMC loses its way, and it is said."""

    def model(y):
        x = pyro.sample("x", dist.HalfCauchy(torch.ones((), dtype=torch.float64)))
        pyro.sample("y", dist.Normal(x, 0.01 * y), obs=y)

    options = {"method": "smc", "particles": 300, "progress": False}
    with pytest.warns(pyro_stad.EvidenceWarning, match="standard errors apart"):
        found = pyro_stad.log_evidence(model, torch.tensor(1e5), **options)
    assert found.method == "smc"
    density = stats.halfcauchy.pdf(1e5)  # the likelihood is narrow
    assert abs(found.checks["importance"][0] - math.log(density)) < 0.1
    assert any("standard errors apart" in text for text in found.warnings)
    near = pyro_stad.log_evidence(model, torch.tensor(1.0), **options)
    log_z, error = near.checks["importance"]
    assert abs(near.log_z - log_z) < 3 * math.hypot(near.log_z_err, error)


class _Homemade(dist.Exponential):
    """A law of which only its author's ``icdf`` is known."""


def test_a_law_of_its_own_is_right_until_one_minus_a_probability_has_no_digits(monkeypatch):
    from pyro_stad.model import quantiles

    monkeypatch.delitem(quantiles._QUANTILES, torch.distributions.Exponential)
    law = _Homemade(torch.tensor(1.0))
    assert not has_quantile(law)
    assert noise_limit(law.expand([3]).to_event(1), torch.float32) == pytest.approx(4.22, abs=0.05)
    assert noise_limit(law, torch.float64) == pytest.approx(7.51, abs=0.05)
    assert noise_limit(dist.HalfNormal(1.0), torch.float32) == math.inf

    def model(y):
        x = pyro.sample("x", _Homemade(torch.ones((), dtype=torch.float32)))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    far = torch.tensor(20.0, dtype=torch.float32)
    with pytest.warns(pyro_stad.EvidenceWarning, match="`icdf` of its prior"):
        found = pyro_stad.log_evidence(model, far, particles=300, progress=False)
    assert found.unresolved > 0.5
    near = torch.tensor(1.0, dtype=torch.float32)
    assert not pyro_stad.log_evidence(model, near, particles=300, progress=False).unresolved


SHAPES = {"gamma": (2.5,), "beta": (0.6, 3.0), "student": (4.0,)}


def test_every_law_of_scipy_is_in_the_battery():
    assert set(SHAPES) == set(SHAPED)


@pytest.mark.parametrize("law", SHAPES)
def test_quantiles_of_scipy_are_differentiated(law):
    """By noise they grow as phi / p; by a shape, as the implicit function theorem has it."""
    of_torch = {"gamma": lambda a: dist.Gamma(a, 1.0), "beta": dist.Beta, "student": dist.StudentT}
    u = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    shapes = [torch.tensor(s, dtype=torch.float64, requires_grad=True) for s in SHAPES[law]]
    x = shaped_quantile(law, u, *shapes)
    by_noise, *by_shape = torch.autograd.grad(x.sum(), [u, *shapes])
    density = of_torch[law](*shapes).log_prob(x).exp()
    wanted = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi) / density
    torch.testing.assert_close(by_noise, wanted.detach(), rtol=1e-7, atol=0)
    if law == "gamma":
        known = torch._standard_gamma_grad(shapes[0].expand_as(x), x.detach()).sum()
        torch.testing.assert_close(by_shape[0], known, rtol=1e-4, atol=0)
    assert torch.autograd.gradcheck(lambda *s: shaped_quantile(law, u.detach(), *s), shapes)


@pytest.mark.parametrize("law", SHAPES)
def test_quantiles_of_scipy_are_mapped(law):
    shapes = [torch.tensor(s, dtype=torch.float64) for s in SHAPES[law]]
    u = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)

    def rows(u, scale):
        return shaped_quantile(law, u, *(scale * s for s in shapes))

    together = torch.vmap(rows)(u, scale)
    alone = torch.stack([rows(u[i], scale[i]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    gradients = [torch.autograd.grad(x.sum(), u)[0] for x in (together, alone)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
