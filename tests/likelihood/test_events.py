"""Events of any shape: every layer sums over all their dimensions, and is right, not silent."""

import pytest
import torch

from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, XTrace
from pyro_stad.fields import GaussianMixtureField, from_score
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import Coarse, Constant, FlowODE, ScoreGradient, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport, VPCosine

SHAPE = (2, 3)
SIZE = 6


def fields():
    """Return one law as a field of vectors, and of events with a shape."""
    parts = random_mixture(SIZE, components=3)
    path = OptimalTransport()
    return GaussianMixtureField(path, *parts), GaussianMixtureField(path, *parts, event_shape=SHAPE)


DIVERGENCES = {
    "exact": Exact(),
    "hutchinson": Hutchinson(2),
    "hutch++": HutchPlusPlus(6),
    "xtrace": XTrace(4),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_of_an_event_is_that_of_the_flat_one(name):
    flat, shaped = fields()
    x, t = torch.randn(5, *SHAPE), torch.rand(5) + 0.3
    velocity, divergence = DIVERGENCES[name].velocity_and_divergence(shaped, t, x)
    wanted = DIVERGENCES[name].velocity_and_divergence(flat, t, x.flatten(1))
    assert velocity.shape == x.shape
    assert divergence.shape == (5,)
    torch.testing.assert_close(velocity.flatten(1), wanted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(divergence, wanted[1], rtol=0, atol=1e-10)


def test_the_exact_trace_of_a_matrix_is_that_of_its_jacobian():
    """Not the trace over the last dimension, which would be silently wrong."""
    _, shaped = fields()
    x, t = torch.randn(1, *SHAPE), torch.tensor(0.7)
    jacobian = torch.autograd.functional.jacobian(lambda y: shaped.velocity(t, y[None])[0], x[0])
    wanted = torch.einsum("abab->", jacobian)
    torch.testing.assert_close(Exact()(shaped, t, x)[0], wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(shaped.divergence(t, x)[0], wanted, rtol=0, atol=1e-10)


WAYS = {
    "flow": lambda field: FlowODE(field, Exact(), RK4(8)),
    "constant": lambda field: SteinPath(field, Exact(), RK4(8), Constant(), 16),
    "coarse": lambda field: SteinPath(field, Exact(), RK4(8), Coarse(4), 16),
    "small chunks": lambda field: FlowODE(field, Exact(), RK4(8), chunk_size=8),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_density_of_an_event_is_that_of_the_flat_one(name):
    flat, shaped = (WAYS[name](field) for field in fields())
    x = sample_mixture(random_mixture(SIZE, components=3), 40)
    leaf = x.reshape(40, *SHAPE).requires_grad_()
    found, wanted = shaped.log_prob(leaf), flat.log_prob(x)
    assert found.shape == (40,)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert torch.autograd.grad(found.sum(), leaf)[0].shape == leaf.shape


def test_transport_keeps_the_shape_of_events():
    flat, shaped = (WAYS["flow"](field).transport() for field in fields())
    z = torch.randn(7, *SHAPE)
    x = shaped.push(z)
    assert x.shape == z.shape
    torch.testing.assert_close(x.flatten(1), flat.push(z.flatten(1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(shaped.pull(x), z, rtol=0, atol=1e-2)


def test_the_score_is_the_gradient_of_an_event():
    _, shaped = fields()
    density = ScoreGradient(FlowODE(shaped, Exact(), RK4(8)))
    x = torch.randn(3, *SHAPE, requires_grad=True)
    (slope,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    assert slope.shape == x.shape


def test_a_foreign_network_may_have_events_of_any_shape():
    field = from_score(lambda t, x: -x, path=VPCosine(), features=(3, 2, 2))
    assert field.event_shape == (3, 2, 2)
    assert field.features == 12
    flow = FlowODE(field, Exact(), RK4(4))
    # Data that are a little less wide than the normal law, by the noise that is left in them.
    wanted = 12 * torch.tensor(field.data_scale / (2 * torch.pi) ** 0.5).log()
    found = flow.log_prob(torch.zeros(2, 3, 2, 2))
    torch.testing.assert_close(found, wanted.expand(2), rtol=0, atol=1e-9)
    for face in (field.score, field.noise, field.denoised, field.path_velocity):
        assert face(torch.tensor([0.3, 0.6]), torch.ones(2, 3, 2, 2)).shape == (2, 3, 2, 2)
