"""Limits: the edge of the bounds, shapes that don't meet, and fits that ended badly."""

import math

import pytest
import torch

import pyro_stad
from pyro_stad import AccuracyWarning, TrainingWarning
from pyro_stad._weights import mean_weight
from pyro_stad.fitting.stages import FitStages
from tests.oracles import mixture_sample

NOWHERE = [-1.0, -1e-300, 0.0, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", NOWHERE)
def test_what_has_no_density_is_beyond_every_tail(number, tiny_prior):
    value = tiny_prior.sample((4,))
    expected = tiny_prior.tail_probability(value)
    assert (expected > 0).all()
    value[2, 0] = number
    expected[2] = 0.0
    assert torch.equal(tiny_prior.tail_probability(value), expected)


def test_far_out_is_zero_and_not_nan(free_prior):
    value = torch.tensor([[1e300, 0.0], [-math.inf, 0.0], [0.0, math.nan]])
    assert torch.equal(free_prior.tail_probability(value), torch.zeros(3))


MISMATCHED = [((3,), (5,)), ((2, 3), (2,)), ((4, 1), (3, 2))]


@pytest.mark.parametrize(("batch", "shape"), MISMATCHED)
def test_batches_that_do_not_meet_are_both_named(batch, shape, free_prior):
    message = rf"batch shape of the prior, \({str(batch)[1:-1]}\); got \({str(shape)[1:-1]}\) in"
    with pytest.raises(ValueError, match=message):
        free_prior.expand(batch).log_prob(torch.zeros(*shape, 2))


def positive(sign, dtype):
    """Fit to samples between zero and infinity, on either side of zero."""
    samples = mixture_sample(300, 2)
    samples[:, 0] = sign * (30 * samples[:, 0]).exp()
    bounds = {"a": (0, None) if sign > 0 else (None, 0)}
    return pyro_stad.fit(
        samples, names=["a", "b"], bounds=bounds, budget="tiny", progress=False, dtype=dtype
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_down_to_the_bound(sign, dtype):
    """Below the smallest normal number, one over x is infinite in either precision."""
    prior, tiny = positive(sign, dtype), torch.finfo(dtype).tiny
    scales = torch.tensor([2.0**-10, 0.5, 0.999, 1.0, 2.0, 2.0**10, 2.0**60], dtype=dtype)
    value = torch.stack([sign * tiny * scales, torch.zeros(7, dtype=dtype)], dim=1)
    value.requires_grad_()
    log_prob = prior.log_prob(value)
    (slope,) = torch.autograd.grad(log_prob[torch.isfinite(log_prob)].sum(), value)
    assert torch.isfinite(slope).all()
    assert torch.equal(torch.isfinite(log_prob), scales >= 1)
    assert (slope[:3] == 0).all()
    assert (slope[3:, 0] != 0).all()


def test_a_bound_is_kept_to_the_last_digit_of_the_prior():
    """Not to that of torch's default: a tenth in single precision is another number."""
    torch.set_default_dtype(torch.float32)
    samples = 0.1 + mixture_sample(300, 1).exp()
    prior = pyro_stad.fit(
        samples, bounds=[(0.1, None)], budget="tiny", progress=False, dtype=torch.float64
    )
    above = math.nextafter(0.1, 1)
    value = torch.tensor([[0.1], [above]], dtype=torch.float64)
    assert prior.support.check(value)[1]
    assert torch.equal(torch.isfinite(prior.log_prob(value)), torch.tensor([False, True]))


def test_a_mass_beyond_all_numbers_has_a_logarithm():
    assert mean_weight(torch.tensor([0.0, math.log(3)])) == pytest.approx(
        (math.log(2), math.sqrt(2) / 2 / math.sqrt(2))
    )
    assert mean_weight(torch.full((5,), 1e4, dtype=torch.float32)) == pytest.approx((1e4, 0))
    assert mean_weight(torch.full((5,), -1e4)) == pytest.approx((-1e4, 0))
    assert math.isnan(mean_weight(torch.tensor([0.0, math.nan]))[0])


def test_a_fit_that_ends_badly_is_returned_and_says_so(monkeypatch, tmp_path):
    """A divergence that broke after its training; what has been learned can still be saved."""
    learn = FitStages.divergence

    def broken(self, *arguments):
        flow, cloud = learn(self, *arguments)
        clock = flow.divergence.network.clock
        with torch.no_grad():
            # Finite weights, and a product of them that is not.
            clock.inner.weight.fill_(1e30)
            clock.outer.weight.fill_(1e30)
        return flow, cloud

    monkeypatch.setattr(FitStages, "divergence", broken)
    with (
        pytest.warns(AccuracyWarning, match="the calibration is not finite"),
        pytest.warns(AccuracyWarning, match="log_prob is not finite at some of 30 held-out"),
        pytest.warns(TrainingWarning, match="density .* It is left out"),
    ):
        prior = pyro_stad.fit(mixture_sample(300, 2), budget="tiny", progress=False)
    prior.save(tmp_path / "prior.safetensors")
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert repr(loaded.calibration) == repr(prior.calibration)
    assert "WARNING: the calibration is not finite" in loaded.summary()
    assert torch.isfinite(loaded.sample((10,))).all()
