"""Posterior sampling in the sampler, against closed forms: evidence, moments, modes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.evidence import Twisted
from pyro_stad.fields import FreeFormField, GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.samplers import twisted as package
from pyro_stad.samplers.twist import TwistedProblem

SCALE = 0.3


def prior_of(parts, event_shape=None):
    size = parts[1].shape[1]
    field = GaussianMixtureField(OptimalTransport(), *parts, event_shape=event_shape or (size,))
    flow = FlowODE(field, Exact(), RK4(16))
    if event_shape is not None:
        loc = torch.zeros(event_shape)
        return FlowPrior(flow, loc, torch.ones(event_shape))
    layout = Layout.of([f"x[{index}]" for index in range(size)])
    return FlowPrior(flow, torch.zeros(size), torch.eye(size), layout)


def truth_of(parts, seen, scale=SCALE):
    """Return log Z and the mean of the posterior, of the first coordinates seen with noise."""
    weights, means, covariances = parts
    count, noise = len(seen), scale**2 * torch.eye(len(seen))
    parts = [
        dist.MultivariateNormal(mean[:count], cov[:count, :count] + noise).log_prob(seen)
        for mean, cov in zip(means, covariances)
    ]
    log_z = torch.stack(parts) + weights.log()
    each = [
        mean + cov[:, :count] @ torch.linalg.solve(cov[:count, :count] + noise, seen - mean[:count])
        for mean, cov in zip(means, covariances)
    ]
    return torch.logsumexp(log_z, 0).item(), torch.softmax(log_z, 0) @ torch.stack(each)


def model_of(prior, count, scale=SCALE):
    def model(seen):
        x = pyro.sample("x", prior)
        flat = x.flatten(x.ndim - len(prior.event_shape))
        pyro.sample("y", dist.Normal(flat[..., :count], scale).to_event(1), obs=seen)

    return model


@pytest.mark.parametrize(
    ("size", "count", "shape"), [(2, 1, None), (8, 4, None), (8, 4, (2, 2, 2))]
)
def test_evidence_and_moments_are_those_of_the_closed_form(size, count, shape):
    parts = random_mixture(size, components=3)
    prior = prior_of(parts, shape)
    seen = 0.7 * torch.randn(count, generator=torch.Generator().manual_seed(3))
    log_z, mean = truth_of(parts, seen)
    found = pyro_stad.log_evidence(
        model_of(prior, count), seen, method=Twisted(particles=400, steps=64), progress=False
    )
    # Of the chain's steps 0.05 nat are owed, of the particles what the runs say.
    assert abs(found.log_z - log_z) < 4 * found.log_z_err + 0.05
    assert found.log_z_err < 0.1
    draws = found.draws["x"].flatten(1)
    assert draws.shape == (1600, size)
    assert (draws.mean(0) - mean).abs().max() < 0.12
    assert found.method == "twisted"
    # One for the velocity and one for the trace, whose products are not counted.
    assert found.network_calls == 2 * 64 * 1600


def test_few_steps_are_enough():
    """The variance of the data is in every step, so that eight of them are 0.1 nat off."""
    parts = random_mixture(8, components=3)
    seen = 0.7 * torch.randn(4, generator=torch.Generator().manual_seed(3))
    log_z, _ = truth_of(parts, seen)
    found = pyro_stad.log_evidence(
        model_of(prior_of(parts), 4), seen, method=Twisted(1000, steps=8), progress=False
    )
    assert abs(found.log_z - log_z) < 0.1
    # By the descendants of the first particles; the spread of four runs alone said half of it.
    assert found.log_z_err < 0.12


def test_the_twist_of_a_normal_law_is_its_right_one():
    """Of N(0, I) and a normal likelihood, beta is what makes the twist the true one but for scale.

    With variance s^2 of the noise and r^2 of the data given y, that is s^2 / (s^2 + r^2).
    """
    parts = random_mixture(3, components=1)
    field = GaussianMixtureField(OptimalTransport(), *parts)
    seen = torch.tensor([0.5, -1.0, 0.2])

    def fit(x):
        return dist.Normal(seen, SCALE).to_event(1).log_prob(x)

    problem = TwistedProblem(field, Exact(), fit, 100)
    y = torch.randn(2, 50, 3)
    for angle in (0.2, 0.8, 1.3):
        at = package._look(problem, angle, y, torch.Generator().manual_seed(0))
        wanted = SCALE**2 / (SCALE**2 + math.sin(angle) ** 2)
        assert at.beta == pytest.approx(wanted, rel=1e-6)
        torch.testing.assert_close(at.mean, math.cos(angle) * y, rtol=0, atol=1e-9)
        torch.testing.assert_close(at.variance, torch.full((2, 50), math.sin(angle) ** 2))
    # Of such a law few steps are exact, but for the share of noise that is left in the data.
    z = torch.randn(8, 400, 3, generator=torch.Generator().manual_seed(1))
    found = package.twisted(problem, z, 8, torch.Generator().manual_seed(2))
    wide = 1 / math.cos(field.t_min) ** 2
    wanted = dist.Normal(0.0, math.sqrt(wide + SCALE**2)).log_prob(seen).sum()
    assert (found.log_z.mean() - wanted).abs() < 4 * found.log_z.std() / math.sqrt(8)
    assert found.log_z.std() < 0.1


def test_both_modes_are_found_with_their_weights():
    """A likelihood that can't tell two modes apart, of a prior that has them three to one."""
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])
    parts = torch.tensor([0.75, 0.25]), means, 0.04 * torch.eye(2).expand(2, 2, 2)
    prior = prior_of(parts)

    def model(seen):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., 1], 0.2), obs=seen)

    found = pyro_stad.log_evidence(
        model, torch.tensor(0.1), method=Twisted(400, steps=64), progress=False
    )
    left = (found.draws["x"][:, 0] < 0).double().mean().item()
    assert left == pytest.approx(0.75, abs=0.08)


def test_a_run_is_the_same_again_and_leaves_global_streams_alone():
    prior = prior_of(random_mixture(2, components=2))
    model, seen = model_of(prior, 1), torch.tensor([0.4])
    before = torch.random.get_rng_state()
    options = {"method": Twisted(100, steps=8), "progress": False}
    one, two = (pyro_stad.log_evidence(model, seen, **options) for _ in range(2))
    assert one.log_z == two.log_z
    assert torch.equal(one.draws["x"], two.draws["x"])
    assert torch.equal(torch.random.get_rng_state(), before)
    other = pyro_stad.log_evidence(model, seen, seed=1, **options)
    assert other.log_z != one.log_z


def test_slips_have_messages():
    prior = prior_of(random_mixture(2, components=2))
    seen = torch.tensor([0.4])

    def more(seen):
        x = pyro.sample("x", prior)
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x[..., :1], scale[..., None]).to_event(1), obs=seen)

    def plain(seen):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=seen[0])

    for model, names in ((more, "'x' .* 'scale'"), (plain, "'x' ~ Normal")):
        with pytest.raises(ValueError, match=f"one latent site, .* FlowPrior .* {names}"):
            pyro_stad.log_evidence(model, seen, method="twisted", progress=False)
    free = FreeFormField(2, 8, 2, torch.Generator().manual_seed(0))
    flow = FlowODE(free.double().requires_grad_(False), Exact(), RK4(4))
    with pytest.raises(TypeError, match="needs a prior on a Gaussian path"):
        pyro_stad.log_evidence(
            model_of(prior.with_likelihood(flow), 1), seen, method="twisted", progress=False
        )
    with pytest.raises(ValueError, match="`steps`"):
        Twisted(steps=1)

    def impossible(seen):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., 0], 1.0), obs=seen[0])
        pyro.factor("never", x[..., 0] * 0 - math.inf)

    with pytest.raises(pyro_stad.EvidenceError, match="zero at all particles of 4 of 4 runs"):
        pyro_stad.log_evidence(impossible, seen, method=Twisted(100, steps=4), progress=False)

    def detached(seen):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., 0].detach(), 1.0), obs=seen[0])

    with pytest.raises(ValueError, match=r"no gradient in the latent site .* method='smc'"):
        pyro_stad.log_evidence(detached, seen, method=Twisted(100, steps=4), progress=False)


@pytest.mark.parametrize("wall", [-0.2, 0.5])
def test_where_there_is_no_likelihood_there_are_no_draws(wall):
    """A wall on one coordinate: a mean of the data may be behind it, and the data not."""
    prior = prior_of(random_mixture(2, components=1))

    def model(seen):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., 1], 1.0), obs=seen)
        inside = x[..., 0] > wall
        pyro.factor("wall", torch.where(inside, torch.zeros(()), torch.tensor(-math.inf)))

    seen = torch.tensor(1.0)
    found = pyro_stad.log_evidence(model, seen, method=Twisted(500, steps=32), progress=False)
    normal = dist.Normal(0.0, 1.0)
    above = 1 - normal.cdf(torch.tensor(wall))
    log_z = dist.Normal(0.0, math.sqrt(2)).log_prob(seen) + above.log()
    assert abs(found.log_z - log_z.item()) < 4 * found.log_z_err + 0.05
    x = found.draws["x"][:, 0]
    assert (x > wall).all()
    wanted = normal.log_prob(torch.tensor(wall)).exp() / above
    assert x.mean().item() == pytest.approx(wanted.item(), abs=0.1)


def test_other_priors_and_likelihoods():
    """A fitted one with bounds, in single precision; counts; against tempered particles."""
    source = torch.Generator().manual_seed(0)
    rates = torch.randn(2000, 2, generator=source).mul(0.4).exp()
    prior = pyro_stad.fit(
        rates, names=["a", "b"], bounds={"a": (0, None), "b": (0, None)}, budget="tiny", members=0,
        progress=False,
    )  # fmt: skip

    def model(counts):
        rate = pyro.sample("rate", prior)
        pyro.sample("y", dist.Poisson(rate[..., :1] * torch.ones(3)).to_event(1), obs=counts)

    counts = torch.tensor([2.0, 1.0, 3.0])
    options = {"progress": False, "allow_extrapolation": True}
    found = pyro_stad.log_evidence(model, counts, method=Twisted(500, steps=32), **options)
    other = pyro_stad.log_evidence(model, counts, method="smc", **options)
    error = math.hypot(found.log_z_err, other.log_z_err)
    assert abs(found.log_z - other.log_z) < 4 * error + 0.05
    assert (found.draws["rate"] > 0).all()


def test_draws_of_few_ancestors_are_said_to_be_alike_and_of_one_refused():
    """A likelihood that hardly a particle can meet."""
    prior = prior_of(random_mixture(4, components=1))
    options = {"progress": False, "allow_extrapolation": True}
    model, seen = model_of(prior, 4, 0.003), torch.full((4,), 0.5)
    with pytest.warns(pyro_stad.EvidenceWarning, match="descend from|were effective"):
        found = pyro_stad.log_evidence(model, seen, method=Twisted(200, steps=64), **options)
    assert any("descend from" in text for text in found.warnings)
    with pytest.raises(pyro_stad.EvidenceError, match="neither posterior nor evidence"):
        pyro_stad.log_evidence(
            model_of(prior, 4, 0.1), torch.full((4,), 6.0), method=Twisted(100), **options
        )


def test_a_mean_between_two_modes_is_not_where_the_curvature_is():
    """Of y = x^2, at x = 0 the likelihood is lowest: sure of nothing, and not of everything."""
    prior = prior_of(random_mixture(2, components=1))

    def model(seen):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x[..., 0] ** 2, 0.2), obs=seen)

    seen, grid = torch.tensor(1.5), torch.linspace(-6, 6, 20_001)
    log_p = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, 0.2).log_prob(seen)
    log_z = torch.logsumexp(log_p, 0) + math.log(12 / 20_000)
    found = pyro_stad.log_evidence(model, seen, method=Twisted(500), progress=False)
    assert abs(found.log_z - log_z.item()) < 4 * found.log_z_err + 0.05
    assert found.log_z_err < 0.2
    assert (found.draws["x"][:, 0] > 0).double().mean().item() == pytest.approx(0.5, abs=0.2)
