"""ArviZ 0.x and 1.x from one dictionary of groups."""

import math

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.mcmc.api import _MultiSampler
from pyro.infer.reparam import TransformReparam

from pyro_stad import OutOfDistributionWarning, log_evidence, to_arviz
from pyro_stad._arviz import generation
from pyro_stad.density.alarm import alarm_level
from pyro_stad.interop.arviz import _counts

Y = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)


def model_of(prior):
    def model(y=Y):
        theta = pyro.sample("theta", prior)
        pyro.deterministic("double", 2 * theta)
        with pyro.plate("n", 3):
            pyro.sample("y", dist.Normal(theta[1], 0.7), obs=y)

    return model


def chain(model):
    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=3)
    mcmc = MCMC(kernel, 20, 5, disable_progbar=True)
    mcmc.run()
    return mcmc


@pytest.fixture(scope="module")
def sampled(tiny_prior):
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    return chain(model_of(tiny_prior))


def test_groups(sampled, tiny_prior):
    data = to_arviz(sampled, model=model_of(tiny_prior), predictive=7)
    posterior = data["posterior"]
    assert posterior["theta"].shape == (1, 20, 3)
    assert list(posterior["theta_name"].values) == ["scale", "shift", "slope"]
    np.testing.assert_allclose(posterior["double"].values, 2 * posterior["theta"].values)
    likelihood = data["log_likelihood"]
    assert set(likelihood.data_vars) == {"y"}, "deterministic sites have no likelihood"
    theta = torch.tensor(posterior["theta"].values)
    expected = dist.Normal(theta[..., 1:2], 0.7).log_prob(Y)
    np.testing.assert_allclose(likelihood["y"].values, expected, rtol=1e-12)
    statistics = data["sample_stats"]
    assert statistics["diverging"].shape == (1, 20)
    assert 0 < float(statistics["acceptance_rate"][0, 0]) <= 1
    joint = tiny_prior.log_prob(theta) + expected.sum(-1)
    np.testing.assert_allclose(statistics["lp"].values, joint, rtol=1e-10)
    assert statistics["tail_probability"].shape == statistics["density_level"].shape == (1, 20)
    assert statistics["surrogate_error"].shape == (1, 20)
    assert (statistics["surrogate_error"] > 0).all()
    assert statistics.attrs["theta_failed"] == 0
    alarm = alarm_level(tiny_prior.reference.effective)
    assert alarm > 5e-3
    assert statistics.attrs["theta_tail"] == int((statistics["tail_probability"] < alarm).sum())
    assert statistics.attrs["theta_level"] == int((statistics["density_level"] < alarm).sum())
    np.testing.assert_allclose(data["observed_data"]["y"].values, Y)
    assert data["prior"]["theta"].shape == (1, 7, 3)
    assert data["prior_predictive"]["y"].shape == (1, 7, 3)
    assert data["posterior_predictive"]["y"].shape == (1, 20, 3)


def elpd(loo):
    """Return the number that the two generations of ArviZ name differently."""
    return loo.elpd_loo if generation() == 0 else loo.elpd


@pytest.mark.filterwarnings("ignore:Estimated shape parameter", "ignore:.*alias_mapping")
def test_summary_loo_and_trace_plot_run(tiny_prior):
    import matplotlib

    matplotlib.use("Agg")
    draws = {"theta": tiny_prior.sample((80,))}
    data = to_arviz(draws, model=model_of(tiny_prior), num_chains=2)
    table = arviz.summary(data)
    assert "theta[scale]" in table.index
    assert np.isfinite(elpd(arviz.loo(data)))
    assert arviz.plot_trace(data, var_names=["theta"]) is not None


def test_reparametrised_model_shows_the_site_itself(tiny_prior):
    model = poutine.reparam(model_of(tiny_prior), config={"theta": TransformReparam()})
    data = to_arviz(chain(model), model=model, prior={"theta": tiny_prior})
    assert {"theta_base", "theta", "double"} <= set(data["posterior"].data_vars)
    assert list(data["posterior"]["theta_name"].values) == ["scale", "shift", "slope"]
    assert set(data["log_likelihood"].data_vars) == {"y"}


def test_plates_keep_their_axis(tiny_prior):
    draws = {"theta": tiny_prior.expand((4,)).sample((10,))}
    theta = to_arviz(draws, prior=tiny_prior)["posterior"]["theta"]
    assert theta.shape == (1, 10, 4, 3)
    assert theta.dims[2:] == ("theta_plate_0", "theta_name")


def test_plain_draws_and_several_chains(tiny_prior):
    draws = {"theta": tiny_prior.sample((40,)), "other": torch.randn(40)}
    data = to_arviz(draws, prior=tiny_prior, num_chains=4)
    assert data["posterior"]["theta"].shape == (4, 10, 3)
    np.testing.assert_allclose(data["posterior"]["theta"].values[1, 0], draws["theta"][10])


def test_draws_where_nothing_was_seen_warn(tiny_prior):
    draws = {"theta": tiny_prior.sample((50,)) + torch.tensor([0.0, 30.0, 0.0])}
    with pytest.warns(OutOfDistributionWarning, match="100.0% of the draws of 'theta'"):
        to_arviz(draws, prior=tiny_prior)


BAD = {
    "not draws": (lambda p: to_arviz(3), TypeError, "or draws by site; got int"),
    "empty": (lambda p: to_arviz({}), TypeError, "got dict"),
    "too many coordinates": (
        lambda p: to_arviz({"theta": torch.ones(10, 7)}, prior=p), ValueError,
        r"no site has as many in its last dimension: \{'theta': \(7,\)\}",
    ),
    "ragged": (
        lambda p: to_arviz({"a": torch.ones(3), "b": torch.ones(4)}), ValueError, "as many draws"
    ),
    "chains": (lambda p: to_arviz({"a": torch.ones(5)}, num_chains=2), ValueError, "num_chains"),
    "unknown site": (
        lambda p: to_arviz({"a": torch.ones(5)}, prior={"b": p}), ValueError, r"sites \['b'\]"
    ),
    "no site fits": (
        lambda p: to_arviz({"a": torch.ones(5)}, prior=p), ValueError, r"no site has .*'a': \(\)"
    ),
    "two sites fit": (
        lambda p: to_arviz({"a": torch.ones(5, 3), "b": torch.ones(5, 3)}, prior=p), ValueError,
        "pass it as a mapping",
    ),
    "not run": (
        lambda p: to_arviz(MCMC(NUTS(model_of(p)), 1, disable_progbar=True)), ValueError, "not run"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_are_named(name, tiny_prior):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(tiny_prior)


def test_an_evidence_keeps_its_numbers(tiny_prior):
    y = tiny_prior.sample((20,)).mean(0)

    def model(y):
        x = pyro.sample("theta", tiny_prior)
        with pyro.plate("coordinates", 3):
            pyro.sample("y", dist.Normal(x[..., 1], 1.0), obs=y)

    found = log_evidence(model, y, particles=200, progress=False)
    data = to_arviz(found, prior={"theta": tiny_prior})
    assert data["posterior"]["theta"].shape == (1, 800, 3)
    assert list(data["posterior"]["theta_name"].values) == ["scale", "shift", "slope"]
    assert data["log_likelihood"]["y"].shape == (1, 800, 3)
    numbers = data["posterior"].attrs
    assert numbers["log_z"] == found.log_z
    assert numbers["log_z_err"] == found.log_z_err
    assert numbers["evidence_method"] == found.method
    ((other, check),) = found.checks.items()
    assert numbers[f"log_z_{other}"] == check[0]
    assert numbers["evidence_data"] == found.data


def trace_of(model, args, draws, index):
    """Return the log-probability of Pyro's own trace of one draw."""
    values = {name: value[index] for name, value in draws.items()}
    return poutine.trace(pyro.condition(model, values)).get_trace(*args).log_prob_sum().item()


GAPS = torch.tensor([0.3, math.nan, -0.2], dtype=torch.float64)
DRAWS = 6


def masked(prior):
    def model(y):
        theta = pyro.sample("theta", prior)
        with pyro.plate("n", 3), poutine.mask(mask=~y.isnan()):
            pyro.sample("y", dist.Normal(theta[..., 1:2], 0.5), obs=y.nan_to_num(99.0))

    return model, {"theta": prior.sample((DRAWS,))}


def scaled(prior):
    def model(y):
        with poutine.scale(scale=0.1):
            theta = pyro.sample("theta", prior)
            pyro.sample("y", dist.Normal(theta[..., 1], 0.5), obs=y[0])

    return model, {"theta": prior.sample((DRAWS,))}


def imputed(prior):
    def model(y):
        theta = pyro.sample("theta", prior)
        with pyro.plate("n", 3):
            law = dist.Normal(theta[..., 1:2], 0.5)
            pyro.sample("y", law, obs=y.nan_to_num(99.0), obs_mask=~y.isnan())

    return model, {"theta": prior.sample((DRAWS,)), "y_unobserved": torch.randn(DRAWS, 3)}


def prior_masked(prior):
    def model(y):
        keep = pyro.sample("keep", dist.Normal(0.0, 1.0)) > 0
        with poutine.mask(mask=keep):
            theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[..., 1], 0.5), obs=y[0])

    return model, {"keep": torch.randn(DRAWS), "theta": prior.sample((DRAWS,))}


def observed(prior):
    data = prior.sample((5,))

    def model(y):
        shift = pyro.sample("shift", dist.Normal(0.0, 0.1))
        with pyro.plate("n", 5):
            pyro.sample("x", prior, obs=data + shift.abs())

    return model, {"shift": 0.1 * torch.randn(DRAWS)}


def factor(prior):
    def model(y):
        theta = pyro.sample("theta", prior)
        pyro.factor("penalty", -theta[..., 0])
        pyro.sample("y", dist.Normal(theta[..., 1], 0.5), obs=y[0])

    return model, {"theta": prior.sample((DRAWS,))}


def of_numpy(prior):
    model, draws = masked(prior)
    return model, {name: value.numpy() for name, value in draws.items()}


REPLAYED = [masked, scaled, imputed, prior_masked, observed, factor, of_numpy]


@pytest.mark.parametrize("make", REPLAYED, ids=lambda m: m.__name__)
def test_lp_is_the_log_probability_of_the_trace(make, tiny_prior):
    model, draws = make(tiny_prior)
    data = to_arviz(draws, model=model, args=(GAPS,))
    tensors = {name: torch.as_tensor(value) for name, value in draws.items()}
    expected = [trace_of(model, (GAPS,), tensors, index) for index in range(DRAWS)]
    np.testing.assert_allclose(data["sample_stats"]["lp"].values[0], expected, rtol=1e-9)
    for site in data["log_likelihood"].data_vars:
        # What is missing weighs nothing.
        assert (data["log_likelihood"][site].values > -1000).all()
    assert "penalty" not in data["log_likelihood"].data_vars


def subsampled(prior):
    def model():
        theta = pyro.sample("theta", prior)
        with pyro.plate("n", 50, subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(theta[..., 1:2], 1.0), obs=torch.zeros(50)[rows])

    return model, {"theta": prior.sample((DRAWS,))}, "plate 'n' takes a subsample of 5 of 50"


def summed_out(prior):
    def model():
        w = pyro.sample("w", dist.Beta(1.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(w), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(3.0 * z, 0.5), obs=torch.tensor(1.0))

    return model, {"w": torch.full((DRAWS,), 0.5)}, "site 'z' has no draws.*summed out"


def reparametrised(prior):
    def model():
        pyro.sample("theta", prior)

    return model, {"theta_base": torch.zeros(DRAWS, 3)}, "site 'theta' has no draws.*reparametrised"


def foreign(prior):
    def model():
        pyro.sample("theta", prior)

    draws = {"theta": prior.sample((DRAWS,)), "other": torch.zeros(DRAWS)}
    return model, draws, r"draws of \['other'\], which the model does not sample"


@pytest.mark.parametrize("make", [subsampled, summed_out, reparametrised, foreign])
def test_a_replay_that_would_guess_is_refused(make, tiny_prior):
    model, draws, message = make(tiny_prior)
    with pytest.raises(ValueError, match=message):
        to_arviz(draws, model=model)


def test_draws_that_are_no_numbers():
    with pytest.raises(TypeError, match="'a' is list"):
        to_arviz({"a": ["x", "y"]})


def test_counts_of_chains_that_ran_elsewhere_are_unknown(tiny_prior, sampled):
    """Two processes keep their counts to themselves; draws by site may come from anywhere."""
    model = model_of(tiny_prior)
    here = to_arviz(sampled, model=model)["sample_stats"].attrs
    assert here["theta_points"] > 0
    draws = {"theta": tiny_prior.sample((20,))}
    assert to_arviz(draws, prior=tiny_prior, model=None)["posterior"]["theta"].shape == (1, 20, 3)
    attributes = to_arviz(draws, model=model_of(tiny_prior))["sample_stats"].attrs
    assert attributes["theta_failed"] == "unknown"
    elsewhere = MCMC(NUTS(model), 2, 1, disable_progbar=True)
    elsewhere.sampler = object.__new__(_MultiSampler)  # what it has where there are cores
    assert _counts({"theta": tiny_prior}, elsewhere)["theta_points"] == "unknown"
