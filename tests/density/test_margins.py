"""Priors with margins: their density is whole, and they go into files and come back."""

import copy
import json
import math
import pickle
import struct

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.reparam import TransformReparam
from safetensors.torch import load_file
from torch.distributions import StudentT, VonMises

import pyro_stad
from pyro_stad.errors import CheckpointError
from pyro_stad.files.parts import take_margins
from tests.files.test_files import rewrite


@pytest.fixture(scope="module")
def fitted():
    """A tiny fit of a share, a heavy tail and an angle."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    share = torch.rand(1500)
    samples = {
        "share": share,
        "heavy": StudentT(2.0).sample((1500,)) + share,
        "phi": VonMises(1.0, 0.8).sample((1500,)),
    }
    return pyro_stad.fit(
        samples,
        bounds={"share": (0, 1), "phi": "periodic"},
        budget="tiny",
        progress=False,
        dtype=torch.float64,
    )


def test_mass_is_one(fitted):
    """On a grid: even in the share and the angle, and in the arc tangent of the heavy one."""
    share = (torch.arange(60) + 0.5) / 60
    turn = (torch.arange(120) + 0.5) / 120 * math.pi - 0.5 * math.pi
    phi = torch.arange(36) * math.pi / 18
    point = torch.cartesian_prod(share, turn.tan(), phi)
    jacobian = torch.cartesian_prod(share, turn.cos().square(), phi)[:, 1]
    cell = (1 / 60) * (math.pi / 120) * (math.pi / 18)
    with torch.no_grad():
        mass = (fitted.log_prob(point).exp() / jacobian).sum() * cell
    # The calibration knows the mass to 0.1 percent; the grid cuts the edges of the share.
    assert abs(mass - 1) < 0.01


def test_only_those_that_need_one_have_a_map(fitted):
    assert "heavy" in [fitted.names[i] for i in fitted.margins.columns]
    assert fitted.names[2] == "phi"
    assert 2 not in fitted.margins.columns
    assert "heavy, tails u^-" in fitted.summary()


def test_round_trip_and_images(fitted):
    value = fitted.sample((50,))
    white = fitted.whiten(value)
    back = white
    for transform in fitted.transforms[1:]:
        back = transform(back)
    torch.testing.assert_close(back, value)
    assert fitted.surrogate_error(value).isfinite().all()
    assert (fitted.tail_probability(value) > 0).all()
    unrolled = fitted.unroll(value, torch.Generator().manual_seed(0))
    assert (unrolled[:, 1] != white[:, 1]).sum() < 50


def test_gradients(fitted):
    value = fitted.sample((4,)).requires_grad_()
    # Away from the seam, where images come and go without a jump but not without rounding.
    assert torch.autograd.gradcheck(fitted.log_prob, value, atol=1e-4)
    apart = copy.deepcopy(fitted)
    one = torch.func.vmap(torch.func.grad(apart.log_prob))(value.detach())
    torch.testing.assert_close(one, torch.autograd.grad(fitted.log_prob(value).sum(), value)[0])


def test_noise_leads_to_the_sample_inside_a_model(fitted):
    def model():
        return pyro.sample("theta", fitted)

    reparametrised = pyro.poutine.reparam(model, {"theta": TransformReparam()})
    trace = pyro.poutine.trace(reparametrised).get_trace()
    value = trace.nodes["theta"]["value"]
    assert torch.isfinite(fitted.log_prob(value))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(fitted, way):
    value = fitted.sample((5,))
    assert torch.equal(way(fitted).log_prob(value), fitted.log_prob(value))
    assert torch.equal(fitted.expand([2]).log_prob(value[:1])[0], fitted.log_prob(value[0]))
    other = fitted.with_likelihood(fitted.likelihood)
    assert torch.equal(other.log_prob(value), fitted.log_prob(value))


def test_single_precision(fitted):
    value = fitted.sample((100,))
    single = fitted.to(torch.float32)
    difference = single.log_prob(value.float()).double() - fitted.log_prob(value)
    assert difference.abs().max() < 1e-3


@pytest.fixture
def saved(fitted, tmp_path):
    path = tmp_path / "prior.safetensors"
    fitted.save(path)
    return path


def test_files(fitted, saved):
    loaded = pyro_stad.load(saved)
    value = fitted.sample((20,))
    assert torch.equal(loaded.log_prob(value), fitted.log_prob(value))
    assert loaded.summary() == fitted.summary()


def test_files_without_margins(tmp_path):
    """Are what they were before there were any."""
    path = tmp_path / "prior.safetensors"
    normal = pyro_stad.fit(torch.randn(400, 2), budget="tiny", progress=False)
    assert normal.margins is None
    normal.save(path)
    assert not [name for name in load_file(path) if name.startswith("margins")]
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        assert "margins" not in json.dumps(json.loads(file.read(length)))
    assert pyro_stad.load(path).margins is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["margins.coefficients"].neg_(), "must increase"),
        (lambda t: t["margins.coefficients"][0, 5].fill_(torch.nan), "finite|increase"),
        (lambda t: t["margins.scale"].neg_(), "must be positive"),
        (lambda t: t.update({"margins.step": t["margins.step"].float()}), "float32"),
        (lambda t: t.pop("margins.loc"), "margins.loc"),
        (lambda t: t.update({"margins.more": t["margins.loc"]}), "unexpected"),
    ],
)
def test_forged_files_are_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(CheckpointError, match=message):
        pyro_stad.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": [0, 7]}, {"columns": [1, 0]}, {"columns": [-1, 0]}, {"columns": "01"},
        {"tails": [["a", "b"]]}, {"tails": [["a"], ["b"]]}, {"tails": [["a" * 999, "b"]] * 2},
        {"tails": None},
    ],
)  # fmt: skip
def test_forged_descriptions_are_refused(fitted, change):
    described = {"columns": [0, 1], "tails": [["a", "b"], ["c", "d"]], **change}
    splines = pyro_stad.data.fit_margins(
        torch.stack([StudentT(2.0).sample((500,)) for _ in range(2)], 1), None, None, 500.0,
        torch.Generator().manual_seed(0),
    ).splines  # fmt: skip
    tensors = {f"margins.{name}": part for name, part in splines.tensors().items()}
    assert tensors["margins.loc"].shape == (2,)
    with pytest.raises((ValueError, TypeError)):
        take_margins({"margins": described}, tensors, 3, torch.float64)


def test_a_bulk_that_a_far_bound_hides_is_refused():
    """Nearly all of it within ten of a million: steps of single precision are one wide there."""
    x = np.exp(3 * np.random.default_rng(0).normal(size=(400, 1)))
    with pytest.raises(ValueError, match="pass dtype=torch.float64"):
        pyro_stad.fit(x, bounds=[(None, 1e6)], budget="tiny", progress=False)
