"""SOAP: Adam in bases of its own, which are orthogonal and follow the gradients."""

import pytest
import torch
from torch import nn

from pyro_stad import TrainingSettings
from pyro_stad.learn import train
from pyro_stad.learn.soap import Soap


def rotation(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator)).Q


def quadratic():
    """Return a loss of a matrix that is steep along few directions, none of them an axis.

    Half of it is one over the steepness, from 1 to 1,000, so that it takes long to be reached.
    """
    left, right = rotation(6, 1), rotation(4, 2)
    steep = torch.logspace(0, 3, 24).reshape(6, 4)

    def loss(weight):
        return 0.5 * (steep * (left.mT @ weight @ right - 1).square()).sum()

    return loss


def after(optimiser, parameter, loss, steps=200):
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimiser.zero_grad()
        loss(parameter).backward()
        optimiser.step()
    return loss(parameter).item()


def test_it_beats_adam_where_the_axes_are_the_wrong_ones():
    loss, ends = quadratic(), {}
    for name, kind in {"adam": torch.optim.Adam, "soap": Soap}.items():
        weight = nn.Parameter(torch.zeros(6, 4))
        ends[name] = after(kind([weight], lr=0.05), weight, loss)
    assert ends["soap"] < 0.1 * ends["adam"], ends


def test_bases_are_orthogonal_and_find_the_directions():
    """With a loss whose gradients are one matrix, its singular vectors are the bases."""
    torch.manual_seed(0)
    fixed = torch.randn(5, 3)
    weight = nn.Parameter(torch.zeros(5, 3))
    optimiser = Soap([weight], lr=1e-3)
    after(optimiser, weight, lambda w: (w * fixed).sum(), steps=100)
    state = optimiser.state[weight]
    left, right = state["left_basis"], state["right_basis"]
    for basis in (left, right):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(len(basis)), rtol=0, atol=1e-12)
    turned = left.mT @ fixed @ right
    # As large as the singular values, each in a row and a column of its own.
    found = turned.abs().flatten().sort(descending=True).values
    torch.testing.assert_close(found[:3], torch.linalg.svdvals(fixed), rtol=1e-3, atol=0)
    assert found[3:].max() < 1e-3 * found[2]


def test_on_a_vector_it_is_adam():
    """Up to Adam's other constants, a constant gradient gives steps of the learning rate."""
    weight = nn.Parameter(torch.zeros(3))
    optimiser = Soap([weight], lr=0.1)
    slope = torch.tensor([1e-3, -2.0, 50.0])
    for _ in range(5):
        optimiser.zero_grad()
        (weight @ slope).backward()
        optimiser.step()
    torch.testing.assert_close(weight.detach(), -0.5 * slope.sign(), rtol=1e-4, atol=0)


def test_parameters_without_a_gradient_stay():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = Soap([used, unused], lr=0.1)
    used.sum().backward()
    optimiser.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert (used < 1).any()


def test_the_settings_choose_it():
    module = nn.Linear(3, 3, bias=False)
    x, turn = torch.randn(64, 3), rotation(3, 0)

    def loss(m, generator):
        return (m(x) - x @ turn).square().mean()

    options = {"learning_rate": 0.05, "ema_decay": 0.9, "warmup": 5}
    settings = TrainingSettings(300, optimiser="soap", **options)
    train(
        module, loss, lambda m: loss(m, None).item(), settings,
        generator=torch.Generator().manual_seed(0), progress=False,
    )  # fmt: skip
    torch.testing.assert_close(module.weight.detach(), turn.mT, rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="`optimiser` must be"):
        TrainingSettings(10, optimiser="sgd")
