"""Posterior summaries with the error of learning, against closed forms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad import log_evidence, posterior_summary, to_arviz
from pyro_stad._arviz import from_dict


def data_of(draws, log_weights):
    chains = 2
    posterior = {k: v.reshape(chains, -1, *v.shape[1:]).numpy() for k, v in draws.items()}
    weights = log_weights.reshape(chains, -1, log_weights.shape[1]).numpy()
    groups = {"posterior": posterior, "sample_stats": {"learning_log_weights": weights}}
    return from_dict(groups, coords={}, dims={"learning_log_weights": ["learning_member"]})


def test_the_errors_are_those_of_tilted_laws():
    """Weights exp(c x): a normal law's mean shifts by c, its width does not; and of exp(c x^2)."""
    c, count = 0.02, 400_000
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    weights = torch.stack([c * x, c * x, 0.5 * c * x.square()], 1)
    table = posterior_summary(data_of({"x": x, "two": torch.stack([x, 3 * x + 7], 1)}, weights))
    assert list(table.index) == ["x", "two[0]", "two[1]"]
    # The moments of so many draws are known to a part in 300 or better.
    expected = math.sqrt(2) * c * np.array([1.0, 1.0, 3.0])
    np.testing.assert_allclose(table["mean_learning"], expected, rtol=0.02)
    width = 1 / math.sqrt(1 - c) - 1
    np.testing.assert_allclose(table["sd_learning"], width * np.array([1.0, 1.0, 3.0]), rtol=0.03)
    assert {"mean", "sd"} <= set(table.columns)


def test_variables_are_chosen_by_name():
    x = torch.randn(200)
    data = data_of({"x": x, "y": x + 1}, torch.zeros(200, 3))
    table = posterior_summary(data, var_names=["y"])
    assert list(table.index) == ["y"]
    assert table["mean_learning"].tolist() == pytest.approx([0.0], abs=1e-12)
    assert list(posterior_summary(data, var_names="y").index) == ["y"]
    with pytest.raises(TypeError, match="`data`"):
        posterior_summary(3)
    with pytest.raises(ValueError, match=r"`var_names` \['z'\]"):
        posterior_summary(data, var_names=["z"])


def test_data_without_members_are_refused():
    x = torch.randn(200)
    with pytest.raises(ValueError, match="members"):
        posterior_summary(to_arviz({"x": x}))


def test_draws_and_evidence_give_the_same_error(free_prior):
    """NUTS would give these draws; the members of one prior at two sites are off together."""

    def model(y):
        theta = pyro.sample("theta", free_prior)
        with pyro.plate("n", 3):
            other = pyro.sample("other", free_prior)
        mean = theta[..., 0] + other[..., 0].sum(-1, keepdim=True)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor(1.0)
    found = log_evidence(model, y, progress=False, particles=200, repeats=2)
    by_evidence = to_arviz(found)["sample_stats"]["learning_log_weights"].values
    again = to_arviz(found.draws, model=model, args=(y,))["sample_stats"]
    by_draws = again["learning_log_weights"].values
    assert by_draws.shape[-1] == free_prior.spread.members
    np.testing.assert_allclose(by_draws, by_evidence, rtol=1e-5, atol=1e-7)
    each = [free_prior.deviations(found.draws[site])[0] for site in ("theta", "other")]
    total = free_prior.spread.log_weights(each[0] + each[1].sum(1))
    np.testing.assert_allclose(by_draws[0], total.numpy(), rtol=1e-5, atol=1e-7)
    table = posterior_summary(to_arviz(found))
    assert (table["mean_learning"] > 0).all()
    assert len(table) == 8


def test_a_prior_without_members_leaves_the_error_unknown():
    values = torch.randn(300, 2)
    prior = pyro_stad.fit(values, members=0, budget="tiny", progress=False, dtype=torch.float64)

    def model(y):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)

    found = log_evidence(model, torch.zeros(2), progress=False, particles=200, repeats=2)
    assert found.learning is None
    assert found.support.expected > 0  # by other places
    with pytest.raises(ValueError, match="members"):
        posterior_summary(to_arviz(found))


def test_a_cut_is_known_to_draws_too(free_prior):
    cut = free_prior.truncate(lambda t: t["x"][..., 0] > 0)

    def model(y):
        theta = pyro.sample("theta", cut)
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)

    y = torch.tensor([0.5, 0.0])
    draws = {"theta": cut.sample((60,))}
    found = to_arviz(draws, model=model, args=(y,))["sample_stats"]["learning_log_weights"].values
    expected = cut.learning_log_weights(draws["theta"])
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-6, atol=1e-9)
    uncut = free_prior.learning_log_weights(draws["theta"])
    assert (expected - uncut).abs().max() > 0
    result = log_evidence(model, y, progress=False, particles=200, repeats=2)
    inside = cut.learning_log_weights(result.draws["theta"])
    torch.testing.assert_close(result.learning, inside, rtol=1e-5, atol=1e-7)
