"""Kernels leave their law as it is: every one that is registered, on a law that is known."""

import pytest
import torch

from pyro_stad.registry import build, describe, registered
from pyro_stad.samplers import State, temper

KERNELS = registered("kernel")
SIZE, PRECISION, SHIFT = 3, 4.0, 0.5


def law(z, which=None):
    """Return N(shift, 1 / precision), relative to N(0, I); and z itself, as what is kept."""
    density = 0.5 * z.square().sum(-1) - 0.5 * PRECISION * (z - SHIFT).square().sum(-1)
    return State(z, density, (z.clone(), density.clone()))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_leaves_its_law_as_it_is(name):
    """Started in the law, moments stay: of 40,000 chains, to four of their standard errors."""
    kernel, generator = KERNELS[name](), torch.Generator().manual_seed(0)
    z = SHIFT + torch.randn(2, 20_000, SIZE, generator=generator) / PRECISION**0.5
    state, scale = law(z), torch.tensor([0.4, 0.9])
    moved = torch.zeros(2, 20_000, dtype=torch.bool)
    for _ in range(10):
        state, taken, *_ = kernel.step(state, law, scale, generator)
        moved |= taken
    assert moved.double().mean() > 0.5
    error = 4 / (PRECISION * 20_000) ** 0.5
    torch.testing.assert_close(state.z.mean(1), torch.full((2, SIZE), SHIFT), rtol=0, atol=error)
    spread = torch.full((2, SIZE), PRECISION**-0.5)
    torch.testing.assert_close(state.z.std(1), spread, rtol=4 / 40_000**0.5, atol=0)
    # What is kept goes with the chain.
    torch.testing.assert_close(state.kept[0], state.z, rtol=0, atol=0)
    torch.testing.assert_close(state.kept[1], state.log_density, rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_finds_its_law(name):
    kernel, generator = KERNELS[name](), torch.Generator().manual_seed(1)
    state, scale = law(torch.full((1, 4000, SIZE), 4.0)), torch.tensor([0.5])
    for _ in range(200):
        state, *_ = kernel.step(state, law, scale, generator)
    assert abs(state.z.mean().item() - SHIFT) < 4 / (PRECISION * 12_000) ** 0.5


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_impossible_is_never_entered(name):
    def half(z, which=None):
        inside = (z > 0).all(-1)
        return State(z, torch.where(inside, law(z).log_density, -torch.inf))

    kernel, generator = KERNELS[name](), torch.Generator().manual_seed(2)
    state = half(torch.rand(1, 500, SIZE) + 0.1)
    for _ in range(20):
        state, *_ = kernel.step(state, half, torch.tensor([0.8]), generator)
    assert (state.z > 0).all()


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_described_and_built(name):
    kernel = KERNELS[name]()
    assert build(describe(kernel, "kernel"), "kernel") == kernel


class Normal:
    """A normal likelihood of noise: log Z and the posterior are known."""

    objects, size, data, calls = 1, 2, ("none",), 0

    def __init__(self):
        self.like = torch.zeros(1)

    def of_objects(self, which, u):
        return -2.0 * (u - 1).square().sum(-1)


@pytest.mark.parametrize("name", KERNELS)
def test_tempering_takes_any_kernel(name):
    """Z = (2 pi)^... of N(0, 1) times exp(-2 (u - 1)^2): 5^(-1/2) exp(-2/5) a coordinate."""
    generator = torch.Generator().manual_seed(0)
    runs = temper(Normal(), 2000, 4, generator, kernel=KERNELS[name]())
    truth = 2 * (-0.5 * torch.tensor(5.0).log() - 0.4)
    assert abs(runs.log_z.mean() - truth) < 0.1
    torch.testing.assert_close(runs.u.mean((0, 1, 2)), torch.full((2,), 0.8), rtol=0, atol=0.03)
