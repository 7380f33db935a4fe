"""Devices: what a GPU computes is what the CPU does, and nothing waits for it on the way.

Reading a number back, ``item`` or a shape that depends on values, makes the host wait for the
device. Most operations that do so are known without one: they are looked for on the CPU, in all
ways to a density and to draws. Copies to the host look like any other there; on a machine with a
GPU, CUDA itself is told to raise for every wait.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_stad
from pyro_stad.divergence import Exact, Hutchinson, HutchPlusPlus, ImageHead, Stein, TrunkHead
from pyro_stad.drawing import ODE, EulerMaruyama
from pyro_stad.fields import ImageField, PathField
from pyro_stad.likelihood import Coarse, Constant, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

# What needs the value of a tensor on the host.
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::is_nonzero",
    "aten::repeat_interleave",
)
INDICES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class NoWaits(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # An index by a mask has as many rows as the mask says.
        by_mask = func._schema.name in INDICES and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if by_mask or func._schema.name in WAITS:
            raise RuntimeError(f"{func._schema.name} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


def vectors():
    source = torch.Generator().manual_seed(0)
    field = PathField(OptimalTransport(), 3, 16, 2, source)
    return field, Stein(TrunkHead.for_field(field, source))


def images():
    source = torch.Generator().manual_seed(0)
    field = ImageField(OptimalTransport(), (1, 6, 6), 4, 2, source)
    return field, Stein(ImageHead.for_field(field, source))


KINDS = {"vectors": vectors, "images": images}
WAYS = {
    "flow, distilled": lambda field, head: FlowODE(field, head, RK4(4)),
    "flow, exact": lambda field, head: FlowODE(field, Exact(), RK4(2)),
    "flow, Hutchinson": lambda field, head: FlowODE(field, Hutchinson(2), RK4(2)),
    "flow, Hutch++": lambda field, head: FlowODE(field, HutchPlusPlus(3), RK4(2)),
    "constant curve": lambda field, head: SteinPath(field, head, RK4(4), Constant(), 8),
    "coarse curve": lambda field, head: SteinPath(field, head, RK4(4), Coarse(2), 8),
}


def made(kind, way):
    field, head = KINDS[kind]()
    with torch.no_grad():
        for weight in [*field.parameters(), *head.parameters()]:
            weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))
    likelihood = WAYS[way](field, head).requires_grad_(False)
    x = torch.randn(20, *field.event_shape, generator=torch.Generator().manual_seed(1))
    return likelihood, x.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_waits_for_a_density_or_its_gradient(kind, way):
    likelihood, x = made(kind, way)
    with NoWaits():
        likelihood.log_prob(x)
        point = x.clone().requires_grad_()
        torch.autograd.grad(likelihood.log_prob(point).sum(), point)


def set_by_mask(x):
    x[x > 0] = 1.0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        set_by_mask,
        lambda x: x.nonzero(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
    ],
)
def test_the_watch_is_no_blind_one(wait):
    with pytest.raises(RuntimeError, match="makes the host wait"), NoWaits():
        wait(torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [ODE(4), EulerMaruyama(4)])
def test_nothing_waits_for_draws(kind, sampler):
    likelihood, x = made(kind, "flow, distilled")
    with NoWaits():
        likelihood.transport().push(x)
        sampler.draw(likelihood.field, x, torch.Generator().manual_seed(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGPU:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("way", WAYS)
    def test_densities_agree(self, kind, way):
        likelihood, x = made(kind, way)
        wanted = likelihood.log_prob(x)
        found = likelihood.to("cuda").log_prob(x.cuda())
        torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_cuda_itself_sees_no_wait(self, kind):
        likelihood, x = made(kind, "flow, distilled")
        likelihood, x = likelihood.to("cuda"), x.cuda()
        likelihood.log_prob(x)  # kernels are loaded by the first call
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            likelihood.log_prob(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_images_are_learned_there(self, tmp_path):
        source = torch.Generator().manual_seed(0)
        x = torch.rand(200, 1, 8, 8, generator=source)
        options = {"network": "unet", "budget": "tiny", "progress": False}
        prior = pyro_stad.fit(x, device="cuda", **options)
        value = prior.sample((20,))
        assert value.device.type == "cuda"
        prior.save(tmp_path / "prior.safetensors")
        here = pyro_stad.load(tmp_path / "prior.safetensors")
        torch.testing.assert_close(
            prior.log_prob(value).cpu(), here.log_prob(value.cpu()), rtol=0, atol=1e-3
        )
