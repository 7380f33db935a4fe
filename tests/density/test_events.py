"""A prior of events with a shape: samples, densities, expansions, files."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import TransformReparam

import pyro_stad
from pyro_stad.data import Batches, Layout, affine
from pyro_stad.divergence import Exact
from pyro_stad.fields import Gate, GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.learn import ConditionalCloud, PerturbedCloud, TeacherCloud, stein_residual
from pyro_stad.likelihood import Correction, DistilledDensity, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from tests.oracles import mixture_sample

SHAPE = (2, 2, 3)
SIZE = 12


def vectors():
    """Return the same law as a prior of vectors, with a diagonal whitening."""
    field = GaussianMixtureField(OptimalTransport(), *random_mixture(SIZE, components=2))
    loc, scale = centre()
    layout = Layout.of([f"x[{index}]" for index in range(SIZE)])
    tril = torch.diag(scale.flatten())
    return pyro_stad.FlowPrior(FlowODE(field, Exact(), RK4(8)), loc.flatten(), tril, layout)


def centre():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator) + 0.5


@pytest.fixture
def prior():
    parts = random_mixture(SIZE, components=2)
    field = GaussianMixtureField(OptimalTransport(), *parts, event_shape=SHAPE)
    return pyro_stad.FlowPrior(FlowODE(field, Exact(), RK4(8)), *centre())


def test_density_and_draws_are_those_of_the_flat_law(prior):
    assert prior.event_shape == SHAPE
    assert prior.batch_shape == ()
    flat = vectors()
    x = flat.sample((6,))
    found = prior.log_prob(x.reshape(6, *SHAPE))
    torch.testing.assert_close(found, flat.log_prob(x), rtol=0, atol=1e-9)
    pyro.set_rng_seed(1)
    drawn = prior.sample((4, 2))
    pyro.set_rng_seed(1)
    assert drawn.shape == (4, 2, *SHAPE)
    torch.testing.assert_close(drawn.flatten(2), flat.sample((4, 2)), rtol=0, atol=1e-9)
    assert prior.log_prob(drawn).shape == (4, 2)
    assert prior.log_prob(drawn[0, 0]).shape == ()
    assert prior.log_prob(drawn[:0]).shape == (0, 2)


def test_gradients_have_the_shape_of_events(prior):
    x = prior.sample((3,)).requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    assert slope.shape == x.shape
    y = x.detach().flatten(1).requires_grad_()
    (wanted,) = torch.autograd.grad(vectors().log_prob(y).sum(), y)
    torch.testing.assert_close(slope.flatten(1), wanted, rtol=0, atol=1e-8)


def test_it_expands_stands_in_plates_and_models(prior):
    wide = prior.expand((3, 2))
    assert (wide.batch_shape, wide.event_shape) == ((3, 2), SHAPE)
    assert wide.sample().shape == (3, 2, *SHAPE)
    assert wide.log_prob(prior.sample()).shape == (3, 2)

    def model():
        with pyro.plate("images", 5):
            return pyro.sample("x", prior)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (5, *SHAPE)
    assert trace.nodes["x"]["log_prob"].shape == (5,)


def test_what_has_no_density_gets_none(prior):
    x = prior.sample((3,))
    x[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"nan at index \(1, 0, 0, 0\); 1 points are affected"):
        prior.log_prob(x)
    loose = pyro_stad.FlowPrior(prior.likelihood, *centre(), validate_args=False)
    found = loose.log_prob(x)
    assert found[1] == -torch.inf
    assert torch.isfinite(found[[0, 2]]).all()
    with pytest.raises(ValueError, match=r"must have shape \(..., 2, 2, 3\), the event shape"):
        prior.log_prob(torch.zeros(2, 3))


def test_alarms_know_events(prior):
    x = prior.sample((5,))
    assert (prior.tail_probability(x) > 1e-4).all()
    assert prior.tail_probability(x + 30).max() < 1e-6
    assert prior.density_level(x + 30).max() == 0
    assert prior.density_level(x).shape == (5,)


def test_files_and_copies_keep_it(prior, tmp_path):
    x = prior.sample((4,))
    prior.save(tmp_path / "events.safetensors")
    loaded = pyro_stad.load(tmp_path / "events.safetensors")
    assert loaded.event_shape == SHAPE
    torch.testing.assert_close(loaded.log_prob(x), prior.log_prob(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(copy.deepcopy(prior).log_prob(x), prior.log_prob(x))
    single = prior.to(torch.float32)
    torch.testing.assert_close(
        single.log_prob(x.float()).double(), prior.log_prob(x), rtol=0, atol=1e-2
    )
    assert "FlowPrior(D=(2, 2, 3)" in repr(loaded)
    assert "parameters" not in loaded.summary()


def test_other_ways_and_the_exact_twin(prior):
    x = prior.sample((4,))
    path = SteinPath(prior.likelihood.field, Exact(), RK4(4), nodes=64)
    other = prior.with_likelihood(path)
    torch.testing.assert_close(other.log_prob(x), prior.log_prob(x), rtol=0, atol=0.05)
    torch.testing.assert_close(other.exact().log_prob(x), prior.log_prob(x), rtol=0, atol=0.05)


def test_transformed_noise_is_taken_apart(prior):
    """TransformReparam splits it into noise and map, as every transformed distribution."""

    def model():
        return pyro.sample("x", prior)

    split = pyro.poutine.reparam(model, {"x": TransformReparam()})
    trace = pyro.poutine.trace(split).get_trace()
    assert trace.nodes["x_base"]["value"].shape == SHAPE
    assert trace.nodes["x"]["value"].shape == SHAPE


SCALES = {
    "scales": (SHAPE, lambda: torch.full(SHAPE, 2.0)),
    "one scale": (SHAPE, lambda: torch.tensor(2.0)),
    "a long vector": ((4,), lambda: torch.full((4,), 2.0)),
    "a factor": ((4,), lambda: 2 * torch.eye(4)),
}


@pytest.mark.parametrize("what", SCALES)
def test_whitenings_of_all_kinds(what):
    shape, scale = SCALES[what]
    loc = torch.randn(shape)
    whitening = affine(loc, scale())
    x = torch.randn(3, *shape)
    y = whitening(x)
    torch.testing.assert_close(y, loc + 2 * x)
    torch.testing.assert_close(whitening.inv(y), x)
    log_det = whitening.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(log_det, torch.full((3,), x[0].numel() * math.log(2.0)))
    torch.testing.assert_close(whitening.outer_slopes(x), x / 2)


BAD = {
    "layout": ({"layout": Layout.of(["a"])}, r"\(2, 2, 3\) can't have \['layout'\]"),
    "bounds": ({"bounds": ((0.0, 1.0),)}, r"can't have \['bounds'\]"),
    "scale": ({"scale": torch.ones(3)}, r"a scale must be a number"),
    "negative": ({"scale": -torch.ones(SHAPE)}, "scales must be positive"),
    "shape": ({"loc": torch.zeros(12), "scale": torch.eye(12)}, r"events of shape \(2, 2, 3\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_events_cannot_have_is_refused(what, prior):
    changes, message = BAD[what]
    loc, scale = centre()
    loc, scale = changes.pop("loc", loc), changes.pop("scale", scale)
    with pytest.raises(ValueError, match=message):
        pyro_stad.FlowPrior(prior.likelihood, loc, scale, **changes)


def test_vectors_need_names(prior):
    flat = vectors()
    with pytest.raises(ValueError, match="`layout` is missing"):
        pyro_stad.FlowPrior(flat.likelihood, torch.zeros(SIZE), torch.eye(SIZE))
    with pytest.raises(ValueError, match="have no names"):
        prior.unpack(prior.sample())


def test_long_vectors_are_scaled_number_by_number(monkeypatch, tmp_path):
    """Their covariance has too many numbers: a flow, its members and its files get along."""
    monkeypatch.setattr("pyro_stad.data.standardise._MOST_FULL", 3)
    x = mixture_sample(300, 4, seed=1) * torch.tensor([1.0, 10.0, 0.1, 1.0])
    prior = pyro_stad.fit(x, budget="tiny", members=2, progress=False)
    scale = prior.transforms[1].scale_tril
    # Of coordinates that were bent, a little different.
    torch.testing.assert_close(scale.double(), x.std(0, correction=0), rtol=0.05, atol=0)
    assert prior.learning_error(x[:3].float()).shape == (3,)
    prior.save(tmp_path / "long.safetensors")
    loaded = pyro_stad.load(tmp_path / "long.safetensors")
    value = x[:5].float()
    torch.testing.assert_close(loaded.log_prob(value), prior.log_prob(value))
    assert torch.isfinite(loaded.log_prob(loaded.sample((20,)))).all()


def test_it_is_calibrated_and_not_cut(prior):
    again = prior.calibrate(prior.sample((60,)), tolerance=0.5)
    assert again.event_shape == SHAPE
    assert again.calibration.audit.points == 60
    assert again.surrogate_error(prior.sample((3,))).shape == (3,)
    with pytest.raises(ValueError, match="a region is one of named variables"):
        prior.truncate(lambda t: t["x"] > 0)


def test_evidence_and_arviz_take_events(prior):
    def model(y):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(3), obs=y)

    y = prior.sample()
    found = pyro_stad.log_evidence(
        model, y, particles=200, repeats=2, progress=False, allow_extrapolation=True
    )
    assert found.draws["x"].shape[1:] == SHAPE
    data = pyro_stad.to_arviz({"x": prior.sample((10,))}, model=model, args=(y,), prior=prior)
    assert data["posterior"]["x"].shape == (1, 10, *SHAPE)


def test_clouds_and_pairs_keep_the_shape_of_events(prior):
    field = prior.likelihood.field
    batches = Batches(torch.randn(30, *SHAPE))
    source = torch.Generator().manual_seed(0)
    for cloud in (
        ConditionalCloud(field, batches),
        TeacherCloud(field, batches),
        PerturbedCloud(field, batches, RK4(4), pool=8, generator=source),
    ):
        points = cloud.draw(40, source, frame=2)
        assert points.x.shape == points.score.shape
        assert points.x.shape[1:] == SHAPE
        mean, error = stein_residual(Exact(), field, points)
        assert torch.isfinite(mean + error)


def test_a_distilled_density_is_one_of_vectors(prior):
    parts = prior.likelihood.field, Exact(), RK4(4)
    with pytest.raises(ValueError, match="a distilled density is one of vectors"):
        DistilledDensity(*parts, Correction(SIZE, 8, 1), Gate(5.0, 6.0))
