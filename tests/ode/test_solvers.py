"""Solvers: order of convergence, both directions, and failures that neither raise nor hang."""

import math

import pytest
import torch

from pyro_stad.ode import RK4, SOLVERS, Dopri5, Midpoint

ORDERS = {"midpoint": (Midpoint, 2), "rk4": (RK4, 4)}


GENERATOR = torch.tensor([[-0.5, 2.0], [-2.0, -0.5]], dtype=torch.float64)


def spiral(t, x):
    """Return a linear field whose solution is a rotation with decay: x(1) is known."""
    return x @ GENERATOR.mT


def exact(x):
    angle, decay = 2.0, math.exp(-0.5)
    rotation = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    return decay * x @ rotation.mT


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    kind, order = ORDERS[name]
    x = torch.randn(5, 2)
    steps = [8, 16, 32, 64]
    errors = [(kind(n).integrate(spiral, x, 0.0, 1.0) - exact(x)).abs().max().item() for n in steps]
    slope = math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", [Midpoint(400), RK4(64), Dopri5(1e-9, 1e-9)])
def test_backward_undoes_forward(solver):
    x = torch.randn(5, 2)
    there = solver.integrate(spiral, x, 0.0, 1.0)
    torch.testing.assert_close(there, exact(x), rtol=1e-4, atol=1e-5)
    back = solver.integrate(spiral, there, 1.0, 0.0)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)


def test_trajectory_ends_where_integrate_does():
    x, solver = torch.randn(5, 2), RK4(8)
    knots, states = solver.trajectory(spiral, x, 0.0, 1.0)
    assert states.shape == (9, 5, 2)
    assert knots[0] == 0
    assert knots[-1] == 1
    # Denser towards the data end, in both directions.
    assert (knots.diff().diff() > 0).all()
    torch.testing.assert_close(solver.trajectory(spiral, x, 1.0, 0.0)[0], knots.flip(0))
    torch.testing.assert_close(states[-1], solver.integrate(spiral, x, 0.0, 1.0))


@pytest.mark.parametrize("solver", [Midpoint(8), RK4(8), Dopri5()])
def test_nan_neither_raises_nor_hangs(solver):
    x = torch.tensor([[1.0, 2.0], [math.nan, 0.0]])
    result = solver.integrate(spiral, x, 0.0, 1.0)
    assert torch.isnan(result[1]).any()
    if not solver.is_adaptive:
        torch.testing.assert_close(result[0], exact(x[:1])[0], rtol=0.05, atol=0.05)


def test_adaptive_solver_gives_up_on_stiffness_with_nan():
    stiff = Dopri5(1e-6, 1e-6, max_steps=20)
    result = stiff.integrate(lambda t, x: -1e6 * x, torch.ones(2, 2), 0.0, 1.0)
    assert torch.isnan(result).all()


def test_tracing_an_adaptive_solver_is_refused():
    """Silent failure 4: a traced adaptive solver is wrong on new inputs."""
    with pytest.raises(RuntimeError, match="adaptive solver can't be traced"):
        torch.jit.trace(lambda x: Dopri5().integrate(spiral, x, 0.0, 1.0), torch.ones(2, 2))


def test_tracing_a_fixed_grid_is_right_on_new_inputs():
    traced = torch.jit.trace(lambda x: RK4(8).integrate(spiral, x, 0.0, 1.0), torch.ones(2, 2))
    x = 3 * torch.randn(2, 2)
    torch.testing.assert_close(traced(x), RK4(8).integrate(spiral, x, 0.0, 1.0))


@pytest.mark.parametrize("solver", [Midpoint(3), RK4(3)], ids=repr)
def test_the_calls_are_those_that_are_made(solver):
    calls = []
    solver.integrate(lambda t, x: calls.append(1) or spiral(t, x), torch.ones(2, 2), 0.0, 1.0)
    assert len(calls) == solver.sequential_calls()


@pytest.mark.parametrize("kind", [Midpoint, RK4])
def test_no_steps_are_refused(kind):
    with pytest.raises(ValueError, match="`steps` must be an integer of at least 1; got 0"):
        kind(0)


def test_registry_is_complete():
    assert set(SOLVERS.values()) == {Midpoint, RK4, Dopri5}
