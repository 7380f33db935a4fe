"""Statistics of chains: those of ArviZ, many at once; and who is said to disagree."""

import arviz
import numpy as np
import pytest
import torch

from pyro_stad.data.effective import ess
from pyro_stad.samplers.diagnostics import diagnose


def chains(kind, source):
    """Return draws ``(C, n)`` of one number."""
    noise = torch.randn(6, 101, generator=source)
    if kind == "independent":
        return noise
    if kind == "slow":
        return torch.stack([noise[:, :index].mean(1) for index in range(1, 101)], 1)
    if kind == "held":  # as of moves that were refused
        return noise[:, torch.arange(100) // 7]
    if kind == "apart":
        return noise + torch.arange(6)[:, None]
    return noise * (1 + torch.arange(6)[:, None])  # spreads


KINDS = ["independent", "slow", "held", "apart", "spread"]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_arviz(kind):
    draws = chains(kind, torch.Generator().manual_seed(0))
    found = diagnose(draws[None])
    known = np.asarray(draws)
    assert found.r_hat.item() == pytest.approx(float(arviz.rhat(known)), rel=1e-6)
    assert found.ess.item() == pytest.approx(float(arviz.ess(known)), rel=1e-6)
    assert diagnose(draws[None, :, :100]).ess.item() == pytest.approx(ess(draws[:, :100]), rel=1e-9)


def test_numbers_are_on_their_own():
    source = torch.Generator().manual_seed(1)
    alone = [chains(kind, source)[:, :100] for kind in KINDS]
    together = diagnose(torch.stack(alone))
    for index, draws in enumerate(alone):
        one = diagnose(draws[None])
        for ours, theirs in zip(together, one):
            torch.testing.assert_close(ours[index], theirs[0], equal_nan=True)
    assert together.disagree.tolist() == [False, True, False, True, True]


def test_short_chains_that_agree_are_not_blamed_for_being_short():
    """Of a hundred sets of 32 chains of 40 draws R-hat is above 1.01, as it must be."""
    source = torch.Generator().manual_seed(2)
    noise = torch.randn(100, 32, 140, generator=source)
    draws = torch.zeros(100, 32, 140)
    for index in range(1, 140):  # an autocorrelation of a half
        draws[..., index] = 0.5 * draws[..., index - 1] + 0.75**0.5 * noise[..., index]
    found = diagnose(draws[..., 100:])
    assert (found.r_hat > 1.01).double().mean() > 0.9
    assert found.disagree.double().mean() < 0.03
    # Chains of which a few are somewhere else are found.
    draws[:, :4] += 3.0
    assert diagnose(draws[..., 100:]).disagree.all()
    # And chains that never move.
    never = torch.arange(8.0)[None, :, None].expand(1, 8, 50)
    assert diagnose(never).disagree.all()


def test_a_number_that_is_not_drawn_is_left_out():
    found = diagnose(torch.zeros(1, 8, 50))
    assert found.r_hat.item() == 1
    assert found.ess.item() == 400
    assert not found.disagree
