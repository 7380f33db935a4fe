"""Jumps: the law stays, weights of modes come right, and what is drawn has the density it says."""

import math

import torch

from pyro_stad.samplers import State
from pyro_stad.samplers.jumps import Jumps

SIZE, APART, SHARE = 3, 4.0, 0.3


def law(z, which=None):
    """Return 0.3 N(-4, I / 4) + 0.7 N(4, I) in every coordinate, relative to N(0, I)."""
    left = math.log(SHARE) - 2.0 * (z + APART).square().sum(-1) + SIZE * math.log(2.0)
    right = math.log(1 - SHARE) - 0.5 * (z - APART).square().sum(-1)
    density = torch.logaddexp(left, right) + 0.5 * z.square().sum(-1)
    return State(z, density, (z.clone(),))


def points(share, count=4000, seed=0):
    """Return draws of the law, but with a share of the left mode, ``(1, 2, N, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 2, count, SIZE, generator=generator)
    left = torch.arange(count) < share * count
    return torch.where(left[:, None], 0.5 * noise - APART, noise + APART)


def test_weights_of_modes_come_right():
    """From even weights to 0.3, by jumps alone; in the law itself they stay."""
    generator = torch.Generator().manual_seed(0)
    jumps = Jumps.fitted(points(0.5, seed=1), generator)
    for share in (0.5, SHARE):
        state = law(points(share))
        moved = torch.zeros(state.log_density.shape, dtype=torch.bool)
        for _ in range(30):
            state, taken = jumps.step(state, law, generator)
            moved |= taken
        assert moved.double().mean() > 0.95
        left = (state.z[..., 0] < 0).double().mean()
        assert abs(left - SHARE) < 4 * math.sqrt(SHARE * (1 - SHARE) / 8000)
        here = state.z[state.z[..., 0] > 0]
        torch.testing.assert_close(here.mean(0), torch.full((SIZE,), APART), rtol=0, atol=0.08)
        torch.testing.assert_close(here.std(0), torch.ones(SIZE), rtol=0.06, atol=0)
        assert torch.equal(state.kept[0], state.z)


def test_draws_have_the_density_that_is_stated():
    """E_q[N(0, I) / q] = 1, to five errors; of every object and half, with laws of their own."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 0.5])[:, None, None, None]
    seen = scale * torch.randn(2, 2, 500, SIZE, generator=generator) + scale - 1
    jumps = Jumps.fitted(seen, generator)
    z = jumps._drawn(torch.zeros(2, 2, 50_000, SIZE), generator)
    ratio = (-jumps._relative(z) - 0.5 * SIZE * math.log(2 * math.pi)).exp()
    error = ratio.std(2) / math.sqrt(50_000)
    assert ((ratio.mean(2) - 1) / error)[0].abs().max() < 5
    # Of the narrow one the wide part alone covers N(0, I): it does so with few draws.
    assert ((ratio.mean(2) - 1).abs() < 0.3).all()
    assert (z[1].std((0, 1)) < z[0].std((0, 1))).all()


def test_few_points_and_points_that_are_all_the_same_do_no_harm():
    generator = torch.Generator().manual_seed(0)
    for seen in (torch.ones(1, 2, 4, SIZE), torch.randn(1, 2, 3, SIZE, generator=generator)):
        jumps = Jumps.fitted(seen, generator)
        state, taken = jumps.step(law(points(0.5, 50)), law, generator)
        assert torch.isfinite(state.log_density).all()
        assert taken.dtype == torch.bool
