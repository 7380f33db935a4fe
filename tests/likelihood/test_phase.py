"""Phase space against closed forms: the kernel, the flow, its divergence, and the density of x."""

import math
import warnings

import numpy as np
import pytest
import torch

import pyro_stad
from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, Projected, Stein, TrunkHead
from pyro_stad.fields import (
    ConditionalGaussianField,
    GaussianMixtureField,
    PathField,
    PhaseField,
)
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import PhaseDensity
from pyro_stad.ode import RK4
from pyro_stad.paths import PSLD, VPCosine
from pyro_stad.transport import Flow

PATHS = {"psld": PSLD(), "cld": PSLD(gamma=0.0, t_min=5.8e-3), "friction": PSLD(gamma=0.25)}


def exact_field(features=2, seed=0):
    parts = random_mixture(features, components=3, seed=seed)
    return GaussianMixtureField(VPCosine(t_min=1e-4, t_max=1 - 1e-5), *parts), parts


@pytest.mark.parametrize("name", PATHS)
def test_kernel_is_that_of_the_matrix_exponential(name):
    """The transition, and the covariance by quadrature of what noise comes in."""
    path, t = PATHS[name], 0.3
    drift, diffusion = path.drift(), torch.diag(path.diffusion())
    law = path.law(torch.tensor(t))
    over = torch.matrix_exp(t * drift)
    torch.testing.assert_close(law.mean, over[:, 0])
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))
    back = torch.matrix_exp((0.5 * t * (1 - nodes))[:, None, None] * drift)
    came = 0.5 * t * (weights[:, None, None] * (back @ diffusion @ back.mT)).sum(0)
    first = torch.diag(torch.tensor([1.0, path.momentum_variance]))
    torch.testing.assert_close(law.covariance, over @ first @ over.mT + came)
    torch.testing.assert_close(law.precision @ law.covariance, torch.eye(2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", PATHS)
def test_only_one_combination_knows_the_data(name):
    """u = cos x0 + sin eps, and what is left of z is not correlated with it given the data."""
    law = PATHS[name].law(torch.tensor([0.02, 0.2, 0.7]))
    given = law.covariance - law.mean[..., None] * law.mean[..., None, :]
    onto = law.weights / torch.cos(law.angle)[:, None]
    torch.testing.assert_close((onto * law.mean).sum(-1), torch.cos(law.angle))
    of_u = (given @ onto[..., None])[..., 0]
    torch.testing.assert_close((onto * of_u).sum(-1), torch.sin(law.angle).square())
    # What has no data in it, by its own mean, has no covariance with u either.
    left = torch.stack([-law.mean[:, 1], law.mean[:, 0]], -1)
    torch.testing.assert_close((left * of_u).sum(-1), torch.zeros(3), atol=1e-14, rtol=0)


def pair_density(phase, field, t, y):
    """Return the log-density of pairs at a time, in closed form."""
    at = phase.projection(t)
    across = at.onto[0] * y[:, 1] - at.onto[1] * y[:, 0]
    normal = -0.5 * across.square().sum(-1) - 0.5 * across.shape[-1] * math.log(2 * math.pi)
    return field.log_density(at.angle.expand(len(y)), phase.projected(at, y)) + normal


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("time", [0.02, 0.1, 0.5])
def test_flow_in_phase_space_obeys_the_continuity_equation(name, time):
    field, _ = exact_field()
    phase, t, h = PhaseField(field, PATHS[name]), torch.tensor(time), 1e-6
    y = torch.randn(6, 2, 2, requires_grad=True)
    later, earlier = (pair_density(phase, field, t + sign * h, y) for sign in (1, -1))
    rate = ((later - earlier) / (2 * h)).detach()
    (slope,) = torch.autograd.grad(pair_density(phase, field, t, y).sum(), y)
    moved = (phase.velocity(t, y) * slope).sum((1, 2))
    found = rate + Exact()(phase, t, y) + moved
    assert found.abs().max() < 1e-6 * max(1.0, moved.abs().max().item())


EACH = {"exact": Exact(), "hutchinson": Hutchinson(2), "hutch++": HutchPlusPlus(3)}


@pytest.mark.parametrize("name", [*EACH, "stein"])
def test_divergence_is_that_of_positions(name):
    field = PathField(VPCosine(), 3, 8, 2).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn_like(parameter))
    divergence = Stein(TrunkHead.for_field(field).double()) if name == "stein" else EACH[name]
    phase, t, y = PhaseField(field), torch.tensor(0.2), torch.randn(5, 2, 3)
    at = phase.projection(t)
    velocity, found = Projected(divergence).velocity_and_divergence(phase, t, y)
    torch.testing.assert_close(velocity, phase.velocity(t, y))
    wanted = divergence(field, at.angle, phase.projected(at, y))
    torch.testing.assert_close(found, wanted * phase.stretch(at))
    assert Projected(divergence).passes(6) == divergence.passes(3)
    assert Projected(divergence).is_exact == divergence.is_exact
    if name == "exact":
        torch.testing.assert_close(found, Exact()(phase, t, y))


@pytest.mark.parametrize("name", PATHS)
def test_density_of_positions_is_that_of_the_blurred_data(name):
    field, parts = exact_field(seed=1)
    path = PATHS[name]
    x = sample_mixture(parts, 40, 1)
    way = PhaseDensity(field, Exact(), RK4(48), momenta=6, path=path)
    angle = torch.tensor(path.angles()[0])
    wanted = field.log_density(angle.expand(40), angle.cos() * x) + 2 * angle.cos().log()
    torch.testing.assert_close(way.log_prob(x), wanted, atol=0.03, rtol=0)
    found = way.gap(x)
    assert 0 <= found.gap.min()
    assert found.gap.max() < 0.01
    assert found.error.max() < 0.05


def test_density_is_fixed_smooth_and_independent_of_batch_mates():
    field, parts = exact_field()
    way = PhaseDensity(field, Exact(), RK4(8), momenta=3)
    x = sample_mixture(parts, 5, 0).requires_grad_()
    value = way.log_prob(x)
    assert torch.equal(value, way.log_prob(x))
    torch.testing.assert_close(way.log_prob(x[2:3]), value[2:3], rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    towards, h = torch.randn_like(x), 1e-5
    with torch.no_grad():
        numeric = (way.log_prob(x + h * towards) - way.log_prob(x - h * towards)) / (2 * h)
    torch.testing.assert_close((gradient * towards).sum(1), numeric, rtol=1e-5, atol=1e-5)
    assert not torch.equal(way.replace(seed=1).log_prob(x), value)


def test_a_traced_density_has_the_same_momenta():
    """Drawn in the trace, they would be others at every call."""
    field, parts = exact_field()
    way = PhaseDensity(field, Exact(), RK4(4), momenta=2)
    x = sample_mixture(parts, 3, 0)
    with warnings.catch_warnings():  # a trace is of one number of rows, as Pyro's are
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: way.log_prob(x), (x,), check_trace=False)
    for _ in range(2):
        torch.testing.assert_close(traced(x + 0.1), way.log_prob(x + 0.1))


@pytest.mark.parametrize("beta", [8.0, 30.0])
def test_the_angle_is_right_where_nearly_all_is_noise(beta):
    path, t = PSLD(beta=beta), torch.tensor([0.01, 0.5, 0.9, 1.0])
    law = path.law(t)
    seen = (law.mean * law.weights).sum(-1)
    torch.testing.assert_close(torch.cos(law.angle), seen.sqrt(), rtol=1e-6, atol=1e-15)
    cos, sin, _, _ = path.coefficients(t)
    torch.testing.assert_close(cos.square(), seen, rtol=1e-9, atol=0)
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones(4))


def test_draws_of_the_flow_in_phase_space_are_those_of_the_data():
    field, parts = exact_field()
    phase = PhaseField(field)
    with torch.no_grad():
        y = Flow(phase, RK4(32)).push(torch.randn(4000, 2, 2))
    assert (y[:, 0].T.cov() - torch.eye(2)).abs().max() < 4 * math.sqrt(2 / 4000)
    # Momenta are noise of their own.
    assert torch.corrcoef(y.flatten(1).T)[:2, 2:].abs().max() < 4 / math.sqrt(4000)


def test_a_context_is_repeated_with_the_momenta():
    field = ConditionalGaussianField(
        VPCosine(), torch.tensor([[1.0]]), torch.zeros(1), 0.25 * torch.eye(1)
    )
    x, context = torch.zeros(3, 1), torch.tensor([[0.0], [1.0], [-1.0]])
    way = PhaseDensity(field, Exact(), RK4(24), momenta=2).given(context)
    wanted = torch.distributions.Normal(context[:, 0], 0.5).log_prob(x[:, 0])
    torch.testing.assert_close(way.log_prob(x), wanted, atol=0.01, rtol=0)


def test_a_prior_in_phase_space_is_calibrated_and_kept(tmp_path):
    samples = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).exp()
    prior = pyro_stad.fit(
        samples, path="psld", bounds=[(0, None)] * 2, budget="tiny", progress=False, members=0,
        dtype=torch.float64,
    )  # fmt: skip
    assert isinstance(prior.likelihood.field.path, PSLD)
    way = prior.likelihood
    moved = prior.with_likelihood(
        PhaseDensity(way.field, way.divergence, RK4(16), momenta=3, seed=5)
    )
    again = moved.calibrate(samples[:60], tolerance=0.2, reference="exact")
    assert isinstance(again.likelihood, PhaseDensity)
    assert again.calibration.audit.sd < 0.2
    assert "3 momenta:" in again.summary()
    again.save(tmp_path / "prior.safetensors")
    back = pyro_stad.load(tmp_path / "prior.safetensors")
    assert repr(back.likelihood) == repr(again.likelihood)
    assert torch.equal(back.log_prob(samples[:4]), again.log_prob(samples[:4]))


def test_what_has_no_phase_space_is_refused():
    with pytest.raises(TypeError, match="`field` must be on a Gaussian path"):
        PhaseField(PhaseField(exact_field()[0]))
    with pytest.raises(TypeError, match="`path` must be a PSLD"):
        PhaseField(exact_field()[0], VPCosine())
    with pytest.raises(TypeError, match="`path` must be a PSLD"):
        PhaseDensity(exact_field()[0], Exact(), RK4(4), path="psld")
    with pytest.raises(ValueError, match="`momenta` must be two at the least"):
        PhaseDensity(exact_field()[0], Exact(), RK4(4), momenta=1).gap(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="`momenta` must be an integer of at least 1"):
        PhaseDensity(exact_field()[0], Exact(), RK4(4), momenta=0)
