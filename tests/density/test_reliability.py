"""Silent failures: what other software does not report, as tests. The rest are in the contract."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample

import pyro_stad
from pyro_stad.divergence import Hutchinson
from pyro_stad.likelihood import FlowODE
from tests.oracles import mixture_sample


def test_log_prob_is_smooth_along_a_line(tiny_prior):
    """Silent failure 1: roughness of a hundredth of a nat makes NUTS five times slower.

    Second differences at a step of 1e-4 posterior sds: curvature contributes about 1e-8, rounding
    1e-13; a rough function shows its roughness whole.
    """
    line = tiny_prior.sample() + 1e-4 * torch.arange(-200, 200)[:, None] * torch.ones(3)
    values = tiny_prior.log_prob(line)
    assert (values[2:] - 2 * values[1:-1] + values[:-2]).abs().max() < 1e-5


def test_float32_is_smooth_to_a_thousandth_of_a_nat(tiny_prior):
    prior = tiny_prior.to(torch.float32)
    line = prior.sample() + 1e-4 * torch.arange(-200, 200)[:, None] * torch.ones(3)
    values = prior.log_prob(line.float()).double()
    assert (values[2:] - 2 * values[1:-1] + values[:-2]).abs().max() < 1e-3


def test_frozen_probes_keep_nuts_moving(free_prior):
    """A stochastic divergence inside NUTS is a fixed function: the chain moves as it should."""
    flow = free_prior.likelihood
    prior = free_prior.with_likelihood(FlowODE(flow.field, Hutchinson(1), flow.solver))
    value = prior.sample((3,))
    assert torch.equal(prior.log_prob(value), prior.log_prob(value))

    def model():
        pyro.sample("theta", prior)

    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=4)
    mcmc = MCMC(kernel, 25, 15, disable_progbar=True)
    mcmc.run()
    assert kernel.step_size > 0.05
    assert mcmc.get_samples()["theta"].std(0).min() > 0.2


def test_init_to_sample_starts_where_the_prior_lives():
    """Silent failure 6: a prior in physical units, far from Pyro's default start of (-2, 2)."""
    prior = pyro_stad.fit(
        1e6 + 1e3 * mixture_sample(300, 2), budget="tiny", progress=False, dtype=torch.float64
    )

    def model():
        pyro.sample("theta", prior)

    kernel = NUTS(model, init_strategy=init_to_sample)
    kernel.setup(10)
    start = kernel.initial_params["theta"]
    assert prior.tail_probability(start) > 1e-6
    assert prior.tail_probability(torch.zeros(2)) < 1e-6


def test_a_bad_region_is_rejected_counted_and_not_a_divergence_of_the_geometry(tiny_prior):
    """Silent failure 2: the posterior stops at the bound, and the counts say so."""
    pyro.enable_validation(False)

    def model():
        # Sampled without its bound's bijection on purpose, so that proposals do leave the support.
        raw = pyro.sample("raw", dist.Normal(tiny_prior.sample().detach(), 2.0).to_event(1))
        pyro.factor("prior", tiny_prior.log_prob(raw))

    before = tiny_prior.counts.nonfinite
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_sample, max_tree_depth=4), 20, 10, disable_progbar=True
    )
    mcmc.run()
    assert (mcmc.get_samples()["raw"][:, 0] > 0).all()
    assert tiny_prior.counts.nonfinite >= before


SHAPES = st.lists(st.integers(0, 4), max_size=3)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.int64])


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, dtype=DTYPES, wide=st.booleans())
def test_any_shape_and_dtype_gives_the_right_shape_or_a_named_error(free_prior, shape, dtype, wide):
    value = torch.ones(*shape, 3 if wide else 2).to(dtype)
    if wide:
        with pytest.raises(ValueError, match="event shape"):
            free_prior.log_prob(value)
    else:
        assert free_prior.log_prob(value).shape == torch.Size(shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_gpu_agree(tiny_prior):
    value = tiny_prior.sample((100,))
    found = tiny_prior.to("cuda").log_prob(value.cuda()).cpu()
    torch.testing.assert_close(found, tiny_prior.log_prob(value), rtol=0, atol=1e-3)


def test_memory_does_not_grow_with_calls(tiny_prior):
    """No cache: tensors alive after many calls are those alive after a few."""
    import gc

    value = tiny_prior.sample((5,))

    def alive():
        gc.collect()
        return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor)

    for _ in range(3):
        tiny_prior.log_prob(value)
        tiny_prior.sample((5,))
    first = alive()
    for _ in range(50):
        tiny_prior.log_prob(value)
        tiny_prior.sample((5,))
    assert alive() <= first + 2
