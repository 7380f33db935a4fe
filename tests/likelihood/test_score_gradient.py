"""The score for a gradient: the value of one, the derivative of the other, and no curvature."""

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_stad.divergence import Exact
from pyro_stad.fields import FreeFormField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import FlowODE, ScoreGradient, SteinPath
from pyro_stad.ode import RK4
from tests.oracles import field_on


def oracle(features=3):
    parts = random_mixture(features)
    path = SteinPath(field_on("ot", parts), Exact(), RK4(4), nodes=48)
    return path, ScoreGradient(path), sample_mixture(parts, 40).requires_grad_()


def test_values_are_those_of_the_inner_density_with_and_without_gradient():
    path, by_score, x = oracle()
    assert torch.equal(by_score.log_prob(x), path.log_prob(x))
    assert torch.equal(by_score.log_prob(x.detach()), path.log_prob(x.detach()))
    assert torch.equal(by_score.log_prob(x[7:8]), by_score.log_prob(x)[7:8])


def test_on_an_exact_field_the_gradient_is_that_of_the_density():
    path, by_score, x = oracle()
    got, wanted = (torch.autograd.grad(p.log_prob(x).sum(), x)[0] for p in (by_score, path))
    # The quadrature's error of 2e-3 nat, over the width of the narrowest component, a tenth.
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-2)


def test_the_gradient_is_the_field_s_score_at_the_data_end():
    _, by_score, x = oracle()
    (got,) = torch.autograd.grad(by_score.log_prob(x).sum(), x)
    field = by_score.field
    y, angle = x.detach() * field.data_scale, torch.full((len(x),), field.t_min).to(x)
    wanted = field.data_scale * field.own_score(angle, y, field.velocity(angle, y))
    # Rounding, times the cotangent of a hundredth.
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_a_second_derivative_is_no_number_that_could_pass_for_one():
    _, by_score, x = oracle()
    (slope,) = torch.autograd.grad(by_score.log_prob(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope[0, 0], x)
    assert curvature[0, 0].abs() > 1e30


def test_a_field_without_a_score_is_refused():
    with pytest.raises(TypeError, match="needs a field with a score.* got FreeFormField"):
        ScoreGradient(FlowODE(FreeFormField(2, width=8, depth=1), Exact(), RK4(2)))


def test_what_is_no_likelihood_is_refused():
    with pytest.raises(TypeError, match="`inner` must be a likelihood, .* got 'x'"):
        ScoreGradient("x")


def test_a_prior_with_it_says_so_samples_and_is_not_saved(tiny_prior, tmp_path):
    prior = tiny_prior.with_likelihood(ScoreGradient(tiny_prior.likelihood))
    assert "ScoreGradient(" in repr(prior)
    with pytest.raises(TypeError, match="ScoreGradient can't be stored"):
        prior.save(tmp_path / "prior.safetensors")
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(lambda: pyro.sample("theta", prior)), 5, 5, disable_progbar=True)
    mcmc.run()
    assert torch.isfinite(mcmc.get_samples()["theta"]).all()
