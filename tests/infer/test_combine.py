"""Experiments combined: against closed forms of normal laws, and where names do not go together."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_sample
from pyro.optim import Adam

import pyro_stad
from pyro_stad import OutOfDistributionWarning
from pyro_stad.infer import FlowReparam, combine, correct, tension
from pyro_stad.infer.shared import SharedPrior

COMMON = {"a": dist.Normal(torch.zeros(()), 5.0), "b": dist.Normal(torch.zeros(()), 5.0)}


def fitted(shift, own, seed, count=6000):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator)
    x[:, 0] += shift
    x[:, 2] += 0.5 * x[:, 0]
    return pyro_stad.fit(
        x, names=["a", "b", own], budget="tiny", members=2, progress=False, dtype=torch.float64
    )


@pytest.fixture(scope="module")
def pair():
    torch.set_default_dtype(torch.float64)
    return fitted(0.0, "m", 0), fitted(1.0, "n", 1)


@pytest.fixture(scope="module")
def combined(pair):
    torch.set_default_dtype(torch.float64)
    return combine(*pair, shared_prior=COMMON, progress=False)


def truth(*shifts):
    """log R of unit normals at ``shifts`` under N(0, 25), in one dimension."""
    axis = torch.linspace(-15, 20, 20_001)
    total = -dist.Normal(0.0, 5.0).log_prob(axis) * (len(shifts) - 1)
    for shift in shifts:
        total = total + dist.Normal(shift, 1.0).log_prob(axis)
    return (torch.logsumexp(total, 0) + (axis[1] - axis[0]).log()).item()


def posterior_of(shifts):
    """Mean and sd of a shared parameter: precisions add up, the common prior's taken off."""
    precision = len(shifts) - (len(shifts) - 1) / 25
    return sum(shifts) / precision, precision**-0.5


def test_the_normaliser_is_the_bayes_ratio(combined):
    wanted = truth(0.0, 1.0) + truth(0.0, 0.0)
    assert abs(combined.log_ratio - wanted) < 0.1 + 3 * combined.log_ratio_err
    assert combined.log_ratio_err < 0.3
    assert combined.names == ("a", "b", "m", "n")
    assert "log R" in repr(combined)
    assert "shared: a, b" in combined.summary()


def test_draws_and_density_are_of_the_combined_law(combined):
    mean, sd = posterior_of((0.0, 1.0))
    draws = combined.sample((3000,))
    assert draws.shape == (3000, 4)
    assert abs(draws[:, 0].mean() - mean) < 0.15
    assert abs(draws[:, 0].std() / sd - 1) < 0.1
    # What only one has goes along: half of what the other one says of a.
    assert abs(draws[:, 2].mean() - 0.5 * mean) < 0.2
    assert set(combined.unpack(draws)) == {"a", "b", "m", "n"}
    # The density of the law in closed form, shared part and own parts.
    x = draws[:200]
    known = dist.Normal(torch.tensor([mean, posterior_of((0.0, 0.0))[0]]), sd)
    own = dist.Normal(0.5 * x[:, :1], 1.0)
    wanted = known.log_prob(x[:, :2]).sum(-1) + own.log_prob(x[:, 2:]).sum(-1)
    error = combined.log_prob(x) - wanted
    assert abs(error.mean()) < 0.2
    assert error.std() < 0.5


def test_three_experiments_count_the_prior_once(pair):
    third = fitted(-0.5, "k", 2)
    combined = combine(*pair, third, shared_prior=COMMON, progress=False)
    wanted = truth(0.0, 1.0, -0.5) + truth(0.0, 0.0, 0.0)
    assert abs(combined.log_ratio - wanted) < 0.15 + 3 * combined.log_ratio_err
    mean, sd = posterior_of((0.0, 1.0, -0.5))
    assert abs(combined.pool[:, 0].mean() - mean) < 0.15
    assert abs(combined.pool[:, 0].std() / sd - 1) < 0.15


def test_it_goes_into_nuts_svi_and_evidence(combined):
    """A third datum of a: the posterior and the evidence are in closed form."""

    def model():
        theta = pyro.sample("theta", combined)
        pyro.sample("y", dist.Normal(theta[..., 0], 1.0), obs=torch.tensor(1.5))

    mean, sd = posterior_of((0.0, 1.0))
    wanted = (mean / sd**2 + 1.5) / (1 / sd**2 + 1)
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample, max_tree_depth=5), 150, 80, disable_progbar=True
    )
    mcmc.run()
    theta = mcmc.get_samples()["theta"]
    assert abs(theta[:, 0].mean() - wanted) < 0.35
    svi = SVI(
        model, AutoNormal(model, init_loc_fn=init_to_sample), Adam({"lr": 0.02}), Trace_ELBO()
    )
    assert all(math.isfinite(svi.step()) for _ in range(10))
    found = pyro_stad.log_evidence(FlowReparam()(model), progress=False)
    known = dist.Normal(mean, math.hypot(sd, 1.0)).log_prob(torch.tensor(1.5)).item()
    assert abs(found.log_z - known) < 0.15 + 3 * combined.log_ratio_err


def test_a_combination_is_corrected_too(combined):
    def model():
        theta = pyro.sample("theta", combined)
        pyro.sample("y", dist.Normal(theta[..., 0], 1.0), obs=torch.tensor(1.5))

    theta = combined.pool[:200]
    found = correct({"theta": theta}, model, draws=200)
    assert found.sites == ("theta",)
    ratio = sum(
        prior.exact().log_prob(combined.together.part(theta, index))
        - prior.log_prob(combined.together.part(theta, index))
        for index, prior in enumerate(combined.together.priors)
    )
    wanted = ratio - torch.logsumexp(ratio, 0)
    below = wanted.argsort()[:150]
    assert (found.log_weights[0][below] - wanted[below]).abs().max() < 0.05
    assert (found.log_weights[0][below] - wanted[below]).std() < 1e-6


@pytest.mark.parametrize("apart", [0.0, 1.5])
def test_tension_is_that_of_normal_laws(apart):
    first, second = fitted(0.0, "m", 3), fitted(apart, "n", 4)
    found = tension(first, second, shared_prior=COMMON, progress=False)
    wanted = truth(0.0, apart) + truth(0.0, 0.0)
    assert abs(found.log_ratio - wanted) < 0.1 + 2 * found.log_ratio_err
    # log S = d / 2 - apart^2 / 4, of two dimensions that both constrain.
    assert (
        abs(found.log_suspiciousness - (1 - apart**2 / 4)) < 0.15 + 3 * found.log_suspiciousness_err
    )
    assert abs(found.dimension - 2) < 0.5
    assert found.is_reliable
    assert "agree" in found.sentence()
    assert "log R" in found.summary()


def test_experiments_too_far_apart_are_said_to_be():
    first, second = fitted(0.0, "m", 5, 2000), fitted(7.5, "n", 6, 2000)
    found = tension(first, second, shared_prior=COMMON, progress=False)
    assert not found.is_reliable
    assert found.shift > 4
    assert "too far for their samples" in found.sentence()
    with pytest.warns(OutOfDistributionWarning, match="the combination is extrapolated"):
        combined = combine(first, second, shared_prior=COMMON, progress=False)
    assert "WARNING" in combined.summary()


def test_a_shared_prior_of_any_kind_says_the_same(pair):
    x = torch.randn(5, 2)
    vector = dist.Normal(torch.zeros(2), 5.0).to_event(1)
    by_name, together = SharedPrior.of(COMMON, None), SharedPrior.of(vector, ["a", "b"])
    torch.testing.assert_close(by_name.log_prob(x), together.log_prob(x))
    walls = SharedPrior.of({"a": dist.Uniform(0.0, 1.0)}, None)
    assert walls.log_prob(torch.tensor([[0.5], [1.5], [-2.0]])).tolist() == [
        0,
        -math.inf,
        -math.inf,
    ]
    learned = SharedPrior.of(pair[0], None)
    assert learned.names == ("a", "b", "m")


def test_names_that_do_not_go_together_are_refused(pair):
    first, second = pair
    twin = fitted(0.0, "m", 7, 200)
    for arguments, options, message in (
        ((first,), {"shared_prior": COMMON}, "at least two experiments"),
        ((first, second), {"shared_prior": None}, "chains were sampled under a prior"),
        ((first, second), {"shared_prior": {}}, "must name a parameter"),
        ((first, second), {"shared_prior": {"a": 3.0}}, "must be a distribution of one number"),
        ((first, second), {"shared_prior": {"z": dist.Normal(0.0, 1.0)}}, r"has no \['z'\]"),
        ((first, twin), {"shared_prior": COMMON}, r"has \['m'\] in common with another one"),
        ((first, second), {"shared_prior": dist.Normal(0.0, 1.0)}, "`shared` must name"),
        ((first, second.to(torch.float32)), {"shared_prior": COMMON}, "is torch.float32 on cpu"),
        ((first, dist.Normal(0.0, 1.0)), {"shared_prior": COMMON}, "must be a FlowPrior of named"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            combine(*arguments, **options, progress=False)
