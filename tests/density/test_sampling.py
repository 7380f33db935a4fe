"""Draws of a prior by a sampler: shapes, seeds, gradients, files, Pyro, and the choice."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive

import pyro_stad
from pyro_stad.calibrate import Sampling, choose_sampler_of, energy_distance
from pyro_stad.drawing import DDIM, ODE, Splitting, candidates
from pyro_stad.fields import GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.paths import VPCosine

SAMPLERS = [ODE(20), DDIM(20, eta=1.0), Splitting(20)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_draws_of_a_prior(tiny_prior, sampler):
    prior = tiny_prior.with_sampler(sampler)
    assert prior.sampler == sampler
    assert prior.expand([3]).sampler == sampler
    assert prior.to(torch.float32).sampler == sampler
    assert prior.expand([3]).sample([2]).shape == (2, 3, 3)
    x = prior.sample([2000], generator=torch.Generator().manual_seed(0))
    assert prior.support.check(x).all()
    white = prior.whiten(x)
    assert white.mean(0).abs().max() < 0.2
    assert white.std(0).sub(1).abs().max() < 0.25
    again = tiny_prior.sample([2000], sampler=sampler, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_a_fine_ode_draws_what_the_flow_draws(tiny_prior):
    seeds = (torch.Generator().manual_seed(1) for _ in range(2))
    flow, ode = (
        tiny_prior.sample([50], sampler=sampler, generator=seed)
        for sampler, seed in zip((None, ODE(64, rule="rk4")), seeds)
    )
    assert (tiny_prior.whiten(flow) - tiny_prior.whiten(ode)).abs().max() < 0.1
    assert tiny_prior.sampler is None


def test_a_cut_prior_draws_by_the_sampler(tiny_prior):
    """With noise that DDPM renews, other draws than the flow's of the same seed."""
    region = lambda t: t["shift"] > 0  # noqa: E731
    found = []
    for prior in (tiny_prior, tiny_prior.with_sampler(DDIM(10, eta=1.0))):
        cut = prior.truncate(region)
        pyro.set_rng_seed(0)
        found.append(cut.sample([20]))
        assert (found[-1][:, 1] > 0).all()
    assert not torch.allclose(*found)


def test_pyro_draws_by_the_sampler(tiny_prior):
    calls = []

    class Told(DDIM):
        def draw(self, field, z, generator=None, *, progress=False):
            calls.append(len(z))
            return super().draw(field, z, generator, progress=progress)

    prior = tiny_prior.with_sampler(Told(5))

    def model():
        with pyro.plate("objects", 4):
            pyro.sample("theta", prior)

    found = Predictive(model, num_samples=3)()
    assert found["theta"].shape == (3, 4, 3)
    assert sum(calls) >= 12
    pyro.set_rng_seed(1)
    one = prior.sample([2])
    pyro.set_rng_seed(1)
    assert torch.equal(prior.sample([2]), one)


def test_gradients_reach_the_context():
    draws = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    context = draws[:, :1] + torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    flow = pyro_stad.fit(draws, context=context, budget="tiny", progress=False, dtype=torch.float64)
    given = torch.zeros(2, 1, requires_grad=True)
    prior = flow(given).with_sampler(DDIM(5))
    x = prior.rsample([3])
    assert x.shape == (3, 2, 2)
    (gradient,) = torch.autograd.grad(x.sum(), given)
    assert gradient.abs().min() > 0
    assert prior.expand([4, 2]).sampler == DDIM(5)


def test_a_file_keeps_the_sampler(tiny_prior, tmp_path):
    prior = tiny_prior.with_sampler(Splitting(12, scheme="OBAB", noise_scale=np.float32(2.0)))
    prior.save(tmp_path / "prior.safetensors")
    assert pyro_stad.load(tmp_path / "prior.safetensors").sampling == prior.sampling


def test_a_sampler_is_chosen_and_kept(free_prior, tmp_path):
    chosen = pyro_stad.choose_sampler(free_prior, budget=4, progress=False)
    again = pyro_stad.choose_sampler(free_prior, budget=4, progress=False)
    assert chosen.sampling == again.sampling
    assert chosen.sampler.sequential_calls() <= 4
    assert "energy distance" in chosen.summary()
    chosen.save(tmp_path / "prior.safetensors")
    assert repr(pyro_stad.load(tmp_path / "prior.safetensors").sampling) == repr(chosen.sampling)


def test_the_choice_is_near_the_best_of_all():
    """With a field in closed form: the choice is not worse than any other, but for chance."""
    field = GaussianMixtureField(VPCosine(), *random_mixture(2, seed=3))
    source = torch.Generator().manual_seed(0)
    tried = list(candidates(8))
    found = choose_sampler_of(field, torch.zeros(1, 2), tried, source, progress=False)
    trials = {trial.sampler: trial for trial in found.trials}
    taken = trials[repr(found.sampler)]
    assert len(trials) == len(tried)
    assert taken is found.trials[0]
    assert taken.displacement < 0.05
    worst = max(trials.values(), key=lambda trial: trial.distance)
    assert worst.distance > taken.distance + 10 * taken.distance_error
    best = min(trials.values(), key=lambda trial: trial.distance)
    assert taken.distance <= best.distance + 3 * (best.distance_error + taken.distance_error)


def test_energy_distance_of_normal_laws():
    """In one dimension it is twice the squared area between distribution functions."""
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, 1, generator=source) + shift for shift in (0.0, 1.0))
    grid = torch.linspace(-8, 9, 20_001)
    normal = dist.Normal(0.0, 1.0)
    between = (normal.cdf(grid) - normal.cdf(grid - 1)).square()
    wanted = 2 * torch.trapezoid(between, grid).item()
    assert energy_distance(x, y) == pytest.approx(wanted, rel=0.1)
    # Of one law it is zero in the mean, and may fall below.
    same = [energy_distance(*torch.randn(2, 200, 1, generator=source)) for _ in range(50)]
    error = torch.tensor(same).std().item() / math.sqrt(50)
    assert abs(sum(same) / 50) < 4 * error


def test_what_is_no_sampler_is_refused(tiny_prior):
    with pytest.raises(TypeError, match="`sampler` must be a sampler of pyro_stad.drawing"):
        tiny_prior.with_sampler(20)
    with pytest.raises(ValueError, match="`sampler` must be one of"):
        tiny_prior.sample([2], sampler="leapfrog")
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator"):
        tiny_prior.sample([2], generator=5)
    with pytest.raises(TypeError, match="`prior` must be a FlowPrior"):
        pyro_stad.choose_sampler(torch.zeros(2))
    with pytest.raises(ValueError, match="`budget` must be an integer"):
        pyro_stad.choose_sampler(tiny_prior, budget=0)
    assert tiny_prior.with_sampler("ddim").sampler == DDIM()
    assert tiny_prior.with_sampler("ddim").with_sampler(None).sampling is None
    assert Sampling(DDIM(3)).text().endswith("not measured")
