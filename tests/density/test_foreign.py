"""A prior of a network of somebody else: its divergence distilled, and files without it."""

import copy
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pyro_stad
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact, SeparateImageNetwork, SeparateNetwork
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4

SHAPE = (2, 5, 4)
OPTIONS = {"budget": "tiny", "progress": False}


class Theirs(nn.Module):
    """The noise of a normal law with a covariance between pixels, on the cosine path.

    Of :math:`x = a x_0 + s e` with :math:`x_0 \\sim N(0, C)`, the mean of e is
    :math:`s\\,(a^2 C + s^2)^{-1} x`; the divergence of the flow is known for it.
    """

    def __init__(self, shape, dtype=torch.float32):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        size = math.prod(shape)
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64))
        scales = torch.linspace(0.5, 1.5, size, dtype=torch.float64)
        self.basis = nn.Parameter(basis.to(dtype))
        self.register_buffer("variances", scales.square().to(dtype))

    def forward(self, x, t):
        """Takes the image first, as many networks do."""
        a, s = torch.cos(math.pi * t / 2)[:, None], torch.sin(math.pi * t / 2)[:, None]
        rows = x.flatten(1) @ self.basis
        rows = rows * s / (a.square() * self.variances + s.square())
        return (rows @ self.basis.mT).reshape(x.shape)

    def log_prob(self, x):
        """Return the log-density of the data."""
        covariance = self.basis @ self.variances.diag() @ self.basis.mT
        law = torch.distributions.MultivariateNormal(x.new_zeros(len(covariance)), covariance)
        return law.log_prob(x.flatten(1))

    def sample(self, count, source):
        noise = torch.randn(count, len(self.basis), generator=source, dtype=self.basis.dtype)
        return (noise * self.variances.sqrt() @ self.basis.mT).detach()


def wrapped(net, shape):
    return pyro_stad.from_noise(lambda t, x: net(x, t), path="cosine", features=shape)


class AsModule(nn.Module):
    """The adapter as a module: what moves and counts its weights sees them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, x):
        return self.net(x, t)


@pytest.fixture(scope="module")
def theirs():
    net = Theirs(SHAPE)
    field = pyro_stad.from_noise(AsModule(net), path="cosine", features=SHAPE)
    samples = net.sample(400, torch.Generator().manual_seed(1)).reshape(-1, *SHAPE)
    return net, field, samples


@pytest.fixture(scope="module")
def prior(theirs):
    _, field, samples = theirs
    return pyro_stad.distil_divergence(field, samples, **OPTIONS)


def test_the_density_is_that_of_the_network(theirs, prior):
    net, field, samples = theirs
    assert isinstance(prior, FlowPrior)
    assert prior.event_shape == SHAPE
    assert isinstance(prior.likelihood.divergence.network, SeparateImageNetwork)
    exact = FlowODE.of(prior.likelihood, divergence=Exact(), solver=RK4(32))
    x = samples[:50]
    # Their own law, blurred by what is left of the noise, a hundredth of a deviation.
    torch.testing.assert_close(exact.log_prob(x), net.log_prob(x), rtol=0, atol=0.05)
    error = prior.log_prob(x) - net.log_prob(x)
    # The divergence of a normal law is the same everywhere: the clock alone can learn it.
    assert error.std() < 0.3
    assert prior.calibration.audit.points == 32
    # Its network is as it was: trained by nobody, and free to be.
    assert all(weight.requires_grad for weight in net.parameters())
    assert torch.equal(net.basis, Theirs(SHAPE).basis)


def test_a_file_holds_all_but_the_network(theirs, prior, tmp_path):
    net, field, samples = theirs
    path = tmp_path / "head.safetensors"
    prior.save(path)
    again = pyro_stad.load(path, field=field)
    assert torch.equal(again.log_prob(samples[:5]), prior.log_prob(samples[:5]))
    assert again.calibration == prior.calibration
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        assert not [name for name in stored.keys() if "function" in name]  # noqa: SIM118
    assert net.basis.dtype == torch.float32


def test_another_network_is_refused(theirs, prior, tmp_path):
    net, field, _ = theirs
    path = tmp_path / "head.safetensors"
    prior.save(path)
    with pytest.raises(ValueError, match=r"load\(\.\.\., field=f\) with the field that from_noise"):
        pyro_stad.load(path)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.variances.mul_(1.3)
    with pytest.raises(pyro_stad.CheckpointError, match="another network"):
        pyro_stad.load(path, field=wrapped(other, SHAPE))
    score = pyro_stad.from_score(AsModule(net), path="cosine", features=SHAPE)
    with pytest.raises(pyro_stad.CheckpointError, match="must be the one that the file says"):
        pyro_stad.load(path, field=score)
    own = tmp_path / "own.safetensors"
    pyro_stad.fit(torch.randn(200, 2), budget="tiny", progress=False, members=0).save(own)
    with pytest.raises(ValueError, match="`field` is not for .* which holds its own network"):
        pyro_stad.load(own, field=field)


def test_vectors_have_names_and_another_network():
    net = Theirs((3,))
    samples = net.sample(400, torch.Generator().manual_seed(1))
    prior = pyro_stad.distil_divergence(wrapped(net, 3), samples, **OPTIONS)
    assert prior.names == ("x[0]", "x[1]", "x[2]")
    assert isinstance(prior.likelihood.divergence.network, SeparateNetwork)
    error = prior.log_prob(samples[:50]) - net.log_prob(samples[:50])
    assert error.std() < 0.3


def test_a_run_that_was_killed_goes_on(theirs, prior, tmp_path, monkeypatch):
    _, field, samples = theirs
    package = pytest.importorskip("pyro_stad.fitting.divergence")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(package, "choose_steps", killed)
        with pytest.raises(KeyboardInterrupt):
            pyro_stad.distil_divergence(field, samples, resume=tmp_path, **OPTIONS)
    assert (tmp_path / "polish.safetensors").exists()
    again = pyro_stad.distil_divergence(field, samples, resume=tmp_path, **OPTIONS)
    assert torch.equal(again.log_prob(samples[:5]), prior.log_prob(samples[:5]))


def test_slips_have_messages(theirs):
    net, field, samples = theirs
    contextual = pyro_stad.from_noise(
        lambda t, x, c: net(x, t), path="cosine", features=SHAPE, context_shape=2
    )
    for wrong, error, message in (
        ((net, samples), TypeError, "`field` must be what from_velocity, from_score"),
        ((contextual, samples), ValueError, "must not depend on a context"),
        ((field, samples.numpy()), TypeError, "must be a tensor of floating-point numbers"),
        ((field, samples[:50]), ValueError, r"shape \(N, 2, 5, 4\) with N of at least 100"),
        ((field, samples[:, :1]), ValueError, r"shape \(N, 2, 5, 4\)"),
        ((field, samples * torch.nan), ValueError, "must be finite"),
    ):
        with pytest.raises(error, match=message):
            pyro_stad.distil_divergence(*wrong, **OPTIONS)


def test_the_adapter_of_the_page_gives_the_network_its_own_steps():
    """That of ``docs/images.md``, of a network with the signature of diffusers' UNet2DModel."""
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    (code,) = [
        part for part in re.findall(r"```python\n(.*?)```", page, re.S) if "class From" in part
    ]
    names = {}
    exec(code, names)  # noqa: S102
    seen = {}

    class UNet2DModel(nn.Module):
        def forward(self, sample, timestep, return_dict=True):
            seen["timestep"] = timestep
            return SimpleNamespace(sample=0.5 * sample)

    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    net = names["FromDiffusers"](UNet2DModel(), alphas.float())
    field = pyro_stad.from_noise(net, path="vp", features=(3, 8, 8))
    x = torch.randn(5, 3, 8, 8).float()
    t = torch.tensor([0.01, 0.2, 0.5, 0.7, 0.99]).float()
    torch.testing.assert_close(field.noise(t, x), 0.5 * x)
    # A step is where the image has as much noise as on the path.
    a, s, *_ = field.path.coefficients(t.double())
    step = seen["timestep"].double()
    low, part = step.long(), step - step.long()
    noise = 0.5 * (1 / alphas - 1).log()
    found = torch.lerp(noise[low], noise[(low + 1).clamp_max(999)], part)
    torch.testing.assert_close(found, (s / a).log(), rtol=0, atol=1e-3)
    assert ((step + 1) / 1000 - t).abs().max() < 0.01


def test_a_run_is_of_one_network(theirs, tmp_path):
    """What was distilled of another network is not taken for this one's."""
    net, field, samples = theirs
    one = pyro_stad.distil_divergence(field, samples, resume=tmp_path, **OPTIONS)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.variances.mul_(4.0)
    with pytest.raises(ValueError, match="belongs to a run with other settings or data"):
        pyro_stad.distil_divergence(wrapped(other, SHAPE), samples, resume=tmp_path, **OPTIONS)
    # And of this one it is.
    again = pyro_stad.distil_divergence(wrapped(net, SHAPE), samples, resume=tmp_path, **OPTIONS)
    assert torch.equal(again.log_prob(samples[:3]), one.log_prob(samples[:3]))


def test_networks_that_show_no_weights_or_are_not_at_rest(theirs, tmp_path):
    _, _, samples = theirs
    double = Theirs(SHAPE, torch.float64)
    prior = pyro_stad.distil_divergence(wrapped(double, SHAPE), samples.double(), **OPTIONS)
    prior.save(tmp_path / "double.safetensors")
    again = pyro_stad.load(tmp_path / "double.safetensors", field=wrapped(double, SHAPE))
    x = samples[:3].double()
    assert torch.equal(again.log_prob(x), prior.log_prob(x))
    lost = pyro_stad.from_noise(lambda t, x: x * torch.nan, path="cosine", features=SHAPE)
    with pytest.raises(pyro_stad.CheckpointError, match="another network"):
        pyro_stad.load(tmp_path / "double.safetensors", field=lost)

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float32))

        def forward(self, t, x):
            return self.scale * self.drop(x)

    field = pyro_stad.from_noise(Random(), path="cosine", features=SHAPE)
    with pytest.raises(ValueError, match=r"Dropout in training mode.* Call \.eval\(\) on it"):
        pyro_stad.distil_divergence(field, samples, **OPTIONS)
    with pytest.raises(ValueError, match="of the network, torch.float32 on cpu"):
        pyro_stad.distil_divergence(
            pyro_stad.from_noise(Random().eval(), path="cosine", features=SHAPE),
            samples.double(), **OPTIONS,
        )  # fmt: skip
