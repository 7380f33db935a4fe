"""The bridge from draws that are there, and the correction from distilled to exact densities."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyro_stad
from pyro_stad import EvidenceError, EvidenceWarning, log_evidence
from pyro_stad.divergence import Exact
from pyro_stad.evidence.bridge import _sigmoid
from pyro_stad.likelihood import FlowODE, SteinPath
from pyro_stad.model.joint import JointDensity
from pyro_stad.model.vectorised import VectorisedModel
from pyro_stad.testing.evidence import PROBLEMS


def posterior_of_normal(size, count, seed=0):
    """Return independent draws of the posterior of the normal problem, N(0.8, 0.2)."""
    generator = torch.Generator().manual_seed(seed)
    return {"x": 0.8 + 0.2**0.5 * torch.randn(count, size, generator=generator)}


@pytest.mark.parametrize("size", [2, 20])
def test_independent_draws_give_the_evidence(size):
    make, _ = PROBLEMS["normal, D = 2"]
    model, data, truth = make(size)
    draws = posterior_of_normal(size, 4000)
    result = log_evidence(model, *data, method="bridge", draws=draws)
    assert abs(result.log_z - truth) < 4 * result.log_z_err < 0.1
    assert result.method == "bridge"
    assert result.correction is None


def test_errors_are_those_of_the_spread_over_seeds():
    """Forty sets of draws: the ratio of error to quoted error has a spread of one."""
    make, _ = PROBLEMS["normal, D = 2"]
    model, data, truth = make(5)
    z = []
    for seed in range(40):
        draws = posterior_of_normal(5, 400, seed)
        result = log_evidence(model, *data, method="bridge", draws=draws, seed=seed)
        z.append((result.log_z - truth) / result.log_z_err)
    # The chi-square of forty, three sigma, is 0.66 to 1.34; larger of two errors makes it smaller.
    assert 0.5 < torch.tensor(z).std() < 1.34
    assert abs(torch.tensor(z).mean()) < 3 / 40**0.5


def test_draws_of_a_chain_from_pyro_and_from_arviz():
    make, size = PROBLEMS["mean and precision"]
    model, data, truth = make(size)
    mcmc = MCMC(NUTS(model), 500, 200, num_chains=1, disable_progbar=True)
    mcmc.run(*data)
    found = log_evidence(model, *data, method="bridge", draws=mcmc)
    assert abs(found.log_z - truth) < 4 * found.log_z_err < 0.2
    again = log_evidence(model, *data, method="bridge", draws=pyro_stad.to_arviz(mcmc))
    assert again.log_z == found.log_z
    assert set(found.log_likelihood) == {"y"}
    assert found.log_likelihood["y"].shape == (500, 4)


def test_auto_takes_the_bridge_along():
    make, size = PROBLEMS["normal, D = 2"]
    model, data, truth = make(size)
    found = log_evidence(model, *data, draws=posterior_of_normal(2, 1000), progress=False)
    assert {found.method, *found.checks} == {"smc", "importance", "bridge"}
    assert not found.warnings


def test_the_joint_density_is_that_of_the_model_with_its_jacobian():
    make, size = PROBLEMS["mean and precision"]
    model, data, _ = make(size)
    joint = JointDensity(VectorisedModel(model, data, {}))
    z = torch.randn(6, 2)
    values = joint.values(z)
    torch.testing.assert_close(joint.unconstrain(values), z)
    for row, got in enumerate(joint.log_joint(z)):
        fixed = {name: value[row] for name, value in values.items()}
        trace = pyro.poutine.trace(pyro.condition(model, fixed)).get_trace(*data)
        # The precision is an exponential: its Jacobian is its logarithm.
        wanted = trace.log_prob_sum() + fixed["precision"].log()
        torch.testing.assert_close(got, wanted)


def test_the_share_of_a_ratio():
    ratio = torch.tensor([0.1, 1.0, 30.0])
    got = _sigmoid(ratio.log(), (0.25, 0.75))
    torch.testing.assert_close(got, ratio / (0.25 * ratio + 0.75))


def observe(prior, noise=1.0):
    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=y)

    return model


def posterior_under(prior, y, count=3000):
    """Return draws under the prior's own density: draws of its flow, weighted."""
    flow = prior.likelihood
    exact = prior.with_likelihood(FlowODE(flow.field, Exact(), flow.solver))
    x = prior.sample((20_000,))
    weights = prior.log_prob(x) - exact.log_prob(x) + dist.Normal(x, 1.0).to_event(1).log_prob(y)
    chosen = torch.multinomial(torch.softmax(weights, 0), count, replacement=True)
    truth = {
        "distilled": torch.logsumexp(weights, 0) - math.log(len(x)),
        "exact": torch.logsumexp(dist.Normal(x, 1.0).to_event(1).log_prob(y), 0) - math.log(len(x)),
    }
    return {"x": x[chosen]}, truth


@pytest.fixture
def crude_prior(free_prior):
    """A prior whose divergence was hardly trained: its head is a tenth off, and more."""
    flow = copy.deepcopy(free_prior.likelihood)
    with torch.no_grad():
        for parameter in flow.divergence.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return free_prior.with_likelihood(SteinPath(flow.field, flow.divergence, flow.solver))


def test_an_undertrained_divergence_is_corrected_to_within_the_error(crude_prior):
    """The bias of a crude divergence, and its removal; nothing but the draws know of it."""
    prior = crude_prior
    y = prior.sample((10,)).mean(0)
    draws, truth = posterior_under(prior, y)
    model = observe(prior)
    biased = log_evidence(model, y, method="bridge", draws=draws, correct=False)
    corrected = log_evidence(model, y, method="bridge", draws=draws)
    assert abs(biased.log_z - truth["distilled"]) < 4 * biased.log_z_err + 0.02
    assert abs(corrected.log_z - truth["exact"]) < 4 * corrected.log_z_err + 0.02
    value, error = corrected.correction
    assert corrected.log_z == pytest.approx(biased.log_z + value)
    assert abs(value) > 4 * error, "the divergence is too good for this test"
    assert corrected.khat < 0.7
    assert f"{value:+.3f} +- {error:.3f}" in corrected.summary()


def test_a_biased_density_is_found_out_and_corrected(free_prior):
    """Half a nat of mass too much: the latent methods do not know of it, the bridge does."""
    y = free_prior.sample((10,)).mean(0)
    draws, _ = posterior_under(free_prior, y)
    likelihood = free_prior.likelihood
    prior = free_prior.with_likelihood(likelihood.replace(log_mass=likelihood.log_mass - 0.5))
    options = {"draws": draws, "particles": 500, "progress": False}
    with pytest.warns(EvidenceWarning, match="standard errors apart"):
        found = log_evidence(observe(prior), y, correct=False, allow_extrapolation=True, **options)
    # The samples know it too.
    assert found.support.log_ratio == pytest.approx(-0.5, abs=0.2)
    assert any("standard errors apart" in text for text in found.warnings)
    found = log_evidence(observe(prior), y, **options)
    assert not any("standard errors apart" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "`draws` must be an MCMC, ArviZ data .* got list"),
        ({"z": torch.zeros(200, 2)}, ValueError, r"`draws` has no \['x'\], .* it has \['z'\]"),
        ({"x": torch.zeros(200, 3)}, ValueError, r"of 'x' must have shape .* got \(1, 200, 3\)"),
        ({"x": torch.full((200, 2), math.nan)}, ValueError, "of 'x' are not all finite"),
        ({"x": torch.zeros(200, 2)}, ValueError, "are all the same in coordinate 0"),
        ({"x": torch.randn(20, 2)}, ValueError, "must be at least 100"),
    ],
)
def test_draws_that_can_not_be_used(draws, error, message):
    make, size = PROBLEMS["normal, D = 2"]
    model, data, _ = make(size)
    with pytest.raises(error, match=message):
        log_evidence(model, *data, method="bridge", draws=draws)


def test_draws_outside_the_support_of_a_prior():
    def model():
        pyro.sample("x", dist.Exponential(torch.tensor(1.0)))
        pyro.factor("none", torch.tensor(0.0))

    with pytest.raises(ValueError, match="200 of `draws` are outside the support"):
        log_evidence(model, method="bridge", draws={"x": -torch.rand(200)})


def test_draws_that_nobody_would_use():
    make, size = PROBLEMS["normal, D = 2"]
    model, data, _ = make(size)
    with pytest.raises(ValueError, match="`draws` are for the bridge; method='smc' makes no use"):
        log_evidence(model, *data, method="smc", draws=posterior_of_normal(2, 200))


def test_an_mcmc_that_has_not_run():
    make, size = PROBLEMS["normal, D = 2"]
    model, data, _ = make(size)
    with pytest.raises(ValueError, match="an MCMC that has not run"):
        log_evidence(model, *data, method="bridge", draws=MCMC(NUTS(model), 10))


def test_draws_without_a_density_are_no_draws_of_the_model():
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("half", torch.where(x[..., 0] > 0, 0.0, -math.inf))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    draws = {"x": torch.randn(200, 2) - 50.0}
    with pytest.raises(EvidenceError, match="no draw has a density"):
        log_evidence(model, torch.zeros(2), method="bridge", draws=draws)


def test_the_corrected_draws_are_those_of_the_exact_posterior(crude_prior):
    y = crude_prior.sample((10,)).mean(0)
    draws, _ = posterior_under(crude_prior, y)
    corrected = log_evidence(observe(crude_prior), y, method="bridge", draws=draws)
    x = crude_prior.sample((20_000,))
    weights = torch.softmax(dist.Normal(x, 1.0).to_event(1).log_prob(y), 0)
    wanted = weights @ x
    spread = (weights @ (x - wanted).square()).sqrt()
    got = corrected.draws["x"].mean(0)
    # About a thousand draws, weighted and drawn again.
    assert ((got - wanted) / spread).abs().max() < 5 / 300**0.5
