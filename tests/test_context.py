"""Contexts: whatever the caller's thread, mode, dtype or device is, the numbers are the same."""

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pyro_stad
from pyro_stad.divergence import Exact, SeparateNetwork, Stein
from pyro_stad.fields import PathField
from pyro_stad.likelihood import FlowODE, SteinPath
from pyro_stad.ode import RK4
from tests.oracles import field_on, mixture_sample

POINTS = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(20, 2)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "another default device": lambda: torch.device("meta"),
    "default float32": lambda: default_dtype(torch.float32),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic algorithms": deterministic,
}


SAMPLES, FRESH = mixture_sample(300, 2), mixture_sample(60, 2, seed=9).float()


def work(seed=0):
    """Fit, evaluate every way there is, draw, and calibrate."""
    prior = pyro_stad.fit(SAMPLES, budget="tiny", seed=seed, progress=False)
    value, flow = POINTS.float(), prior.likelihood
    exact = prior.with_likelihood(FlowODE(flow.field, Exact(), RK4(4)))
    again = prior.calibrate(FRESH, seed=3)
    return torch.cat([
        prior.log_prob(value), exact.log_prob(value), prior.transforms[0](value).flatten(),
        again.log_prob(value), prior.surrogate_error(value), prior.tail_probability(value),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    return work()


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_context_gives_the_same_numbers(name, alone):
    state = torch.get_rng_state()
    with CONTEXTS[name]():
        found = work()
    assert torch.equal(found, alone)
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_give_the_same_numbers(alone):
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, [0, 1, 0, 1]))
    assert all(torch.equal(found[i], alone) for i in (0, 2))
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[1], alone)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_file_read_in_any_context_serves_in_every_other(name, tiny_prior, tmp_path):
    """What is read in inference mode must not be made of inference tensors."""
    tiny_prior.save(tmp_path / "prior.safetensors")
    value = tiny_prior.sample((4,))
    state = torch.get_rng_state()
    with CONTEXTS[name]():
        loaded = pyro_stad.load(tmp_path / "prior.safetensors")
        moved = loaded.to(torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    for prior in (loaded, moved):
        x = value.clone().requires_grad_()
        assert torch.equal(prior.log_prob(x), tiny_prior.log_prob(value))
        (slope,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
        assert torch.isfinite(slope).all()
        with CONTEXTS[name]():
            assert torch.equal(prior.log_prob(value), tiny_prior.log_prob(value))


@pytest.mark.parametrize("wrapped", [False, True], ids=["gradient", "gradient by torch.func"])
def test_a_gradient_under_autocast_is_that_without(wrapped, free_prior):
    def slope(x):
        if wrapped:
            return torch.func.grad(lambda y: free_prior.log_prob(y).sum())(x)
        x = x.clone().requires_grad_()
        return torch.autograd.grad(free_prior.log_prob(x).sum(), x)[0]

    expected = slope(POINTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(slope(POINTS), expected)


def separate(field):
    network = SeparateNetwork(2, 8, 2)
    torch.nn.init.normal_(network.trunk.out.weight)
    return SteinPath(field, Stein(network.requires_grad_(False)), RK4(4))


LIKELIHOODS = {
    "closed form, exact": lambda mixture, learned: FlowODE(mixture, Exact(), RK4(4)),
    "learned, exact": lambda mixture, learned: FlowODE(learned, Exact(), RK4(4)),
    "separate network": lambda mixture, learned: separate(learned),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_serves_threads_and_transforms(name, free_prior):
    """Values, gradients, and both through ``torch.func``, from many threads at once."""
    from pyro_stad.fields.mixture import random_mixture

    mixture = field_on("ot", random_mixture(2))
    likelihood = LIKELIHOODS[name](mixture, free_prior.likelihood.field)

    def evaluate(x):
        at = x.clone().requires_grad_()
        value = likelihood.log_prob(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        mapped = torch.func.grad(lambda y: likelihood.log_prob(y[None])[0])
        return torch.cat([value[:, None], slope, torch.func.vmap(mapped)(x)], dim=1).detach()

    expected = evaluate(POINTS)
    torch.testing.assert_close(expected[:, 1:3], expected[:, 3:], rtol=1e-9, atol=1e-9)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(evaluate, [POINTS] * 8):
            assert torch.equal(found, expected)


def test_a_field_of_another_velocity_gets_its_own_derivatives():
    """What a subclass computes in its own way must not be passed over for the trunk's."""

    class Turned(PathField):
        def velocity(self, t, x):
            return super().velocity(t, x) + x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    from pyro_stad.paths import OptimalTransport

    field = Turned(OptimalTransport(), 2, 4, 1)
    found = Exact()(field, torch.tensor(0.5), POINTS)
    torch.testing.assert_close(found, torch.full((20,), 5.0))


def test_a_value_has_a_graph_only_if_somebody_asked_for_one():
    from pyro_stad.fields.mixture import random_mixture

    flow = FlowODE(field_on("ot", random_mixture(2)), Exact(), RK4(2))
    x = POINTS.clone().requires_grad_()
    assert not flow.log_prob(POINTS).requires_grad
    assert flow.log_prob(x).requires_grad
    with torch.no_grad():
        assert not flow.log_prob(x).requires_grad


def test_products_survive_checkpoints_and_inference_tensors():
    """More rows than a chunk, with a gradient; and points made in inference mode."""
    from pyro_stad.fields.mixture import random_mixture

    field = field_on("ot", random_mixture(2))
    whole, chunked = (FlowODE(field, Exact(), RK4(2), size) for size in (8192, 16))
    x = POINTS.clone().requires_grad_()
    expected = torch.autograd.grad(whole.log_prob(x).sum(), x)[0]
    found = torch.autograd.grad(chunked.log_prob(x).sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        inference = POINTS + 0
    assert torch.equal(whole.log_prob(inference), whole.log_prob(POINTS))


def test_warnings_as_errors_stop_no_fit():
    """In a process of its own: torch warns of a deprecation but once."""
    script = """
import warnings; warnings.simplefilter("error")
import torch, pyro_stad
from pyro_stad.divergence import Exact
from pyro_stad.likelihood import FlowODE
x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
prior = pyro_stad.fit(x, budget="tiny", progress=False)
flow = prior.likelihood
prior.with_likelihood(FlowODE(flow.field, Exact(), flow.solver)).log_prob(x)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
