"""The grid for draws: as coarse as draws stay true, and no coarser."""

import math

import pytest
import torch

from pyro_stad.calibrate import choose_grid
from pyro_stad.divergence import Exact
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4, Dopri5
from pyro_stad.transport import Flow
from tests.oracles import field_on, gaussian


def steep():
    """Return two narrow modes, whitened: steep between them."""
    means = 0.995 * torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    covariance = torch.diag(torch.tensor([1 - 0.995**2, 1.0]))
    return torch.tensor([0.5, 0.5]), means, covariance.expand(2, 2, 2)


def chosen(parts, solver, like=None):
    features = parts[1].shape[1]
    like = torch.zeros(1, features) if like is None else like
    flow = Flow(field_on("ot", parts), solver, chunk_size=64)
    return choose_grid(flow, like, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("features", [1, 2, 5])
def test_draws_on_the_chosen_grid_are_within_a_hundredth_of_the_true_flow(features):
    parts = random_mixture(features)
    flow, trial = chosen(parts, RK4(32))
    assert trial.serves
    assert trial.solver == repr(flow.solver)
    assert trial.sequential_calls == flow.sequential_calls() < RK4(32).sequential_calls()
    noise = torch.randn(2000, features)
    apart = flow.push(noise) - Flow(flow.field, RK4(200)).push(noise)
    # Of 2,000 points as of the trial's own 1,000, to the error of a mean square.
    assert apart.square().mean().sqrt() < 0.012
    assert apart.square().mean().sqrt() == pytest.approx(trial.displacement, rel=0.5)
    # A tenth of a standard deviation is seen by nobody in the moments of the data.
    data = sample_mixture(parts, 20_000, 3)
    torch.testing.assert_close(
        flow.push(torch.randn(20_000, features)).std(0), data.std(0), rtol=0.03, atol=0.0
    )


def test_the_cheapest_grid_that_serves_is_taken():
    """Of a normal law that is whitened nothing moves: the coarsest grid draws exactly."""
    flow, trial = chosen(gaussian(3), RK4(16))
    assert flow.solver == RK4(2)
    assert trial.displacement < 1e-12
    finer, trial = chosen(steep(), RK4(32))
    assert 2 < finer.solver.steps < 32
    assert trial.serves
    # The way back has no part in it.
    assert finer.back == RK4(32)


def test_a_grid_that_is_not_fine_enough_is_kept_and_said():
    """Nothing is cheaper than two steps: they are taken though their draws are not true."""
    flow, trial = chosen(steep(), RK4(2))
    assert flow.solver == RK4(2)
    assert not trial.serves
    assert trial.displacement > 0.01


def test_other_solvers_stay():
    flow, trial = chosen(gaussian(2), Dopri5())
    assert flow.solver == Dopri5()
    assert trial is None


def test_a_grid_that_goes_astray_does_not_serve():
    _, trial = chosen(random_mixture(2), RK4(4), torch.zeros(1, 2))
    assert not type(trial)(**{**vars(trial), "displacement": math.nan}).serves


def test_the_chunk_size_is_kept():
    assert chosen(random_mixture(2), RK4(32))[0].chunk_size == 64


def test_a_density_says_of_which_flow_it_is():
    parts = random_mixture(2)
    density = FlowODE(field_on("ot", parts), Exact(), RK4(6), chunk_size=64, log_mass=0.5)
    flow = density.transport()
    assert (flow.field, flow.solver, flow.chunk_size) == (density.field, RK4(6), 64)
    finer = density.replace(solver=RK4(12))
    assert (finer.solver, finer.chunk_size, finer.log_mass) == (RK4(12), 64, 0.5)
    assert density.solver == RK4(6)
    with pytest.raises(TypeError, match=r"no \['solve'\]; it has \['field'"):
        density.replace(solve=RK4(12))
    with pytest.raises(ValueError, match="`log_mass` must be finite; got inf"):
        density.replace(log_mass=math.inf)
