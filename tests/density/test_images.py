"""Priors of images: from whole numbers to bits, files, a fit that goes on, and slips."""

import math

import numpy as np
import pyro
import pytest
import torch

import pyro_stad
from pyro_stad.data.images import (
    Continuous,
    ImageBatches,
    as_images,
    bits_per_dimension,
    dequantise,
    image_whitening,
    warn_of_levels,
)
from pyro_stad.data.standardise import Rescale
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.fields import ImageField
from pyro_stad.fitting.divergence import _chunk
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

OPTIONS = {"network": "unet", "budget": "tiny", "progress": False}


def pictures(count=150, seed=0):
    """Bright on one side, of a strength that differs, ``(count, 6, 6)`` in grey values."""
    source = torch.Generator().manual_seed(seed)
    strength = torch.rand(count, 1, 1, generator=source, dtype=torch.float64)
    ramp = torch.linspace(0, 1, 6)[None, None]
    noise = 0.05 * torch.randn(count, 6, 6, generator=source, dtype=torch.float64)
    return (255 * (0.2 + 0.6 * strength * ramp + noise).clamp(0, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def prior():
    return pyro_stad.fit(pictures(), **OPTIONS)


def test_a_prior_of_images_samples_and_has_a_density(prior):
    assert prior.event_shape == (1, 6, 6)
    x = prior.sample((3, 2))
    assert x.shape == (3, 2, 1, 6, 6)
    log_p = prior.log_prob(x)
    assert log_p.shape == (3, 2)
    torch.testing.assert_close(prior.log_prob(x[1, 0]), log_p[1, 0], rtol=1e-4, atol=1e-3)
    # With so little training the divergence is small, and known: by the exact trace.
    torch.testing.assert_close(prior.exact().log_prob(x), log_p, rtol=0, atol=1.0)
    value = x[0, 0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(value), value)
    assert torch.isfinite(slope).all()
    assert prior.calibration.audit.points == 15
    assert [stage.name for stage in prior.report.stages] == ["teacher", "stein", "polish"]
    assert "ImageHead" in repr(prior)


def test_it_is_stored_and_comes_back(prior, tmp_path):
    prior.save(tmp_path / "images.safetensors")
    again = pyro_stad.load(tmp_path / "images.safetensors")
    x = prior.sample((4,))
    assert torch.equal(again.log_prob(x), prior.log_prob(x))
    assert again.event_shape == prior.event_shape


def test_the_same_seed_gives_the_same_prior_also_after_a_kill(prior, tmp_path, monkeypatch):
    images, package = pictures(), pytest.importorskip("pyro_stad.fitting.divergence")
    x = prior.sample((4,))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(package, "distil", killed)
        with pytest.raises(KeyboardInterrupt):
            pyro_stad.fit(images, resume=tmp_path, **OPTIONS)
    assert (tmp_path / "teacher.safetensors").exists()
    again = pyro_stad.fit(images, resume=tmp_path, **OPTIONS)
    assert torch.equal(again.log_prob(x), prior.log_prob(x))
    other = pyro_stad.fit(images, seed=1, **OPTIONS)
    assert not torch.equal(other.log_prob(x), prior.log_prob(x))


def test_bits_are_those_of_the_density():
    """Of a normal law in closed form: an untrained network, whose flow does nothing."""
    field = ImageField(OptimalTransport(), (1, 4, 4), 4, 2, torch.Generator()).double()
    loc, scale = torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.25)
    normal = FlowPrior(FlowODE(field, Exact(), RK4(2)), loc, scale)
    images = torch.arange(80, dtype=torch.uint8).reshape(5, 4, 4)
    found = bits_per_dimension(normal, images, seed=3)
    x = dequantise(images[:, None], torch.Generator().manual_seed(3), torch.float64)
    log_p = torch.distributions.Normal(0.5, 0.25).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(found, 8 - log_p / (16 * math.log(2)), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="whole numbers of dtype uint8"):
        bits_per_dimension(normal, x)


def test_whole_numbers_are_made_continuous():
    images = as_images(np.full((100, 3, 3), 7, dtype=np.uint8))
    x = dequantise(images, torch.Generator().manual_seed(0), torch.float64)
    assert x.shape == (100, 1, 3, 3)
    assert ((256 * x).floor() == 7).all()
    assert len(x.unique()) == x.numel()
    smooth = torch.rand(100, 2, 3, 3)
    assert dequantise(as_images(smooth), torch.Generator(), torch.float32).dtype == torch.float32
    # Small ones with many channels, as an encoder makes them, are not taken for channels last.
    assert as_images(torch.rand(100, 8, 4, 4)).shape == (100, 8, 4, 4)


def test_slips_have_messages():
    images = pictures()
    for wrong, error, message in (
        (images.long(), TypeError, "must be images of dtype uint8 or of floating-point"),
        (images[None, None], ValueError, r"of shape \(N, H, W\) or \(N, C, H, W\)"),
        (
            torch.zeros(120, 8, 8, 3),
            ValueError,
            r"looks like channels last: use permute\(0, 3, 1, 2\)",
        ),
        (images[:50], ValueError, "at least 100 images; got 50"),
        (torch.full((120, 4, 4), torch.nan), ValueError, "must be finite"),
        (torch.zeros(120, 4, 4), ValueError, r"pixel \(0, 0, 0\) .* is the same in all images"),
    ):
        with pytest.raises(error, match=message):
            pyro_stad.fit(wrong, **OPTIONS)
    for option in ({"bounds": (0, 1)}, {"names": ["a"]}, {"context": torch.zeros(150, 1)}):
        with pytest.raises(ValueError, match=r"is not for images \(network='unet'\)"):
            pyro_stad.fit(images, **option, **OPTIONS)
    with pytest.raises(ValueError, match="`path` of images must be a Gaussian path"):
        pyro_stad.fit(images, path="cnf", **OPTIONS)
    with pytest.raises(ValueError, match="`network` must be one of"):
        pyro_stad.fit(images, **{**OPTIONS, "network": "transformer"})


def test_augmented_images_are_what_is_learned():
    """Of a function that adds noise: the law is wider by just that, at every draw another one."""
    images, seen = torch.rand(200, 1, 4, 4, dtype=torch.float32), []

    def noisy(x, generator):
        seen.append(x.shape)
        return x + 0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    prior = pyro_stad.fit(images, augment=noisy, **OPTIONS)
    wide = prior.coordinates.transforms[0].scale_tril
    torch.testing.assert_close(
        wide.mean().double(), torch.tensor(math.sqrt(1.01 * (1 / 12 + 0.25))), rtol=0.05, atol=0
    )
    # A few for the fingerprint of the fit, and then all, for the whitening.
    assert seen[:2] == [(16, 1, 4, 4), (200, 1, 4, 4)]
    assert len(seen) > 60
    for wrong, error, message in (
        (lambda x, g: x[:, :, :2], ValueError, r"must return images of shape \(16, 1, 4, 4\)"),
        (lambda x, g: x * torch.nan, ValueError, "`augment` must return finite numbers"),
        ("flip", TypeError, r"`augment` must be a function \(images, generator\); got 'flip'"),
    ):
        with pytest.raises(error, match=message):
            pyro_stad.fit(images, augment=wrong, **OPTIONS)
    with pytest.raises(ValueError, match="`augment` is for images"):
        pyro_stad.fit(torch.randn(200, 2), augment=noisy)


def test_the_noise_between_whole_numbers_is_another_one_each_time():
    whole = as_images(np.full((100, 3, 3), 7, dtype=np.uint8))
    source = torch.Generator().manual_seed(0)
    whiten = Rescale(torch.zeros(1, 3, 3), torch.full((1, 3, 3), 1 / 256))
    batches = ImageBatches(whole, Continuous(None, torch.float64), whiten, source)
    drawn = torch.cat([batches.draw(500, source), batches.draw(500, source), batches.values])
    assert (drawn.floor() == 7).all()
    assert len(drawn.unique()) == drawn.numel()


def test_a_margin_that_hardly_varies_is_not_hundreds_of_deviations_away():
    values = torch.rand(500, 1, 4, 4)
    values[:, :, 0] /= 1000
    scale = image_whitening(values).scale_tril
    mean = values.var(0, correction=0).mean()
    assert (scale >= 0.1 * mean.sqrt()).all()
    torch.testing.assert_close(
        scale[:, 1:].square(), values[:, :, 1:].var(0, correction=0) + 0.01 * mean
    )


def test_images_are_worked_on_a_few_at_a_time(prior):
    """So few that the maps of all calls of the network fit into two gigabytes."""
    flow = prior.likelihood
    kept = 4 * flow.field.shown * flow.solver.sequential_calls()
    assert flow.chunk_size % 16 == 0
    assert flow.chunk_size == 2048 or flow.chunk_size * kept <= 2**31
    wide = ImageField(OptimalTransport(), (3, 64, 64), 32, 3, torch.Generator())
    assert _chunk(wide, RK4(16)) == 16


def test_the_numbers_of_the_maps_are_counted():
    for shape, levels in (((1, 8, 8), 3), ((2, 7, 5), 2), ((1, 9, 9), 1)):
        field = ImageField(OptimalTransport(), shape, 6, levels, torch.Generator()).double()
        maps = field.velocity_and_maps(torch.tensor(0.5), torch.zeros(1, *shape))[1]
        assert field.shown == sum(shown.numel() for shown in maps)


def test_it_is_calibrated_anew_by_few_images_and_a_sampled_trace(prior):
    x = pictures(60, seed=9).double()[:, None] / 256
    again = prior.calibrate(x.float(), tolerance=5.0, products=9)
    assert again.calibration.audit.points == 60
    assert again.calibration.audit.noise > 0
    assert again.calibration.tolerance == 5.0
    exact = prior.calibrate(x[:20].float(), tolerance=5.0).calibration
    assert exact.audit.noise == 0
    assert "sampled" not in exact.text()
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="`products` must be an integer"):
            prior.calibrate(x.float(), products=wrong)


def test_a_generator_of_one_step_is_a_copy_of_the_network(prior, tmp_path):
    one = pyro_stad.distil_one_step(prior, steps=30, pairs=300, batch_size=32, progress=False)
    assert isinstance(one.transport.field, ImageField)
    assert one.transport.field is not prior.likelihood.field
    x = one.sample((3,))
    assert x.shape == (3, 1, 6, 6)
    assert math.isfinite(one.distilled.distance)
    one.save(tmp_path / "one.safetensors")
    again = pyro_stad.load(tmp_path / "one.safetensors")
    z = torch.randn(4, 1, 6, 6, dtype=torch.float32)
    assert torch.equal(again.transport.push(z), one.transport.push(z))
    with pytest.raises(ValueError, match="`width` is not for images"):
        pyro_stad.distil_one_step(prior, width=8, progress=False)


@pytest.mark.filterwarnings("ignore::pyro_stad.AccuracyWarning")
def test_a_masked_image_is_filled_in(prior):
    """Half of an image is seen, nearly without noise: there draws agree, elsewhere they differ."""
    truth = prior.sample((1,))[0]

    def model(seen):
        image = pyro.sample("image", prior)
        law = pyro.distributions.Normal(image[..., 0, :, :3], 0.05).to_event(2)
        pyro.sample("pixels", law, obs=seen)

    found = pyro_stad.sample_posterior(
        model, truth[0, :, :3], form="noise", num_chains=8, num_samples=20, progress=False
    )
    draws = found.draws["image"].reshape(-1, 6, 6)
    off = (draws - truth[0]).abs().mean(0)
    assert off[:, :3].mean() < 0.1
    assert draws[:, :, 3:].std(0).mean() > 2 * draws[:, :, :3].std(0).mean()


def test_bits_are_of_images_of_the_right_shape(prior):
    images = torch.from_numpy(np.asarray(pictures(20)))
    assert pyro_stad.bits_per_dimension(prior, images).shape == (20,)
    for wrong, message in (
        (images[:, None].expand(20, 3, 6, 6), r"shape \(N, 1, 6, 6\), .* got \(20, 3, 6, 6\)"),
        (images[..., None], r"got \(20, 6, 6, 1\)"),
        (images[0], r"got \(6, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pyro_stad.bits_per_dimension(prior, wrong)
    with pytest.raises(ValueError, match="`chunk`"):
        pyro_stad.bits_per_dimension(prior, images, chunk=0)


def test_images_come_as_they_are():
    """Read-only, backwards, in half precision, or still part of a graph."""
    whole = np.asarray(pictures(120))
    frozen = np.frombuffer(whole.tobytes(), np.uint8).reshape(whole.shape)
    assert torch.equal(as_images(frozen), as_images(whole))
    assert torch.equal(as_images(whole[::-1]), as_images(whole).flip(0))
    half = torch.rand(120, 1, 4, 4).bfloat16()
    assert as_images(half).dtype == torch.float32
    assert not as_images(torch.rand(120, 1, 4, 4, requires_grad=True)).requires_grad
    with pytest.raises(TypeError, match="must be images of dtype uint8 .* got object"):
        as_images(whole.astype(object))


def test_grey_values_as_floats_are_told_from_what_has_a_density():
    grey = torch.randint(0, 256, (200, 1, 6, 6)).float() / 255
    with pytest.warns(pyro_stad.SampleWarning, match="take 256 values, .* dtype uint8"):
        warn_of_levels(grey, 1)
    # Neither whole numbers, which get noise, nor what has a density.
    warn_of_levels(torch.rand(200, 1, 6, 6), 1)
    warn_of_levels((255 * grey).to(torch.uint8), 1)


def test_what_augments_in_place_leaves_the_images_alone_and_is_known_when_a_fit_goes_on(tmp_path):
    images = torch.rand(150, 1, 4, 4).float()
    before = images.clone()

    def brighter(by):
        return lambda x, generator: x.add_(by)

    options = {**OPTIONS, "resume": tmp_path}
    one = pyro_stad.fit(images, augment=brighter(0.0), **options)
    assert torch.equal(images, before)
    again = pyro_stad.fit(images, augment=brighter(0.0), **options)
    x = one.sample((3,))
    assert torch.equal(again.log_prob(x), one.log_prob(x))
    with pytest.raises(ValueError, match="belongs to a run with other settings or data"):
        pyro_stad.fit(images, augment=brighter(1.0), **options)
    with pytest.raises(ValueError, match="`members` is not for images"):
        pyro_stad.fit(images, **{**OPTIONS, "members": 9})


def test_images_in_the_wrong_place_are_told_where_they_belong(prior):
    images = torch.from_numpy(np.asarray(pictures(150)))
    with pytest.raises(TypeError, match="must be floating-point.* use bits_per_dimension"):
        prior.log_prob(images[:3, None])
    for given in (images, images[:, None]):
        with pytest.raises(ValueError, match=r"must have shape \(N, D\).* network='unet'"):
            pyro_stad.fit(given.float(), budget="tiny", progress=False)
