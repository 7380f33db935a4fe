"""Every divergence against the closed form of the oracle."""

import warnings

import pytest
import torch
from torch import nn

from pyro_stad.divergence import (
    Exact,
    Hutchinson,
    HutchPlusPlus,
    SeparateNetwork,
    Stein,
    XTrace,
)
from pyro_stad.fields import AbstractField, ConditionalGaussianField, PathField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.paths import OptimalTransport
from pyro_stad.registry import Source, build, describe
from tests.oracles import field_on

STOCHASTIC = {
    "hutchinson-1": lambda seed: Hutchinson(1, seed),
    "hutchinson-4": lambda seed: Hutchinson(4, seed),
    "hutch++-6": lambda seed: HutchPlusPlus(6, seed),
    "xtrace-6": lambda seed: XTrace(6, seed),
}


def test_an_exact_trace_goes_into_a_compiled_one(field):
    """As NUTS compiles it, by torch's jit: right at other points, with its gradient."""
    t, x, other = torch.tensor(0.5), torch.randn(16, 6), torch.randn(16, 6, requires_grad=True)
    with warnings.catch_warnings():  # Shapes are constants of a trace, and torch says so.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(lambda y: Exact()(field, t, y), (x,), check_trace=False)
    here = other.detach().clone().requires_grad_()
    torch.testing.assert_close(traced(other), Exact()(field, t, here))
    (found,) = torch.autograd.grad(traced(other).sum(), other)
    (truth,) = torch.autograd.grad(Exact()(field, t, here).sum(), here)
    torch.testing.assert_close(found, truth)


class Shift(AbstractField):
    event_shape = torch.Size([3])
    t_min, t_max, data_scale = 0.0, 1.0, 1.0

    def velocity(self, t, x):
        return torch.ones_like(x)


@pytest.fixture
def field():
    return field_on("ot", random_mixture(6))


@pytest.fixture
def points(field):
    t = field.at_fraction(torch.linspace(0.05, 1, 16))
    x, noise = sample_mixture(random_mixture(6), 16), torch.randn(16, 6)
    return t, torch.cos(t)[:, None] * x + torch.sin(t)[:, None] * noise


def test_exact_is_the_closed_form(field, points):
    torch.testing.assert_close(Exact()(field, *points), field.divergence(*points))


@pytest.mark.parametrize("make", STOCHASTIC.values(), ids=STOCHASTIC)
def test_stochastic_is_unbiased_over_seeds(make, field, points):
    """400 seeds, 16 points: a false alarm beyond 4.5 standard errors has odds of 1e-4."""
    values = torch.stack([make(seed)(field, *points) for seed in range(400)])
    error = values.mean(0) - field.divergence(*points)
    assert (error.abs() <= 4.5 * values.std(0) / 20 + 1e-9).all()


@pytest.mark.parametrize("make", STOCHASTIC.values(), ids=STOCHASTIC)
def test_stochastic_is_frozen_and_says_so(make, field, points):
    divergence = make(7)
    state = torch.get_rng_state()
    first = divergence(field, *points)
    assert torch.equal(first, divergence(field, *points))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, make(8)(field, *points))
    assert divergence.is_stochastic
    assert not divergence.is_exact
    assert f"seed={7}" in repr(divergence)


@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(2), HutchPlusPlus(6), XTrace(6)])
def test_velocity_comes_along(divergence, field, points):
    velocity, _ = divergence.velocity_and_divergence(field, *points)
    torch.testing.assert_close(velocity, field.velocity(*points))


@pytest.mark.parametrize("divergence", [HutchPlusPlus(18), XTrace(12)])
def test_enough_probes_are_exact(divergence, field, points):
    torch.testing.assert_close(divergence(field, *points), field.divergence(*points))
    assert divergence.passes(6) == 6


def test_sketches_beat_hutchinson_on_a_low_rank_field():
    """A field of rank one: the sketch finds it, and only rounding is left."""

    class RankOne(PathField):
        def velocity(self, t, x):
            return torch.tanh(x.sum(-1, keepdim=True)) * torch.arange(1.0, 7.0)

    field, x = RankOne(OptimalTransport(), 6, 4, 1), 0.3 * torch.randn(8, 6)
    exact = Exact()(field, torch.tensor(0.5), x)
    for divergence in (HutchPlusPlus(6), XTrace(6)):
        torch.testing.assert_close(divergence(field, torch.tensor(0.5), x), exact)
    assert (Hutchinson(6)(field, torch.tensor(0.5), x) - exact).abs().max() > 0.1


def test_zero_field_is_no_trouble():
    """An untrained network: the sketches span nothing."""
    field = PathField(OptimalTransport(), 5, 8, 2)
    for divergence in (Exact(), Hutchinson(2), HutchPlusPlus(6), XTrace(6)):
        assert divergence(field, torch.tensor(0.3), torch.randn(4, 5)).abs().max() == 0


@pytest.mark.parametrize("divergence", [Exact(), *(make(0) for make in STOCHASTIC.values())])
def test_a_velocity_that_is_the_same_everywhere_has_none(divergence):
    """A shift, whose velocity has no tape that leads to the point."""
    velocity, found = divergence.velocity_and_divergence(
        Shift(), torch.tensor(0.5), torch.zeros(4, 3)
    )
    assert torch.equal(found, torch.zeros(4))
    assert velocity.shape == (4, 3)


@pytest.mark.parametrize(("kind", "least"), [(Hutchinson, 1), (HutchPlusPlus, 3), (XTrace, 2)])
def test_too_few_probes_are_refused(kind, least):
    with pytest.raises(ValueError, match=f"`num_probes` .* at least {least}; got 0"):
        kind(0).velocity_and_divergence(
            PathField(OptimalTransport(), 5, 8, 2), torch.tensor(0.3), torch.randn(4, 5)
        )


def test_a_separate_network_learns_a_divergence_given_a_context():
    """The oracle's divergence depends on the angle alone, and the network's on the context too."""
    network = SeparateNetwork(2, 8, 2, torch.Generator().manual_seed(0), context=3).double()
    weight = torch.randn(2, 3)
    field = ConditionalGaussianField(OptimalTransport(), weight, torch.zeros(2), torch.eye(2))
    divergence, x = Stein(network), torch.randn(5, 2)
    with pytest.raises(ValueError, match="depends on a context"):
        network.velocity_and_residual(field, torch.tensor(0.5), x)
    nn.init.normal_(network.trunk.out.weight)
    context = torch.randn(5, 3)
    found = divergence(field.given(context), torch.tensor(0.5), x)
    other = divergence(field.given(-context), torch.tensor(0.5), x)
    assert (found != other).all()
    config = describe(divergence, "divergence")
    source = Source(divergence.state_dict(), given={"field": field})
    again = build(config, "divergence", source).double()
    again.load_state_dict(divergence.state_dict())
    assert torch.equal(again(field.given(context), torch.tensor(0.5), x), found)
