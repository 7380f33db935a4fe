"""The likelihood against closed-form densities, and its rows' independence to the last bit."""

import math

import pytest
import torch

from pyro_stad.calibrate import audit, choose_steps
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, SeparateNetwork, Stein, XTrace
from pyro_stad.fields import PathField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.learn.clouds import ConditionalCloud
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4, Dopri5, Midpoint
from pyro_stad.paths import PATHS, OptimalTransport
from tests.oracles import field_on, gaussian

NAMES = sorted(PATHS)


def closed_form(field, x):
    """Return the density of the data at the path's data end, in data coordinates."""
    angle = torch.tensor(field.t_min)
    return field.log_density(angle, x * field.data_scale) + x.shape[1] * math.log(field.data_scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [2, 8])
@pytest.mark.parametrize("make", [gaussian, random_mixture])
def test_exact_trace_is_the_closed_form_density(name, features, make):
    """At most 1e-3 nat on every path, as published in the benchmarks for D up to 32."""
    parts = make(features)
    field, x = field_on(name, parts), sample_mixture(parts, 64)
    flow = FlowODE(field, Exact(), RK4(64))
    assert (flow.log_prob(x) - closed_form(field, x)).abs().max() < 1e-3


def test_density_integrates_to_one():
    """On a grid in two dimensions, for an exact trace."""
    field = field_on("ot", random_mixture(2, seed=1))
    flow = FlowODE(field, Exact(), RK4(24))
    axis = torch.linspace(-5, 5, 101)
    grid = torch.cartesian_prod(axis, axis)
    mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 0.01


def test_push_and_pull_are_inverses():
    parts = random_mixture(4)
    flow = FlowODE(field_on("ot", parts), Exact(), RK4(48)).transport()
    x = sample_mixture(parts, 32)
    torch.testing.assert_close(flow.push(flow.pull(x)), x, rtol=0, atol=1e-4)


def test_pushed_noise_has_the_moments_of_the_data():
    parts = random_mixture(3)
    x = FlowODE(field_on("ot", parts), Exact(), RK4(16)).transport().push(torch.randn(20_000, 3))
    # Standard errors: 0.007 for means, at most 0.02 for covariances of light-tailed mixtures.
    assert x.mean(0).abs().max() < 0.035
    assert (torch.cov(x.T) - torch.eye(3)).abs().max() < 0.07


def network_flow(divergence=None, chunk_size=8192, dtype=torch.float64):
    torch.manual_seed(0)
    field = PathField(OptimalTransport(), 3, 16, 2).to(dtype).requires_grad_(False)
    torch.nn.init.normal_(field.trunk.out.weight, std=0.3)
    if divergence is None:
        network = SeparateNetwork(3, 8, 2).to(dtype).requires_grad_(False)
        torch.nn.init.normal_(network.trunk.out.weight, std=0.3)
        divergence = Stein(network)
    return FlowODE(field, divergence, RK4(4), chunk_size)


DIVERGENCES = {
    "stein": None,
    "exact": Exact(),
    "hutchinson": Hutchinson(2),
    "hutch++": HutchPlusPlus(6),
    "xtrace": XTrace(4),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_their_mates(name, dtype):
    """Silent failure 3. Bitwise: alone, in any split, permuted, beside an outlier, twice."""
    flow = network_flow(DIVERGENCES[name], dtype=dtype)
    x = torch.randn(37, 3, dtype=dtype)
    together = flow.log_prob(x)
    assert torch.equal(together, flow.log_prob(x))
    alone = torch.cat([flow.log_prob(row[None]) for row in x])
    order = torch.randperm(37)
    outlier = flow.log_prob(torch.cat([x, torch.full((1, 3), 1e6, dtype=dtype)]))[:-1]
    if name in ("hutch++", "xtrace"):  # batched QR is the library's; it rounds as it likes
        tolerance = 1e-3 if dtype == torch.float32 else 1e-9
        for other in (alone, flow.log_prob(x[order])[order.argsort()], outlier):
            torch.testing.assert_close(other, together, rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(alone, together)
        assert torch.equal(flow.log_prob(x[order])[order.argsort()], together)
        assert torch.equal(outlier, together)


def test_chunks_change_nothing():
    x = torch.randn(50, 3)
    whole, chunked = network_flow(), network_flow(chunk_size=16)
    assert torch.equal(whole.log_prob(x), chunked.log_prob(x))
    gradients = []
    for flow in (whole, chunked):
        y = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(flow.log_prob(y).sum(), y)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="`chunk_size` must be an integer of at least 8; got 1"):
        network_flow(chunk_size=1)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_match_differences(name):
    flow, x = network_flow(DIVERGENCES[name]), torch.randn(3, 3, requires_grad=True)
    assert torch.autograd.gradcheck(flow.log_prob, (x,))


def test_second_derivatives():
    x = torch.randn(2, 3, requires_grad=True)
    assert torch.autograd.gradgradcheck(network_flow().log_prob, (x,))


def test_adaptive_solver_agrees_with_the_grid():
    flow = network_flow(Exact())
    reference = FlowODE(flow.field, Exact(), Dopri5(1e-9, 1e-9))
    fine = FlowODE(flow.field, Exact(), RK4(64))
    x = torch.randn(8, 3)
    torch.testing.assert_close(reference.log_prob(x), fine.log_prob(x), rtol=0, atol=1e-3)


def test_audit_measures_a_bias_that_was_put_in():
    """A divergence that is off by 0.1 everywhere is off by 0.1 times the quarter turn in log p."""

    class Shifted(Exact):
        is_exact = False

        def velocity_and_divergence(self, field, t, x):
            velocity, divergence = super().velocity_and_divergence(field, t, x)
            return velocity, divergence + 0.1

    parts = random_mixture(3)
    field, x = field_on("ot", parts), sample_mixture(parts, 300)
    flow, generator = FlowODE(field, Shifted(), Midpoint(16)), torch.Generator().manual_seed(0)
    cloud = ConditionalCloud(field, Batches(sample_mixture(parts, 4000)))
    result = audit(flow, x, cloud, generator)
    shift = 0.1 * (field.t_max - field.t_min)
    assert result.bias == pytest.approx(shift, abs=1e-9)
    assert result.sd < 1e-9
    assert result.normaliser == pytest.approx(math.exp(shift), abs=1e-6)
    honest = audit(FlowODE(field, Exact(), Midpoint(16)), x, cloud, generator)
    assert honest.bias == honest.sd == 0
    assert honest.solver_error > 0
    assert all(abs(s.mean) <= 4.5 * s.standard_error + 1e-9 for s in honest.stein)


def test_steps_are_chosen_by_the_error_they_leave():
    parts = random_mixture(3)
    flow, x = FlowODE(field_on("ot", parts), Exact(), RK4(4)), sample_mixture(parts, 64)
    loose = choose_steps(flow, x, 0.5, (2, 4, 8, 16, 32))
    tight = choose_steps(flow, x, 1e-3, (2, 4, 8, 16, 32))
    assert loose.steps < tight.steps
    assert choose_steps(flow, x, 1e-12, (2, 4)) == RK4(4)
    fine = FlowODE(flow.field, Exact(), RK4(64)).log_prob(x)
    error = (FlowODE(flow.field, Exact(), tight).log_prob(x) - fine).square().mean().sqrt()
    assert error < 1.5e-3


def test_chunks_are_computed_again_once_and_differentiated_twice():
    """An exact trace takes gradients itself: torch's checkpoint would start again for each."""
    calls = 0

    class Counted(type(field_on("ot", random_mixture(2)))):
        def velocity(self, t, x):
            nonlocal calls
            calls += 1
            return super().velocity(t, x)

    field = Counted(PATHS["ot"](), *random_mixture(2))
    whole, chunked = (FlowODE(field, Exact(), RK4(2), size) for size in (4096, 32))
    x, seen, curvatures = torch.randn(40, 2), [], []
    for flow in (whole, chunked):
        y, calls = x.clone().requires_grad_(), 0
        (slope,) = torch.autograd.grad(flow.log_prob(y).sum(), y, create_graph=True)
        seen.append(calls)
        curvatures.append(torch.autograd.grad(slope.square().sum(), y)[0])
    torch.testing.assert_close(*curvatures, rtol=0, atol=1e-9)
    # One row, three chunks, and those again.
    assert seen[1] <= 8 * seen[0]
