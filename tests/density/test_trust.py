"""Alarms: how far out a point is and how probable it looks, against closed forms."""

import math

import pytest
import torch

from pyro_stad.data import Layout
from pyro_stad.data.reference import Reference
from pyro_stad.density import FLAGGED, FlowPrior, alarm_level, extrapolation, is_extrapolated
from pyro_stad.divergence import Exact
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from tests.oracles import field_on, gaussian

DRAWS = 4096


def prior_of(parts, names="ab", **options):
    flow = FlowODE(field_on("ot", parts), Exact(), RK4(16))
    size = len(names)
    return FlowPrior(flow, torch.zeros(size), torch.eye(size), Layout.of(names), **options)


def valley():
    """Two modes two apart, of a tenth in width."""
    mean, covariance = torch.tensor([0.99**0.5, 0.0]), torch.diag(torch.tensor([0.01, 1.0]))
    return torch.full((2,), 0.5), torch.stack([mean, -mean]), covariance.expand(2, 2, 2)


def test_the_level_of_a_normal_law_is_the_chance_to_be_farther_out():
    prior = prior_of(gaussian(2))
    radius = torch.linspace(0.0, 3.5, 15)
    x = torch.stack([radius, torch.zeros(15)], 1)
    level, expected = prior.density_level(x), (-0.5 * radius.square()).exp()
    # Kolmogorov: the largest error of a share of n draws, but once in a thousand.
    assert (level - expected).abs().max() < 1.95 / math.sqrt(DRAWS)
    torch.testing.assert_close(prior.tail_probability(x), expected, atol=0.02, rtol=0)


def test_a_valley_is_seen_by_its_level_and_not_by_its_noise():
    prior = prior_of(valley())
    middle = torch.zeros(1, 2)
    assert prior.tail_probability(middle) > 0.5
    assert prior.density_level(middle) < FLAGGED
    assert is_extrapolated(prior, prior.transport.pull(middle), middle).all()
    mode = torch.tensor([[0.99**0.5, 0.0]])
    assert prior.density_level(mode) > 0.9
    assert not is_extrapolated(prior, prior.transport.pull(mode), mode).any()


def test_alarms_go_off_at_the_stated_rate():
    """On the prior's own draws, each at a thousandth: in 4,000 at most 8 + 5 * sqrt(8)."""
    prior = prior_of(valley())
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    assert is_extrapolated(prior, noise, prior.transport.push(noise)).sum() <= 22


def test_alarms_know_how_many_samples_there_were():
    few = Reference(torch.zeros(200, 2), 100.0)
    known, unknown = prior_of(gaussian(2), reference=few), prior_of(gaussian(2))
    assert (known.alarm_level, unknown.alarm_level) == (0.05, FLAGGED)
    assert known.truncate(lambda t: t["a"] > -4.0).alarm_level == 0.05
    # Of a normal law in the plane, exp(-r^2 / 2) of the draws are further out than r.
    x = torch.tensor([[2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    assert is_extrapolated(known, x, x).tolist() == [False, True, True]
    assert is_extrapolated(unknown, x, x).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("effective", "level"), [(10_000, 1e-3), (5_000, 1e-3), (1_000, 5e-3), (100, 0.05), (3, 0.05)]
)
def test_an_alarm_level_is_that_of_five_samples(effective, level):
    assert alarm_level(effective) == pytest.approx(level)


def test_of_several_draws_of_a_prior_the_worst_counts():
    flagged = torch.zeros(1000, 3, dtype=torch.bool)
    flagged[:400, 1] = True
    assert extrapolation(0.05, flagged) == (0.4, 0.5)
    assert not extrapolation(0.05, flagged).too_many
    assert extrapolation(0.03, flagged).too_many
    assert not extrapolation(0.03, flagged[:, :0]).too_many


def test_one_of_a_few_draws_is_no_alarm():
    """Each of 40 draws of a prior is flagged once in 125: one is, in a third of all cases."""
    flagged = torch.zeros(10, 4, dtype=torch.bool)
    flagged[0, 0] = True
    assert not extrapolation(0.008, flagged).too_many
    flagged[1, 0] = True
    assert extrapolation(0.008, flagged).too_many


@pytest.mark.parametrize("bounds", [None, [(0.0, math.inf), (-math.inf, math.inf)]])
def test_a_level_does_not_depend_on_units(bounds):
    wide, flat = prior_of(gaussian(2)), prior_of(gaussian(2), bounds=bounds)
    white = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    theta = white.clone()
    if bounds is not None:
        for transform in flat.transforms[2:]:
            theta = transform(theta)
    torch.testing.assert_close(flat.density_level(theta), wide.density_level(white))


def test_what_has_no_density_has_the_level_zero():
    prior = prior_of(gaussian(2), bounds=[(0.0, 1.0), (-math.inf, math.inf)])
    x = torch.tensor([[0.5, 0.0], [1.5, 0.0], [math.nan, 0.0], [math.inf, 0.0]])
    assert prior.density_level(x).gt(0).tolist() == [True, False, False, False]
    assert prior.density_level(x[:0]).shape == (0,)
    assert prior.density_level(x.reshape(2, 2, 2)).shape == (2, 2)
    assert prior.expand((3,)).levels is prior.levels
