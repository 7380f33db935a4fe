"""Simulations: pairs of a law that is known, and simulators that are broken in every way."""

import pyro.distributions as dist
import pytest
import torch

from pyro_stad import SampleWarning
from pyro_stad.infer import simulate

PRIOR = {"rate": dist.Uniform(0.5, 2.0), "shift": dist.Normal(0.0, 1.0)}


def sound(theta):
    return theta[..., 0] * torch.randn(()) + theta[..., 1]


def test_pairs_are_the_simulators_and_a_seed_makes_them_again():
    found = simulate(sound, PRIOR, 400, progress=False)
    assert found.theta.shape == (400, 2)
    assert found.x.shape == (400, 1)
    assert found.names == ("rate", "shift")
    white = (found.x[:, 0] - found.theta[:, 1]) / found.theta[:, 0]
    # Standard normal: mean and variance to five standard errors.
    assert abs(white.mean()) < 5 / 20
    assert abs(white.var() - 1) < 5 * (2 / 400) ** 0.5
    assert torch.equal(simulate(sound, PRIOR, 400, progress=False).x, found.x)
    assert not torch.equal(simulate(sound, PRIOR, 400, seed=1, progress=False).x, found.x)
    flow = found.fit(budget="tiny", progress=False)
    assert flow.context_names == ("rate", "shift")


def test_a_batched_simulator_and_a_vector_prior():
    def simulator(theta):
        return theta[:, None, :] + torch.randn(len(theta), 3, 2)

    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    found = simulate(simulator, prior, 2500, batched=True, progress=False)
    assert found.x.shape == (2500, 6)
    assert found.names == ()


def test_a_learned_prior_lends_its_names(tiny_prior):
    found = simulate(
        lambda theta: theta + torch.randn_like(theta), tiny_prior, 200, batched=True, progress=False
    )
    assert found.names == tiny_prior.names == ("scale", "shift", "slope")


def test_failures_are_dropped_and_counted():
    def simulator(theta):
        if theta[0] < 0.65:
            raise ArithmeticError("lost")
        return torch.nan if theta[1] > 2 else sound(theta)

    with pytest.warns(SampleWarning, match="simulations failed"):
        found = simulate(simulator, PRIOR, 600, progress=False)
    lost = found.failed["ArithmeticError: lost"] + found.failed["not finite"]
    assert len(found.x) == 600 - lost
    assert (found.theta[:, 0] >= 0.65).all()
    assert (found.theta[:, 1] <= 2).all()
    assert "lost (ArithmeticError: lost)" in repr(found)


def test_one_failure_does_not_take_its_batch_along():
    def simulator(theta):
        if (theta < 0.01).any():
            raise RuntimeError("too small")
        return theta + torch.randn(len(theta), 1)

    found = simulate(simulator, {"a": dist.Uniform(0.0, 1.0)}, 3000, batched=True, progress=False)
    assert found.failed == {"RuntimeError: too small": 3000 - len(found.x)}
    assert len(found.x) > 2900


@pytest.mark.parametrize(
    ("simulator", "message"),
    [
        (lambda theta: 3.0, "the same number, 3, in coordinate 0"),
        (lambda theta: theta.sum(), "the same data again for the same parameters"),
        (lambda theta: torch.randint(3, ()), "of the simulations: what is counted"),
        (lambda theta: torch.stack([theta[1], sound(theta).clamp_min(0)]), "in coordinate 0"),
        (lambda theta: sound(theta).clamp_min(0), "coordinate 0 of the data is 0 in"),
        (lambda theta: torch.full((2,), torch.nan), "200 of 200 simulations failed"),
        (lambda theta: torch.randn(2 + int(theta[0] > 1)), "different sizes"),
    ],
)
def test_what_is_broken_in_silence_is_refused(simulator, message):
    with pytest.raises(ValueError, match=message):
        simulate(simulator, PRIOR, 200, progress=False)


def test_a_simulator_that_does_not_listen_is_told():
    with pytest.warns(SampleWarning, match="does `simulator` use what it is given"):
        simulate(lambda theta: torch.randn(2), PRIOR, 400, progress=False)


def test_a_spread_alone_is_listening():
    """No mean goes with the rate, and the width does: no warning, which would be an error here."""
    found = simulate(lambda theta: theta[0] * torch.randn(1), PRIOR, 2000, progress=False)
    assert len(found.x) == 2000


def test_slips_have_messages():
    with pytest.raises(TypeError, match="`simulator` must be callable"):
        simulate(3, PRIOR, 200)
    with pytest.raises(TypeError, match="must be a distribution of one number"):
        simulate(sound, {"rate": 1.0}, 200)
    with pytest.raises(TypeError, match="`prior` must be a distribution"):
        simulate(sound, 3.0, 200)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 100"):
        simulate(sound, PRIOR, 3)
    with pytest.raises(ValueError, match="a row for each of"):
        simulate(lambda theta: torch.zeros(3), PRIOR, 200, batched=True, progress=False)
