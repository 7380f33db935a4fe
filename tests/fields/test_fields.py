"""Fields: the oracle against autograd, foreign faces against the oracle, the network's tangents."""

import pytest
import torch
from torch.func import jvp

from pyro_stad import from_denoiser, from_noise, from_score, from_velocity
from pyro_stad.fields import PathField, Trunk
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.paths import PATHS, OptimalTransport
from tests.oracles import field_on

NAMES = sorted(PATHS)


def states(field, parts, count=64):
    """Return angles, and points of the law there."""
    angle = field.at_fraction(torch.rand(count))
    data = sample_mixture(parts, count)
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    return angle, cos * data + sin * torch.randn_like(data)


@pytest.mark.parametrize("features", [1, 2, 8])
def test_oracle_velocity_carries_its_density(features):
    """Continuity: the density's change at fixed y is minus div(p w) / p."""
    parts = random_mixture(features)
    field = field_on("ot", parts)
    angle, y = states(field, parts)
    angle.requires_grad_()
    y.requires_grad_()
    log_p = field.log_density(angle, y)
    change, score = torch.autograd.grad(log_p.sum(), (angle, y))
    flow = field.divergence(angle, y) + (field.velocity(angle, y) * score).sum(-1)
    torch.testing.assert_close(change, -flow, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_oracle_score_is_the_gradient_of_its_density(name):
    parts = random_mixture(3)
    field = field_on(name, parts)
    t = torch.linspace(field.path.t_min, field.path.t_max, 32)[:-1]
    p = field.path.polar(t)
    x = (torch.randn(31, 3) * p.scale[:, None]).requires_grad_()
    log_p = field.log_density(p.angle, x / p.scale[:, None])
    (expected,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(field.score(t, x), expected, rtol=1e-6, atol=1e-8)


FACES = {
    "velocity": (from_velocity, "path_velocity"),
    "score": (from_score, "score"),
    "noise": (from_noise, "noise"),
    "denoised": (from_denoiser, "denoised"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("face", sorted(FACES))
def test_foreign_faces_give_the_field_back(name, face):
    wrap, method = FACES[face]
    parts = random_mixture(3)
    field = field_on(name, parts)
    foreign = wrap(getattr(field, method), path=name, features=3)
    angle, y = states(field, parts)
    inner = angle < 1.55  # score and noise say nothing about the data at the noise end
    torch.testing.assert_close(
        foreign.velocity(angle, y)[inner], field.velocity(angle, y)[inner], rtol=1e-5, atol=1e-6
    )


def test_foreign_shape_error_says_what_is_called():
    field = from_score(lambda t, x: x[:, :1], path="vp", features=3)
    with pytest.raises(ValueError, match=r"shape of x, \(5, 3\); got \(5, 1\)"):
        field.velocity(torch.tensor(0.5), torch.zeros(5, 3))
    with pytest.raises(TypeError, match="callable"):
        from_score(3, path="vp", features=3)


def test_untrained_network_is_the_gaussian_baseline():
    field = PathField(OptimalTransport(), 4, 8, 2)
    assert field.velocity(torch.rand(6), torch.randn(6, 4)).abs().max() == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("scalar_time", [True, False])
def test_hidden_tangents_match_forward_mode(depth, scalar_time):
    trunk = randomised(Trunk(3, 16, depth, 3))
    angle = torch.tensor(0.7) if scalar_time else torch.rand(5)
    y, tangent = torch.randn(5, 3), torch.randn(5, 3)
    output, output_dot, hidden, hidden_dot = trunk.hidden_and_tangent(angle, y, tangent)
    values, dots = jvp(lambda point: trunk(angle, point), (y,), (tangent,))
    torch.testing.assert_close((output, output_dot), (values, dots))

    def derivatives(point):
        return trunk.with_hidden(angle, point)[1].derivatives

    torch.testing.assert_close((hidden.derivatives, hidden_dot), jvp(derivatives, (y,), (tangent,)))


@pytest.mark.parametrize("depth", [1, 2])
def test_hidden_derivatives_give_the_trace_in_closed_form(depth):
    """Up to two layers the divergence is a bilinear form in the derivatives."""
    trunk = randomised(Trunk(3, 16, depth, 3))
    angle, y = torch.tensor(0.4), torch.randn(1, 3)
    jacobian = torch.func.jacrev(lambda point: trunk(angle, point[None])[0])(y[0])
    slopes = [slope[0] for slope in trunk.with_hidden(angle, y)[1].derivatives]
    into, out = trunk.enter.weight.reshape(depth, 16, 3), trunk.out.weight
    trace = sum(torch.einsum("ih,h,hi->", out, s, u) for s, u in zip(slopes[-1:], into[-1:]))
    if depth == 2:
        link = trunk.links[0].weight * (into[0] @ out).mT
        trace = trace + slopes[1] @ link @ slopes[0]
    torch.testing.assert_close(trace, torch.trace(jacobian))


def randomised(trunk):
    """Fill what starts at zero or one, so that every term counts."""
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return trunk
