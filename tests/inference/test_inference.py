"""Priors inside Pyro: NUTS, HMC, SVI, Predictive, conditioning, and the auxiliary form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_sample, init_to_value
from pyro.infer.reparam import TransformReparam
from pyro.optim import Adam

from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.fields import PathField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.likelihood import CURVES, FlowODE, SteinPath
from pyro_stad.ode import RK4, Midpoint
from pyro_stad.paths import OptimalTransport
from tests.oracles import field_on

NOISE = 0.8
OBSERVED = torch.tensor([1.0, -0.5], dtype=torch.float64)


@pytest.fixture(scope="module")
def gaussian_prior():
    """The prior N(loc, L L^T): an untrained network is exactly that."""
    field = PathField(OptimalTransport(), 2, 8, 2).double()
    loc = torch.tensor([0.5, -1.0], dtype=torch.float64)
    scale_tril = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    layout = Layout(("a", "b"), (("a", ()), ("b", ())))
    head = TrunkHead.for_field(field).double()
    return FlowPrior(FlowODE(field, Stein(head), Midpoint(2)), loc, scale_tril, layout)


def closed_form(prior):
    """Return the posterior's mean and covariance under the normal likelihood."""
    affine = prior.transforms[1]
    precision = torch.linalg.inv(affine.scale_tril @ affine.scale_tril.mT)
    covariance = torch.linalg.inv(precision + torch.eye(2) / NOISE**2)
    return covariance @ (precision @ affine.loc + OBSERVED / NOISE**2), covariance


def model_of(prior):
    def model(y=OBSERVED):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=y)

    return model


def run(kernel, samples=250, warmup=80):
    mcmc = MCMC(kernel, samples, warmup, disable_progbar=True)
    mcmc.run()
    return mcmc


def check_posterior(draws, prior, standard_errors=5.0, effective=60):
    """Compare means and sds with the closed form, for at least ``effective`` effective draws."""
    mean, covariance = closed_form(prior)
    sd = torch.diagonal(covariance).sqrt()
    assert ((draws.mean(0) - mean).abs() / sd).max() < standard_errors / math.sqrt(effective)
    assert (draws.std(0) / sd - 1).abs().max() < standard_errors / math.sqrt(2 * effective)


@pytest.mark.parametrize("jit", [False, True])
def test_nuts_finds_the_closed_form(jit, gaussian_prior):
    kernel = NUTS(
        model_of(gaussian_prior),
        jit_compile=jit,
        ignore_jit_warnings=True,
        init_strategy=init_to_sample,
    )
    mcmc = run(kernel)
    check_posterior(mcmc.get_samples()["theta"], gaussian_prior)
    assert mcmc.diagnostics()["divergences"]["chain 0"] == []


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("curve", CURVES)
def test_nuts_on_a_stein_path_finds_the_closed_form(jit, curve, gaussian_prior):
    flow = gaussian_prior.likelihood
    path = SteinPath(flow.field, flow.divergence, flow.solver, CURVES[curve]())
    prior = gaussian_prior.with_likelihood(path)
    options = {"jit_compile": jit, "ignore_jit_warnings": True, "init_strategy": init_to_sample}
    mcmc = run(NUTS(model_of(prior), **options))
    check_posterior(mcmc.get_samples()["theta"], prior)
    assert mcmc.diagnostics()["divergences"]["chain 0"] == []


def test_hmc_finds_the_closed_form(gaussian_prior):
    kernel = HMC(model_of(gaussian_prior), step_size=0.4, num_steps=5, init_strategy=init_to_sample)
    check_posterior(run(kernel).get_samples()["theta"], gaussian_prior)


class Counted(Stein):
    """Counts the evaluations of the divergence."""

    def __init__(self, network):
        super().__init__(network)
        self.calls = 0

    def velocity_and_divergence(self, field, t, x):
        self.calls += 1
        return super().velocity_and_divergence(field, t, x)


@pytest.mark.parametrize("jit", [False, True])
def test_auxiliary_form_evaluates_no_divergence(jit, gaussian_prior):
    """Through Pyro's own TransformReparam, NUTS works on the noise: not a single call."""
    flow = gaussian_prior.likelihood
    divergence = Counted(flow.divergence.network)
    prior = gaussian_prior.with_likelihood(FlowODE(flow.field, divergence, flow.solver))
    model = poutine.reparam(model_of(prior), config={"theta": TransformReparam()})
    kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True, init_strategy=init_to_sample)
    noise = run(kernel).get_samples()["theta_base"]
    assert divergence.calls == 0
    theta = noise
    for transform in prior.transforms:
        theta = transform(theta)
    check_posterior(theta, prior)
    prior.log_prob(theta[:1])
    assert divergence.calls > 0, "the counter counts"


def test_auxiliary_form_accepts_an_initial_value_of_the_original_site(gaussian_prior):
    model = poutine.reparam(model_of(gaussian_prior), config={"theta": TransformReparam()})
    start = torch.tensor([0.2, -0.3])
    kernel = NUTS(model, init_strategy=init_to_value(values={"theta": start}))
    kernel.setup(10)
    value = kernel.initial_params["theta_base"]
    for transform in gaussian_prior.transforms:
        value = transform(value)
    torch.testing.assert_close(value, start, rtol=0, atol=1e-5)


GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
}


def by_hand(model):
    def guide(y=OBSERVED):
        loc = pyro.param("loc", torch.zeros(2))
        tril = pyro.param("tril", torch.eye(2), constraint=dist.constraints.lower_cholesky)
        pyro.sample("theta", dist.MultivariateNormal(loc, scale_tril=tril))

    return guide


@pytest.mark.parametrize("name", [*GUIDES, "by hand"])
@pytest.mark.parametrize("route", ["x-space", "auxiliary"])
def test_svi_finds_the_mean(name, route, gaussian_prior):
    if name == "by hand" and route == "auxiliary":
        pytest.skip("a guide written for theta does not fit theta_base")
    model = model_of(gaussian_prior)
    if route == "auxiliary":
        model = poutine.reparam(model, config={"theta": TransformReparam()})
    guide = GUIDES.get(name, by_hand)(model)
    svi = SVI(model, guide, Adam({"lr": 0.03}), Trace_ELBO())
    losses = [svi.step() for _ in range(300)]
    assert sum(losses[-50:]) < sum(losses[:50])
    site = "theta" if route == "x-space" else "theta_base"
    draws = torch.stack([guide_draw(guide, site) for _ in range(300)])
    if route == "auxiliary":
        for transform in gaussian_prior.transforms:
            draws = transform(draws)
    mean, covariance = closed_form(gaussian_prior)
    # The mean of a Gaussian posterior is exact under every guide; 400 draws and a noisy optimum.
    assert ((draws.mean(0) - mean) / torch.diagonal(covariance).sqrt()).abs().max() < 0.5


def guide_draw(guide, site):
    with torch.no_grad():
        return poutine.trace(guide).get_trace().nodes[site]["value"]


def test_svi_does_not_train_the_prior(tiny_prior):
    def model():
        pyro.sample("theta", tiny_prior)

    before = [p.clone() for p in tiny_prior.likelihood.parameters()]
    guide = AutoNormal(model)
    svi = SVI(model, guide, Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(5):
        assert math.isfinite(svi.step())
    assert all(map(torch.equal, before, tiny_prior.likelihood.parameters()))


def test_nuts_respects_bounds(tiny_prior):
    def model():
        theta = pyro.sample("theta", tiny_prior)
        pyro.sample("y", dist.Normal(theta[0], 0.5), obs=torch.tensor(0.3))

    draws = run(NUTS(model, init_strategy=init_to_sample), 60, 60).get_samples()["theta"]
    assert (draws[:, 0] > 0).all()
    assert draws.std(0).min() > 0.05


def test_observed_prior_is_a_likelihood(gaussian_prior):
    """The flow of data given a shift, with obs=: the posterior of the shift is normal."""
    data = gaussian_prior.sample((50,)) + torch.tensor([2.0, 0.0])

    def model():
        shift = pyro.sample("shift", dist.Normal(0.0, 10.0))
        with pyro.plate("n", 50):
            moved = data - torch.stack([shift, torch.zeros(())])
            pyro.factor("density", gaussian_prior.log_prob(moved))

    draws = run(NUTS(model, jit_compile=True, ignore_jit_warnings=True), 200, 60).get_samples()[
        "shift"
    ]
    affine = gaussian_prior.transforms[1]
    precision = torch.linalg.inv(affine.scale_tril @ affine.scale_tril.mT)
    residual = (data - affine.loc).sum(0)
    variance = 1 / (50 * precision[0, 0] + 0.01)
    assert abs(draws.mean() - variance * (precision @ residual)[0]) < 0.5 * variance.sqrt()
    assert abs(draws.std() / variance.sqrt() - 1) < 0.35


def test_condition_and_obs_agree(gaussian_prior):
    value = gaussian_prior.sample()
    conditioned = poutine.condition(model_of(gaussian_prior), data={"theta": value})
    trace = poutine.trace(conditioned).get_trace()
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["theta"]["log_prob"], gaussian_prior.log_prob(value))

    def observed():
        pyro.sample("theta", gaussian_prior, obs=value)

    node = poutine.trace(observed).get_trace()
    torch.testing.assert_close(node.log_prob_sum(), gaussian_prior.log_prob(value))


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(parallel, gaussian_prior):
    free = poutine.uncondition(model_of(gaussian_prior))
    draws = Predictive(free, num_samples=6, parallel=parallel)()
    assert draws["theta"].shape[0] == draws["y"].shape[0] == 6
    assert draws["theta"].reshape(6, 2).std(0).min() > 0


def test_vectorised_particles_and_plates(gaussian_prior):
    def model():
        with pyro.plate("n", 4):
            theta = pyro.sample("theta", gaussian_prior)
            pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=torch.zeros(4, 2))

    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(SVI(model, guide, Adam({"lr": 0.01}), elbo).step())


@pytest.mark.slow
def test_nuts_on_a_mixture_prior_has_the_right_moments():
    """x-space and auxiliary form agree with self-normalised importance sampling on the oracle."""
    field = field_on("ot", random_mixture(2, seed=2))
    eye, zero = torch.eye(2), torch.zeros(2)
    layout = Layout(("a", "b"), (("a", ()), ("b", ())))
    prior = FlowPrior(FlowODE(field, Exact(), RK4(6)), zero, eye, layout)
    draws = prior.sample((20_000,))
    weights = dist.Normal(draws, NOISE).to_event(1).log_prob(OBSERVED).softmax(0)
    mean = weights @ draws
    sd = (weights @ (draws - mean) ** 2).sqrt()
    model = model_of(prior)
    for route in (model, poutine.reparam(model, config={"theta": TransformReparam()})):
        kernel = NUTS(
            route, jit_compile=True, ignore_jit_warnings=True, init_strategy=init_to_sample
        )
        found = run(kernel, 120, 60).get_samples()
        theta = found.get("theta")
        if theta is None:
            theta = prior.transforms[1](prior.transforms[0](found["theta_base"]))
        # At least 30 effective draws: five standard errors.
        assert ((theta.mean(0) - mean).abs() / sd).max() < 5 / math.sqrt(30)
