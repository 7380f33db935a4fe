"""The demonstration's truth: the conjugate regression against its own draws and against Bayes."""

import torch
from pyro.distributions import MultivariateStudentT

from pyro_stad.demo.closed_form import NormalInverseGamma


def problem():
    design, response = torch.randn(40, 3), torch.randn(40)
    return NormalInverseGamma.weak(3), design, response


def test_updating_twice_is_updating_once():
    weak, design, response = problem()
    twice = weak.update(design[:15], response[:15]).update(design[15:], response[15:])
    once = weak.update(design, response)
    torch.testing.assert_close(twice.mean, once.mean)
    torch.testing.assert_close(twice.precision, once.precision)
    assert abs(twice.rate - once.rate) < 1e-10
    assert twice.shape == once.shape


def test_draws_have_the_moments():
    """50,000 draws: 5 standard errors of means, and of sds of nearly normal laws."""
    weak, design, response = problem()
    posterior = weak.update(design, response)
    draws = posterior.sample(50_000, torch.Generator().manual_seed(0))
    values = torch.cat([draws["coefficients"], draws["log_sigma"][:, None]], dim=1)
    mean, sd = posterior.moments()
    assert ((values.mean(0) - mean).abs() / sd).max() < 5 / 50_000**0.5
    assert (values.std(0) / sd - 1).abs().max() < 7 / (2 * 50_000) ** 0.5


def test_posterior_is_prior_times_likelihood():
    """Log-density differences between two points, against the model written out."""
    weak, design, response = problem()
    posterior = weak.update(design, response)

    def log_density(law, beta, log_sigma):
        variance = (2 * log_sigma).exp()
        offset = beta - law.mean
        normal = -0.5 * (offset @ law.precision @ offset) / variance - 3 * log_sigma
        # Density of log sigma: inverse gamma of the variance times its Jacobian.
        return normal - 2 * law.shape * log_sigma - law.rate / variance

    points = [(torch.randn(3), torch.tensor(0.1)), (torch.randn(3), torch.tensor(-0.4))]
    found, expected = [], []
    for beta, log_sigma in points:
        found.append(log_density(posterior, beta, log_sigma))
        residual = response - design @ beta
        likelihood = -0.5 * (residual @ residual) / (2 * log_sigma).exp() - 40 * log_sigma
        expected.append(log_density(weak, beta, log_sigma) + likelihood)
    torch.testing.assert_close(found[0] - found[1], expected[0] - expected[1])


def test_the_evidence_is_that_of_a_student_t_and_adds_up():
    weak, design, response = problem()
    covariance = (torch.eye(40) + design @ design.mT) * weak.rate / weak.shape
    law = MultivariateStudentT(
        torch.tensor(2 * weak.shape), torch.zeros(40), torch.linalg.cholesky(covariance)
    )
    whole = weak.log_marginal(design, response)
    assert abs(whole - law.log_prob(response).item()) < 1e-9
    first = weak.log_marginal(design[:15], response[:15])
    after = weak.update(design[:15], response[:15])
    assert abs(first + after.log_marginal(design[15:], response[15:]) - whole) < 1e-9
