"""The demonstration's truths: grids, exact draws and models, each against the other."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_stad.demo import kinetics, story
from pyro_stad.demo.grid import Grid
from pyro_stad.demo.ridge import grid_over, normal_fits
from pyro_stad.demo.sampling import errors

LAWS = {
    "gamma": (dist.Gamma, (3.0, 2.0), (1e-8, 1e4)),
    "narrow": (dist.Gamma, (40_000.0, 1.0), (1e-8, 1e8)),
    "half-normal, up to its wall": (dist.HalfNormal, (0.3,), (1e-12, 1e4)),
}


def posterior(part):
    return grid_over(lambda theta: kinetics.log_prior(theta) + kinetics.log_likelihood(theta, part))


@pytest.mark.parametrize("name", LAWS)
def test_a_grid_knows_mass_and_moments(name):
    """Of a product with a second, wider law; the extent is found, and leaves 1e-9 outside."""
    kind, arguments, (low, high) = LAWS[name]
    law = kind(*map(torch.tensor, arguments))
    other = dist.LogNormal(0.0, 1.0)
    grid = Grid.over(
        lambda theta: 1.5 + law.log_prob(theta[..., 0]) + other.log_prob(theta[..., 1]),
        (low, 1e-6),
        (high, 1e6),
        (200, 80),
    )
    mean, sd = grid.moments()
    assert abs(grid.log_mass - 1.5) < 1e-7
    torch.testing.assert_close(mean, torch.stack([law.mean, other.mean]), rtol=1e-5, atol=0)
    torch.testing.assert_close(sd, torch.stack([law.stddev, other.stddev]), rtol=1e-4, atol=0)
    widths = [axis[1] - axis[0] for axis in grid.axes]
    assert abs(grid.marginal(1).sum() * widths[1] - 1) < 1e-12
    assert grid.marginal(0, 1).shape == (200, 80)


def test_the_truth_of_the_enzyme_does_not_depend_on_the_grid():
    """Against a finer grid; and the figures that others have found."""
    truth = posterior(kinetics.ALL)
    finer = Grid.over(
        lambda theta: kinetics.log_prior(theta) + kinetics.log_likelihood(theta, kinetics.ALL),
        (1.0, 1e-6, 0.1),
        (1e5, 1e2, 1e3),
        (160, 160, 80),
    )
    assert abs(truth.log_mass - finer.log_mass) < 1e-5
    mean, sd = truth.moments()
    torch.testing.assert_close(mean, finer.moments()[0], rtol=1e-6, atol=0)
    assert abs(mean[0] - 213.8) < 0.05
    assert abs(sd[0] - 8.4) < 0.05
    assert abs(mean[1] - 0.0663) < 5e-5
    assert abs(sd[1] - 0.0106) < 5e-5


def test_exact_draws_have_the_moments_of_the_grid():
    """5 standard errors of means; the sds have heavier tails than normal laws, hence 10."""
    count = 5000
    drawn = kinetics.draw_posterior_of_a(count, torch.Generator().manual_seed(1))
    mean, sd = posterior(kinetics.A).moments()
    assert drawn.shape == (count, 3)
    assert ((drawn.mean(0) - mean).abs() / sd).max() < 5 / count**0.5
    assert (drawn.std(0) / sd - 1).abs().max() < 10 / (2 * count) ** 0.5


def test_v_integrated_out_is_v_on_the_grid():
    """Michaelis and Menten's law is Hill's at n = 1: the same evidence by both quadratures."""

    def log_density(theta):
        prior = dist.HalfNormal(torch.tensor([0.5, 20.0])).log_prob(theta).sum(-1)
        laws = torch.cat([theta, torch.ones_like(theta[..., :1])], -1)
        return prior + kinetics.log_marginal_likelihood(laws, kinetics.ALL)

    by_hand = Grid.over(log_density, (1e-6, 0.1), (1e2, 1e3), (200, 100)).log_mass
    assert abs(by_hand - posterior(kinetics.ALL).log_mass) < 1e-5


def test_models_are_prior_times_likelihood():
    theta = torch.tensor([210.0, 0.07, 11.0])
    values = dict(zip(kinetics.NAMES, theta))
    trace = poutine.trace(pyro.condition(kinetics.michaelis_menten, values)).get_trace()
    expected = kinetics.log_prior(theta) + kinetics.log_likelihood(theta, kinetics.ALL)
    torch.testing.assert_close(trace.log_prob_sum(), expected)
    # Hill's law at n = 1 has the density of its prior more, and nothing else.
    trace = poutine.trace(
        pyro.condition(kinetics.hill, {**values, "n": torch.tensor(1.0)})
    ).get_trace()
    more = -math.log(0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(trace.log_prob_sum(), expected + more)
    flat = dist.HalfNormal(torch.tensor([400.0, 0.5, 20.0])).to_event(1)
    model = pyro.condition(kinetics.update, {"theta": theta})
    expected = kinetics.log_prior(theta) + kinetics.log_likelihood(theta, kinetics.B)
    torch.testing.assert_close(poutine.trace(model).get_trace(flat).log_prob_sum(), expected)


def test_no_normal_law_describes_the_ridge():
    """Errors in K with the moments of 20,000 draws: 1.3 sd and 50%; in logarithms 0.5 sd, 36%."""
    draws = kinetics.draw_posterior_of_a(20_000, torch.Generator().manual_seed(0))
    truth = posterior(kinetics.ALL).moments()
    expected = {"multivariate normal": (1.3, 0.5), "log-normal": (0.5, 0.36)}
    for name, log_density in normal_fits(draws).items():
        grid = grid_over(
            lambda theta, prior=log_density: (
                prior(theta) + kinetics.log_likelihood(theta, kinetics.B)
            )
        )
        found = errors(*grid.moments(), truth)
        assert abs(found["mean_error"][1] - expected[name][0]) < 0.1
        assert abs(found["sd_error"][1] - expected[name][1]) < 0.05


def answers(ridge, normal, r_hat=1.0):
    """Return a summary with the given errors of K, by the learned prior and the normal fits."""
    learned = {"mean_error": [ridge], "worst_mean_error": ridge, "r_hat": r_hat}
    fitted = {"mean_error": [normal], "worst_mean_error": normal}
    names = {"multivariate normal": fitted, "log-normal": fitted}
    return {"parameters": ["K"], "answers": {"learned prior, x-space": learned, **names}}


@pytest.mark.parametrize(
    ("summary", "ridge", "regression"),
    [
        (answers(0.05, 0.5), "needs a flow", "does not serve"),
        (answers(0.08, 0.1), "does not show", "serves as well"),
        (answers(0.5, 2.0), "does not show", "does not serve"),
        (answers(0.05, 0.5, r_hat=1.9), "have not mixed", "have not mixed"),
    ],
)
def test_verdicts_follow_from_the_numbers(summary, ridge, regression):
    assert ridge in story._of_ridge(summary)
    assert regression in story._of_regression(summary)
