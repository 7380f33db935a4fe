"""Evidence against closed forms, by every method; and models that have none are refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyro_stad
from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.errors import EvidenceError
from pyro_stad.evidence import METHODS, LatentProblem, log_evidence
from pyro_stad.evidence.latent import from_normal
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.teacher.analytic import random_mixture
from tests.oracles import field_on


def gaussian(size):
    """Return N(0, I) with every coordinate observed as 1, noise variance 1/4; and log Z."""

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    y = torch.ones(size)
    return model, y, dist.Normal(0.0, 1.25**0.5).log_prob(y).sum().item()


def mixture(size):
    """Return a flow whose law is a mixture, to the blur of its path, observed by A; and log Z."""
    parts = random_mixture(size)
    names = tuple(f"x{i}" for i in range(size))
    layout = Layout(names, tuple((name, ()) for name in names))
    flow = FlowODE(field_on("ot", parts), Exact(), RK4(16))
    prior = FlowPrior(flow, torch.zeros(size), torch.eye(size), layout)
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(2, size, generator=generator) / size**0.5

    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x @ matrix.mT, 0.5).to_event(1), obs=y)

    y = torch.tensor([0.8, -0.4])
    weights, means, covariances = parts
    noise = 0.25 * torch.eye(2)
    components = MultivariateNormal(means @ matrix.mT, matrix @ covariances @ matrix.mT + noise)
    return model, y, torch.logsumexp(components.log_prob(y) + weights.log(), 0).item()


def normal_gamma(_):
    """Return a normal mean given its precision, Exponential(1), for four data; and log Z."""

    def model(y):
        precision = pyro.sample("precision", dist.Exponential(torch.tensor(1.0)))
        mean = pyro.sample("mean", dist.Normal(0.0, precision.rsqrt()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)

    y = torch.tensor([0.3, -1.1, 0.7, 1.9])
    n, mean = len(y), y.mean()
    rate = 1 + 0.5 * (y - mean).square().sum() + 0.5 * n * mean**2 / (1 + n)
    shape = 1 + n / 2
    log_z = math.lgamma(shape) - shape * rate.log() - 0.5 * math.log(1 + n)
    return model, y, (log_z - 0.5 * n * math.log(2 * math.pi)).item()


PROBLEMS = {
    "gaussian, D = 2": (gaussian, 2),
    "gaussian, D = 10": (gaussian, 10),
    "gaussian, D = 50": (gaussian, 50),
    "mixture, D = 2": (mixture, 2),
    "normal and gamma": (normal_gamma, None),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_known_evidence(name, method):
    make, size = PROBLEMS[name]
    model, y, truth = make(size)
    result = log_evidence(model, y, method=method, progress=False)
    assert abs(result.log_z - truth) < (0.3 if size == 50 else 0.1)
    # Four runs: the ratio to their own error has Student tails, and the path a blur.
    assert abs(result.log_z - truth) < 4 * result.log_z_err + 0.01
    assert result.log_z_err < 0.15
    assert f"{result.log_z:.3f}" in result.summary()


def test_posterior_draws_are_those_of_the_closed_form():
    model, y, _ = gaussian(2)
    draws = log_evidence(model, y, progress=False).draws["x"]
    assert draws.shape == (4000, 2)
    # Posterior N(0.8, 0.2); at least a quarter of the draws count.
    assert (draws.mean(0) - 0.8).abs().max() < 5 * math.sqrt(0.2 / 1000)
    assert (draws.var(0) / 0.2 - 1).abs().max() < 5 * math.sqrt(2 / 1000)


def test_a_seed_gives_the_same_answer_and_the_global_generator_is_left_alone():
    model, y, _ = gaussian(2)
    state = torch.get_rng_state()
    first, again = (log_evidence(model, y, particles=100, progress=False) for _ in range(2))
    assert first.log_z == again.log_z
    assert torch.equal(torch.get_rng_state(), state)
    other = log_evidence(model, y, particles=100, seed=1, progress=False)
    assert other.log_z != first.log_z


def plates(y):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3, dim=-2):
        level = pyro.sample("level", dist.Normal(0.0, scale))
        with pyro.plate("rows", 4, dim=-1):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def test_plates_and_dependent_priors_have_the_likelihood_of_the_model():
    y = torch.randn(3, 4)
    problem = LatentProblem(plates, y)
    assert problem.size == 4
    assert problem.sites == {"scale": (), "level": (3, 1)}
    u = torch.randn(7, problem.size)
    values, found = problem.values(u), problem.log_likelihood(u)
    for i in range(7):
        fixed = {name: value[i] for name, value in values.items()}
        trace = pyro.poutine.trace(pyro.condition(plates, fixed)).get_trace(y)
        trace.compute_log_prob()
        assert found[i] == pytest.approx(trace.nodes["y"]["log_prob"].sum().item())


LAWS = {
    "normal": dist.Normal(1.0, 2.0),
    "uniform": dist.Uniform(-1.0, 3.0),
    "half normal": dist.HalfNormal(2.0),
    "exponential": dist.Exponential(0.5),
    "laplace": dist.Laplace(0.0, 1.0),
    "log normal": dist.LogNormal(0.0, 0.5),
    "gumbel": dist.Gumbel(0.0, 1.0),
    "logit normal": dist.TransformedDistribution(
        dist.Normal(0.0, 1.0), [dist.transforms.SigmoidTransform()]
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_noise_becomes_the_law(name):
    """Quantiles go to quantiles: the cdf of the image is that of the noise."""
    law, u = LAWS[name], torch.linspace(-3, 3, 25)
    cdf = law.cdf(from_normal(law, u))
    torch.testing.assert_close(cdf, torch.special.ndtr(u), rtol=0, atol=1e-6)


def test_correlated_normals():
    law = dist.MultivariateNormal(
        torch.tensor([1.0, -1.0]), scale_tril=torch.tensor([[2.0, 0.0], [0.5, 0.3]])
    )
    x = from_normal(law, torch.eye(2))
    wanted = torch.tensor([[3.0, -0.5], [1.0, -0.7]])
    torch.testing.assert_close(x, wanted)


def discrete(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k, 1.0), obs=y)


def no_map(y):
    p = pyro.sample("share", dist.Beta(2.0, 2.0))
    pyro.sample("y", dist.Normal(p, 1.0), obs=y)


def no_observation(y):
    pyro.sample("x", dist.Normal(0.0, 1.0))


def no_latent(y):
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def impossible(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("never", x - math.inf)


def not_vectorised(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.reshape(-1)[0], 1.0), obs=y)


def one_draw_only(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=y.expand(2))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (discrete, {}, "latent site 'k' is discrete .*; sum it out"),
        (no_map, {}, "latent site 'share' has a Beta for a prior"),
        (no_observation, {}, "observes nothing"),
        (no_latent, {}, "no latent site"),
        (impossible, {}, "zero at all of 1000 draws from the prior"),
        (not_vectorised, {}, "does not broadcast over draws"),
        (one_draw_only, {}, "for one draw, but not for a plate of them"),
        (plates, {"method": "harmonic"}, "`method` must be one of"),
        (plates, {"particles": 10}, "`particles` must be an integer of at least 100"),
        (plates, {"repeats": 1}, "`repeats` must be an integer of at least 2"),
    ],
)
def test_what_has_no_evidence_is_refused(model, options, message):
    y = torch.zeros(3, 4) if model is plates else torch.tensor(0.3)
    with pytest.raises(ValueError, match=message):
        log_evidence(model, y, progress=False, **options)


def test_a_learned_prior_needs_no_divergence(tiny_prior):
    def model(y):
        x = pyro.sample("x", tiny_prior)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = tiny_prior.sample()
    before = tiny_prior.counts.points
    result = pyro_stad.log_evidence(model, y, particles=200, progress=False)
    assert tiny_prior.counts.points == before
    # The oracle: an average over the prior.
    x = tiny_prior.sample((20_000,))
    likelihoods = dist.Normal(x, 1.0).to_event(1).log_prob(y)
    truth = torch.logsumexp(likelihoods, 0) - math.log(len(x))
    weights = torch.softmax(likelihoods, 0)
    error = math.hypot(result.log_z_err, (weights.square().sum() - 1 / len(x)).sqrt())
    assert abs(result.log_z - truth) < 4 * error + 0.01


def test_the_share_of_the_posterior_where_a_flow_extrapolates(tiny_prior):
    def model(y):
        x = pyro.sample("x", tiny_prior)
        pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)

    near = tiny_prior.sample((50,)).mean(0)
    inside = log_evidence(model, near, particles=200, progress=False)
    assert inside.extrapolated < 0.05
    spread = tiny_prior.sample((500,)).std(0)
    outside = log_evidence(model, near + 8 * spread, particles=200, progress=False)
    assert outside.extrapolated > 0.99
    assert any("hardly seen a sample" in text for text in outside.warnings)


def test_weights_that_can_not_be_believed_are_refused():
    """Two far and narrow modes have no normal for a proposal; SMC finds both."""

    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x.abs(), 0.02).to_event(1), obs=y)

    y = torch.ones(8)
    with pytest.raises(EvidenceError, match="Pareto shape of .* Use method='smc'"):
        log_evidence(model, y, method="importance", particles=500, progress=False)
