"""The variance of log Z: by weights where particles have forgotten, else by their ancestors."""

import torch

from pyro_stad.samplers import temper
from pyro_stad.samplers.lineage import ancestors, relative_variance


def test_the_variance_is_that_of_weights_of_ancestors():
    share = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    own = ancestors(share)
    plain = share.square().sum(-1) - 1 / 50
    torch.testing.assert_close(relative_variance(share, own), plain)
    # All from one: nothing is known, but for a factor of e.
    one = torch.zeros_like(own)
    torch.testing.assert_close(relative_variance(share, one), torch.full((2, 3), 1 - 1 / 50))
    # Pairs.
    pairs = own // 2
    wanted = share.reshape(2, 3, 25, 2).sum(-1).square().sum(-1) - 1 / 50
    torch.testing.assert_close(relative_variance(share, pairs), wanted)


class Modes:
    """Two modes that particles do not leave, of evidences that depend on how many are in each."""

    objects, size, data, calls = 1, 2, ("none",), 0
    like = torch.zeros(1, dtype=torch.float64)

    def of_objects(self, which, u):
        right = -0.5 * ((u - torch.tensor([2.5, 0.0])).square() / 0.01).sum(-1)
        left = -0.5 * ((u + torch.tensor([1.5, 0.0])).square() / 0.0025).sum(-1)
        return torch.logaddexp(left, right)


def test_stuck_particles_say_how_far_runs_are_apart():
    """Of three times 64 runs of 200 particles: to a third, the variance of variances being 0.1."""
    found = [temper(Modes(), 200, 64, torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert all(runs.stuck.item() for runs in found)
    stated = torch.stack([runs.variance.mean() for runs in found]).mean()
    true = torch.stack([runs.log_z.var() for runs in found]).mean()
    assert 0.67 < stated / true < 1.5
    # A large part of it is of particles that remember.
    assert all(runs.open.mean() > 0.5 * stated for runs in found)
