"""Calibration on a few points: a sampled trace, its noise taken off, and what is chosen by it."""

import math
from dataclasses import replace

import pytest
import torch

from pyro_stad.calibrate import calibrate_few
from pyro_stad.calibrate.standard import Standard, reference
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Hutchinson
from pyro_stad.divergence.base import AbstractDivergence
from pyro_stad.divergence.stochastic import shared_probes
from pyro_stad.fields import ImageField
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport


@pytest.fixture(scope="module")
def field():
    """A field of images with random weights in all layers."""
    source = torch.Generator().manual_seed(0)
    made = ImageField(OptimalTransport(), (1, 6, 6), 4, 2, source).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "second" in name or "leave" in name:
                weight.normal_(0, 0.2, generator=source)
    return made.requires_grad_(False)


class Off(AbstractDivergence):
    """The exact trace, and an error: a shift, and a spread by a quadratic form of the point."""

    is_exact = False
    is_stochastic = False

    def __init__(self, shift, spread):
        self.shift, self.spread = shift, spread

    def passes(self, features):
        return features

    def velocity_and_divergence(self, field, t, x):
        velocity, trace = Exact().velocity_and_divergence(field, t, x)
        wave = torch.sin(x.flatten(1).sum(1))
        return velocity, trace + (self.shift + self.spread * wave) / (field.t_max - field.t_min)


def points(count, seed=1):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 6, 6, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 5, 36])
def test_shared_probes_have_each_coordinate_once(count):
    probes = shared_probes(count, points(3), torch.Generator().manual_seed(0))
    assert probes.shape == (count, 3, 1, 6, 6)
    assert (probes.abs().sum(0) == 1).all()
    # And no share is much larger than another.
    sizes = probes[:, 0].abs().flatten(1).sum(1)
    assert sizes.max() - sizes.min() <= 1


def test_a_sampled_trace_is_unbiased_and_knows_its_noise(field):
    flow, x = FlowODE(field, Hutchinson(1), RK4(4)), points(64)
    source = torch.Generator().manual_seed(2)
    exact, none = reference(flow, x, 36, source)
    assert none == 0
    torch.testing.assert_close(exact, FlowODE(field, Exact(), RK4(4)).log_prob(x))
    sampled, noise = reference(flow, x, 4, source)
    off = sampled - exact
    # The noise is known from 64 differences: to one part in sqrt(128), at four of those.
    assert off.std().item() == pytest.approx(noise, rel=4 * math.sqrt(2 / 128))
    assert abs(off.mean().item()) < 4 * noise / 8
    finer = reference(flow, x, 18, source)[1]
    # (36 / k - 1) / 35 of the variance: a ratio of 8.
    assert noise / finer == pytest.approx(math.sqrt(8), rel=0.5)


def test_errors_are_without_the_noise_of_the_trace(field):
    way, x = FlowODE(field, Off(0.0, 0.1), RK4(2)), points(100)
    source = torch.Generator().manual_seed(3)
    draws = points(100, 4)
    exact = Standard(
        x, reference(way, x, None, source)[0], draws, reference(way, draws, None, source)[0]
    )
    at_data, noise = reference(way, x, 2, source)
    at_draws, _ = reference(way, draws, 2, source)
    sampled = Standard(x, at_data, draws, at_draws, noise)
    assert noise > 0.08
    truth = exact.spread(exact.error(way))
    assert sampled.spread(sampled.error(way)) == pytest.approx(truth, abs=0.03)
    assert sampled.error(way).std() > truth + 0.03
    log_z, error = sampled.mass(way)
    assert abs(log_z - exact.mass(way)[0]) < 3 * error


def test_the_mass_is_divided_out_and_the_error_bounded(field):
    x = points(40)
    flow = FlowODE(field, Off(0.3, 0.1), RK4(2))
    cloud = ConditionalCloud(field, Batches(x))
    source = torch.Generator().manual_seed(5)
    chosen, found = calibrate_few(flow, x, cloud, 1e-3, source, products=None)
    exact = FlowODE(field, Exact(), RK4(2)).log_prob(x)
    error = chosen.log_prob(x) - exact
    # Nothing meets so small a tolerance: it is the best that was tried.
    assert len(found.trials) > 1
    assert found.audit.sd == pytest.approx(min(trial.sd for trial in found.trials))
    assert found.audit.bias == pytest.approx(error.mean().item(), abs=1e-9)
    assert abs(found.audit.bias) < 0.1
    assert abs(found.audit.normaliser - 1) < 4 * found.audit.normaliser_error + 0.02
    assert found.audit.noise == 0
    assert any("tolerance of 0.001 nat is not met" in trouble for trouble in found.troubles)
    # And with a sampled trace it says so.
    source = torch.Generator().manual_seed(5)
    _, sampled = calibrate_few(flow, x, cloud, 1e-3, source, products=12)
    assert sampled.audit.noise > 0
    assert "less sampled trace (noise 0." in sampled.text()
    assert type(sampled).from_dict(sampled.to_dict()) == sampled


def test_much_noise_takes_nothing_off_a_density_and_is_said(field):
    """A way that is right, held against a trace with several nats of noise."""
    x, source = points(32), torch.Generator().manual_seed(0)
    way = FlowODE(field, Exact(), RK4(4))
    noise = 5.0 * torch.randn(2, 32, generator=source, dtype=torch.float64)
    at = way.log_prob(x)
    standard = Standard(x, at + noise[0], x, at + noise[1], 5.0)
    again, trial = standard.measured(way)
    assert again.log_mass == way.log_mass
    # What is left of the noise can't be told from an error: it counts as one.
    assert standard.at_most(trial.sd) > 5.0 * (8 / 32) ** 0.25 - 1e-9
    cloud = ConditionalCloud(field, Batches(x))
    _, found = calibrate_few(way, x, cloud, 0.3, source, products=1)
    noisy = replace(found, audit=replace(found.audit, noise=5.0))
    assert any("has noise of 5 nat itself" in trouble for trouble in noisy.troubles)
    assert not any("has noise" in trouble for trouble in found.troubles)
