"""Correction: weights that are known, of every kind of site and source."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim import Adam

import pyro_stad
from pyro_stad import AccuracyWarning
from pyro_stad._weights import smoothed
from pyro_stad.infer import FlowReparam, correct
from pyro_stad.likelihood import Constant, SteinPath

OBSERVED = torch.tensor([0.5, -0.3])


@pytest.fixture(scope="module")
def rough(free_prior):
    """A prior whose density is off: a constant curve through few nodes."""
    torch.set_default_dtype(torch.float64)
    flow = free_prior.likelihood
    parts = flow.field, flow.divergence, flow.solver
    return free_prior.with_likelihood(SteinPath(*parts, Constant(), 8))


def model_of(prior):
    def model(y=OBSERVED):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)

    return model


def known(prior, theta):
    log_ratio = prior.exact().log_prob(theta) - prior.log_prob(theta)
    return log_ratio - torch.logsumexp(log_ratio, 0)


def test_weights_are_the_ratios_of_the_densities(rough):
    theta = rough.sample((400,))
    found = correct({"theta": theta}, model_of(rough), draws=400)
    assert found.sites == ("theta",)
    assert found.log_weights.shape == (1, 400)
    order = known(rough, theta).argsort()
    # Smoothing touches the largest weights only.
    below = order[:300]
    difference = found.log_weights[0][below] - known(rough, theta)[below]
    assert difference.std() < 1e-9
    assert found.khat < 0.7
    assert "Pareto shape" in found.summary()
    assert "theta[0]: mean" in found.summary()


def test_weighted_and_resampled_draws_are_of_the_exact_posterior(rough):
    """Against self-normalised importance sampling from the flow's own draws."""
    mcmc = MCMC(NUTS(model_of(rough)), 600, 100, num_chains=1, disable_progbar=True)
    mcmc.run()
    draws = rough.sample((20_000,))
    log_weights = dist.Normal(draws, 0.5).to_event(1).log_prob(OBSERVED)
    weights = log_weights.softmax(0)
    mean = weights @ draws
    sd = (weights @ (draws - mean) ** 2).sqrt()
    found = correct(mcmc, model_of(rough))
    assert found.draws["theta"].shape == (1, 600, 2)
    # At least 60 effective draws.
    assert ((found.mean()["theta"] - mean).abs() / sd).max() < 5 / math.sqrt(60)
    assert ((found.sd()["theta"] / sd).log().abs()).max() < 0.5
    again = found.resampled()["theta"]
    assert again.shape == (600, 2)
    torch.testing.assert_close(again.mean(0), found.mean()["theta"], rtol=0, atol=0.05)
    assert torch.equal(again, found.resampled()["theta"])
    assert not torch.equal(again, found.resampled(seed=1)["theta"])


@pytest.mark.parametrize("form", ["noise", "whitened"])
def test_reparametrised_models_are_corrected_too(rough, form):
    """Whitened, by the same ratios; in noise no density was used, and nothing is to correct."""
    model = FlowReparam(form)(model_of(rough))
    at = rough.sample((200,))
    for transform in reversed(rough.transforms[0 if form == "noise" else 1 :]):
        at = transform.inv(at)
    found = correct({"theta_base": at}, model, draws=200)
    if form == "noise":
        assert found.sites == ()
        assert torch.equal(found.log_weights, torch.full((1, 200), -math.log(200)))
        return
    theta = at
    for transform in rough.transforms[1:]:
        theta = transform(theta)
    wanted = known(rough, theta)
    below = wanted.argsort()[:150]
    assert (found.log_weights[0][below] - wanted[below]).std() < 1e-6


def test_a_flow_as_likelihood_is_corrected():
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(600, 1, generator=generator)
    x = context + 0.5 * torch.randn(600, 2, generator=generator)
    flow = pyro_stad.fit(x, context=context, budget="tiny", progress=False, dtype=torch.float64)
    data = torch.randn(7, 2)

    def model():
        at = pyro.sample("at", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("n", 7):
            pyro.sample("x", flow(at), obs=data)

    at = 0.3 * torch.randn(150, 1)
    found = correct({"at": at}, model, draws=150)
    assert found.sites == ("x",)
    ratios = torch.stack(
        [(flow.exact()(one).log_prob(data) - flow(one).log_prob(data)).sum() for one in at]
    )
    wanted = ratios - torch.logsumexp(ratios, 0)
    below = wanted.argsort()[:110]
    assert (found.log_weights[0][below] - wanted[below]).std() < 1e-6


def test_a_guide_is_a_proposal():
    """Of a conjugate model without a learned prior: its evidence is known."""

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = torch.randn(5, 2) + 1
    guide = AutoNormal(model, init_scale=0.3)
    svi = SVI(model, guide, Adam({"lr": 0.05}), Trace_ELBO(num_particles=4))
    for _ in range(300):
        svi.step(y)
    found = correct(guide, model, y, draws=500)
    cov = torch.eye(5) + torch.ones(5, 5)
    truth = dist.MultivariateNormal(torch.zeros(5), cov).log_prob(y.mT).sum()
    assert found.khat < 0.7
    assert abs(found.log_z - truth) < 5 * found.log_z_err + 1e-3
    assert found.log_z_err < 0.2
    # The posterior mean, shrunk by 5 / 6.
    error = 1 / math.sqrt(6 * found.ess)
    assert (found.mean()["x"] - y.mean(0) * 5 / 6).abs().max() < 5 * error


def test_a_guide_of_one_point_is_no_proposal():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="as AutoDelta does"):
        correct(AutoDelta(model), model, draws=100)
    found = correct(AutoNormal(model, init_scale=1.0), model, draws=200)
    share = found.mean({"positive": found.draws["x"] > 0})["positive"]
    assert ((share > 0.2) & (share < 0.8)).all()


def test_weights_that_say_nothing_are_not_believed():
    """Of a guide that is ten times too narrow."""

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = AutoNormal(model, init_scale=0.1)
    with pytest.warns(AccuracyWarning, match="Pareto shape of"):
        found = correct(guide, model, draws=400)
    assert not found.is_reliable
    assert "NOT to be believed" in found.summary()


def test_slips_have_messages(rough):
    theta = {"theta": rough.sample((150,))}
    with pytest.raises(ValueError, match="`draws` must be an integer of at least 100"):
        correct(theta, model_of(rough), draws=5)
    with pytest.raises(TypeError, match="must be a Pyro model, after the draws; got dict"):
        correct(model_of(rough), theta)
    with pytest.raises(ValueError, match="does not divide 150"):
        correct(theta, model_of(rough), num_chains=4)
    with pytest.raises(ValueError, match="has no draws"):
        correct({"x": torch.zeros(150, 2)}, model_of(rough))


def test_a_prior_that_nothing_can_be_drawn_from_is_replayed_with_its_draws():
    def model(y):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.less_than(0.0), (), ()))
        pyro.deterministic("twice", 2 * a)
        # Of a prior draw of no sign this scale would be refused.
        pyro.sample("y", dist.Normal(0.0, -a), obs=y)

    draws = {"a": -torch.rand(200) - 0.1}
    found = correct(draws, model, torch.tensor(0.5), draws=200)
    assert found.khat == -math.inf
    assert set(found.draws) == {"a"}
    given = {**draws, "twice": torch.zeros(200)}
    again = correct(given, model, torch.tensor(0.5), draws=200)
    assert torch.equal(again.draws["twice"], 2 * again.draws["a"])

    def proper():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * a)

    with pytest.raises(ValueError, match=r"draws of \['twice'\] alone"):
        correct({"twice": torch.zeros(200)}, proper, draws=200)


def test_weights_that_are_nearly_alike_are_believed_as_they_are():
    """Few of many are a little larger: a heavy tail of next to nothing."""
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    log_weights = (1 + 0.002 / uniform.clamp(min=1e-3)).log()
    found = smoothed(log_weights)
    assert found.khat > 0.7
    assert found.believable
    torch.testing.assert_close(found.log_weights, torch.log_softmax(log_weights.double(), -1))
    log_weights[0] = 6.0
    assert not smoothed(log_weights).believable
    rows = smoothed(torch.stack([log_weights, torch.zeros(1000)]))
    assert rows.believable.tolist() == [False, True]
