"""Generators given a context: their law, their place in Pyro, their files, and what they refuse."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.density import ConditionalGenerator, drawn_by_flow
from pyro_stad.errors import CheckpointError
from pyro_stad.evidence import SMC
from pyro_stad.learn import EMSettings


@pytest.fixture(scope="module")
def flow():
    torch.set_default_dtype(torch.float64)
    source = torch.Generator().manual_seed(0)
    context = torch.randn(2000, 1, generator=source)
    noise = torch.randn(2000, 2, generator=source)
    # Of two modes, so that there is more to learn than the whitening.
    side = torch.randint(2, (2000, 1), generator=source) * 2.0 - 1
    return pyro_stad.fit(
        context + side + 0.4 * noise, context=context, budget="tiny", progress=False,
        dtype=torch.float64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def generator(flow):
    return pyro_stad.distil_one_step(flow, steps=400, pairs=4000, progress=False)


def test_it_draws_where_the_flow_does(flow, generator):
    assert isinstance(generator, ConditionalGenerator)
    assert generator.distilled.displacement < 0.1
    context = torch.tensor([[-1.0], [0.5]])
    draws = (law(context).sample([4000], generator=torch.Generator().manual_seed(seed))
             for seed, law in enumerate((generator, flow)))  # fmt: skip
    ours, theirs = draws
    assert ours.shape == (4000, 2, 2)
    scale = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)) / scale).abs().max() < 5 * (2 / 4000) ** 0.5 + 0.05
    assert (ours.std(0) / scale - 1).abs().max() < 0.1


def test_of_one_noise_it_and_its_flow_draw_nearly_the_same(generator):
    law = generator(torch.tensor([[0.2], [1.0], [-2.0]]))
    z = torch.randn(50, 3, 2)

    def carried(x):
        for transform in law.transforms:
            x = transform(x)
        return x

    own = carried(z)
    with drawn_by_flow():
        flow = carried(z)
    x = z
    for transform in law.prior.transforms:
        x = transform(x)
    assert torch.equal(flow, x)
    assert not torch.equal(own, flow)
    assert (own - flow).square().mean().sqrt() < 0.1


def test_em_distils_given_a_context(flow):
    options = {"method": "em", "pairs": 500, "batch_size": 128, "progress": False}
    few, many = (
        pyro_stad.distil_one_step(flow, steps=steps, em=EMSettings(inference_steps=2), **options)
        for steps in (1, 400)
    )
    assert many.distilled.distance < 0.5 * few.distilled.distance


def test_it_is_a_pyro_distribution_of_any_batch(generator):
    context = torch.randn(3, 1, requires_grad=True)
    law = generator(context)
    assert law.batch_shape == (3,)
    assert law.expand([5, 3]).sample([2]).shape == (2, 5, 3, 2)
    (gradient,) = torch.autograd.grad(law.rsample([7]).sum(), context)
    assert gradient.abs().min() > 0
    with pytest.raises(NotImplementedError, match=r"generator.prior.log_prob"):
        law.log_prob(torch.zeros(3, 2))
    assert law.prior.log_prob(torch.zeros(3, 2)).shape == (3,)

    def model(y):
        centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
        with pyro.plate("objects", 3):
            theta = pyro.sample("theta", generator(centre[..., None]))
            pyro.sample("y", dist.Normal(theta[..., 0], 0.5), obs=y)

    y = torch.tensor([0.3, -0.5, 1.0])
    found, known = (
        pyro_stad.log_evidence(m, y, method=SMC(particles=500), progress=False)
        for m in (model, pyro_stad.FlowReparam()(model))
    )
    assert abs(found.log_z - known.log_z) < 4 * (found.log_z_err + known.log_z_err)
    assert found.correction is not None


def test_a_file_holds_generator_and_flow(generator, tmp_path):
    path = tmp_path / "generator.safetensors"
    generator.save(path)
    back = pyro_stad.load(path)
    assert isinstance(back, ConditionalGenerator)
    assert back.distilled == generator.distilled
    assert "distilled by regression" in back.summary()
    context = torch.zeros(2, 1)
    draws = (
        each(context).sample([4], generator=torch.Generator().manual_seed(0))
        for each in (back, generator)
    )
    assert torch.equal(*draws)
    assert back.to(torch.float32)(torch.zeros(1)).sample().dtype == torch.float32
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        pyro_stad.load(path)


def test_slips_have_messages(flow, generator, tiny_prior):
    with pytest.raises(TypeError, match="without a context, or a ConditionalFlow"):
        pyro_stad.distil_one_step(flow(torch.zeros(1)))
    with pytest.raises(ValueError, match="`contexts` are for a ConditionalFlow"):
        pyro_stad.distil_one_step(tiny_prior, contexts=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"`context` must have shape \(..., 1\)"):
        pyro_stad.distil_one_step(flow, contexts=torch.zeros(3, 2))
    with pytest.raises(TypeError, match="the context is missing"):
        generator()
    with pytest.raises(TypeError, match="`flow` must be a ConditionalFlow"):
        ConditionalGenerator(tiny_prior, generator.transport)
    plain = pyro_stad.distil_one_step(tiny_prior, steps=1, pairs=100, progress=False)
    with pytest.raises(ValueError, match="`transport` must take a context"):
        ConditionalGenerator(flow, plain.transport)
