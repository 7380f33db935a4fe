"""The bad-input contract: every row has a named outcome, and nothing is lost or silently wrong."""

import math
import os
import warnings

import pyro
import pytest
import torch

import pyro_stad
from pyro_stad.data import Layout
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.fields import AbstractField, Gate, PathField
from pyro_stad.likelihood import Correction, DistilledDensity, FlowODE, SteinPath
from pyro_stad.ode import RK4, Dopri5
from pyro_stad.paths import OptimalTransport
from tests.oracles import mixture_sample


def point(prior):
    return prior.sample((4,))


BAD_VALUES = {
    "numpy": (lambda x: x.numpy(), TypeError, "got ndarray. Convert it with torch.as_tensor"),
    "list": (lambda x: x.tolist(), TypeError, "got list"),
    "none": (lambda x: None, TypeError, "got NoneType"),
    "complex": (lambda x: x.to(torch.complex128), TypeError, "must be real"),
    "scalar": (lambda x: x[0, 0], ValueError, r"shape \(\.\.\., 2\).* got \(\)"),
    "too narrow": (lambda x: x[:, :1], ValueError, r"got \(4, 1\)"),
    "too wide": (lambda x: torch.cat([x, x], 1), ValueError, r"got \(4, 4\)"),
    "column": (lambda x: x[0][:, None], ValueError, r"got \(2, 1\)"),
    "meta device": (lambda x: x.to("meta"), ValueError, "is on meta, the prior on cpu"),
    "nan": (lambda x: x.index_fill(0, torch.tensor([2]), math.nan), ValueError, "nan at index"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_named(name, free_prior):
    change, error, message = BAD_VALUES[name]
    with pytest.raises(error, match=message):
        free_prior.log_prob(change(point(free_prior)))


def test_nan_names_the_first_index_and_the_coordinate(tiny_prior):
    value = tiny_prior.sample((3, 2))
    value[1, 0, 2] = math.nan
    value[2, 1, 0] = math.nan
    with pytest.raises(ValueError, match=r"nan at index \(1, 0\) in slope; 2 points"):
        tiny_prior.log_prob(value)


def unvalidated(prior):
    twin = prior.expand(())
    twin._validate_args = False
    return twin


BAD_ROWS = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "far below the bound": -1e30,
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_get_minus_infinity_a_zero_gradient_and_a_count(name, tiny_prior):
    """Silent failure 2: and their mates get exactly what they get alone."""
    prior = unvalidated(tiny_prior)
    good = prior.sample((3,))
    value = torch.cat([good, good[:1]])
    value[3, 0] = BAD_ROWS[name]
    value.requires_grad_()
    before = prior.counts.nonfinite
    result = prior.log_prob(value)
    (gradient,) = torch.autograd.grad(result[torch.isfinite(result)].sum(), value)
    assert result[3] == -math.inf
    assert torch.equal(result[:3], prior.log_prob(good))
    assert torch.isfinite(gradient).all()
    assert (gradient[3] == 0).all()
    assert (gradient[:3] != 0).any(-1).all()
    assert prior.counts.nonfinite == before + 1


def test_outside_the_bounds_is_minus_infinity_with_validation_on(tiny_prior):
    value = tiny_prior.sample((2,))
    value[0, 0] = -1.0
    result = tiny_prior.log_prob(value)
    assert result[0] == -math.inf
    assert torch.isfinite(result[1])


def test_failed_solves_are_counted_and_their_gradient_is_zero(free_prior):
    """A field that explodes beyond a radius: no exception, no NaN, no hang."""

    class Exploding(AbstractField):
        event_shape, t_min, t_max, data_scale = torch.Size([2]), 0.0, 1.0, 1.0

        def velocity(self, t, x):
            return x * torch.where(x.norm(dim=-1, keepdim=True) > 50, math.inf, 0.0)

    for solver in (RK4(4), Dopri5()):
        prior = free_prior.with_likelihood(FlowODE(Exploding(), Exact(), solver))
        value = torch.cat([free_prior.sample((2,)), torch.full((1, 2), 1e4)]).requires_grad_()
        result = prior.log_prob(value)
        (gradient,) = torch.autograd.grad(result[:1].sum(), value)
        assert result[2] == -math.inf
        assert torch.isfinite(gradient).all()
        assert prior.counts.failed >= 1
        if not solver.is_adaptive:
            assert torch.isfinite(result[:2]).all()
            assert prior.counts.failed == 1


CONVERTED = {
    "float32": torch.float32,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}


@pytest.mark.parametrize("name", CONVERTED)
def test_lesser_dtypes_are_promoted(name, free_prior):
    value = torch.tensor([[1, 0], [0, -1]])
    expected = free_prior.log_prob(value.double())
    result = free_prior.log_prob(value.to(CONVERTED[name]))
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-2)
    floating = CONVERTED[name].is_floating_point
    assert result.dtype == (CONVERTED[name] if floating else torch.float64)


def test_double_in_a_single_prior_warns_and_comes_back_double(free_prior):
    single, value = free_prior.to(torch.float32), point(free_prior)
    with pytest.warns(UserWarning, match="float64 and the prior float32"):
        result = single.log_prob(value)
    assert result.dtype == torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single.log_prob(value.float())


def test_empty_batches(free_prior):
    """Silent failure 7: stock torch raises here."""
    assert free_prior.sample((0,)).shape == (0, 2)
    empty = torch.zeros(0, 2, requires_grad=True)
    result = free_prior.log_prob(empty)
    assert result.shape == (0,)
    assert torch.autograd.grad(result.sum(), empty)[0].shape == (0, 2)
    assert free_prior.log_prob(torch.zeros(3, 0, 2)).shape == (3, 0)


def test_values_may_be_infinite_in_the_tail_probability(tiny_prior):
    assert tiny_prior.tail_probability(tiny_prior.sample((2, 3))).shape == (2, 3)
    with pytest.raises(ValueError, match="shape"):
        tiny_prior.tail_probability(torch.zeros(2))


def test_split_permutation_and_outlier_change_nothing(free_prior):
    value = free_prior.sample((41,))
    whole = free_prior.log_prob(value)
    parts = torch.cat([free_prior.log_prob(part) for part in value.split([1, 7, 33])])
    order = torch.randperm(41)
    outlier = torch.cat([value, torch.full((1, 2), 1e6)])
    assert torch.equal(parts, whole)
    assert torch.equal(free_prior.log_prob(value[order]), whole[order])
    assert torch.equal(free_prior.log_prob(outlier)[:-1], whole)


@pytest.mark.slow
def test_a_million_points_in_bounded_memory(free_prior):
    """Chunked: at most 2 GB more than before, and the same values as in small chunks."""
    import resource

    prior = free_prior.to(torch.float32)
    value = torch.randn(1_000_000, 2, dtype=torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        result = prior.log_prob(value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e6
    assert torch.equal(
        result[:3000], torch.cat([prior.log_prob(v) for v in value[:3000].split(999)])
    )


BAD_SETTINGS = {
    "path": ({"path": "cubic"}, ValueError, "`path` must be one of"),
    "path, wrong type": ({"path": 3}, TypeError, "`path` must be a name or a path object; got 3"),
    "seed": ({"seed": "a"}, TypeError, "`seed` must be an int; got 'a'"),
    "dtype": ({"dtype": torch.float16}, ValueError, "torch.float32 or torch.float64; got torch.fl"),
    "budget": ({"budget": "huge"}, ValueError, "`budget` must be one of"),
    "bounds": ({"bounds": {"z": (0, 1)}}, ValueError, "no parameter 'z'"),
    "outside bounds": ({"bounds": {"x[0]": (0, 1)}}, ValueError, "are not inside"),
    "weights": ({"weights": [1.0]}, ValueError, "`weights` must have shape"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_named_before_training(name):
    options, error, message = BAD_SETTINGS[name]
    with pytest.raises(error, match=message):
        pyro_stad.fit(mixture_sample(200, 2), progress=False, **options)


BAD_TRAINING = {
    "steps": ({"steps": 0}, "`steps` must be an integer of at least 1; got 0"),
    "batch_size": ({"steps": 1, "batch_size": 0}, "`batch_size` must be an integer of at least 1"),
    "validate_every": ({"steps": 1, "validate_every": 0}, "`validate_every`"),
    "learning_rate": (
        {"steps": 1, "learning_rate": math.nan},
        "`learning_rate` must be a positive number",
    ),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_training_settings_are_named(name):
    options, message = BAD_TRAINING[name]
    with pytest.raises(ValueError, match=message):
        pyro_stad.TrainingSettings(**options)


def test_extreme_scales_are_handled():
    values = mixture_sample(400, 2) * torch.tensor([1e9, 1e-9]) + torch.tensor([1e12, 0.0])
    prior = pyro_stad.fit(values, budget="tiny", progress=False, dtype=torch.float64)
    drawn = prior.sample((2000,))
    # Forty standard errors of a mean, and a fifth of a standard deviation: orders of magnitude.
    assert abs((drawn.mean(0) - values.mean(0)) / values.std(0)).max() < 0.3
    assert abs(drawn.std(0) / values.std(0) - 1).max() < 0.3


def test_weights_count_like_repeated_rows():
    values = torch.cat([mixture_sample(300, 2), 5 + mixture_sample(300, 2, seed=1)])
    weights = torch.cat([torch.ones(300), 1e-9 * torch.ones(300)])
    prior = pyro_stad.fit(values, weights=weights, budget="tiny", progress=False)
    assert prior.sample((500,)).mean(0).abs().max() < 0.5


def test_fit_is_reproducible_and_quiet():
    values = mixture_sample(300, 2)
    state = torch.get_rng_state()
    first, second = (pyro_stad.fit(values, budget="tiny", progress=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    value = torch.zeros(5, 2, dtype=torch.float32)
    assert torch.equal(first.log_prob(value), second.log_prob(value))
    other = pyro_stad.fit(values, budget="tiny", progress=False, seed=1)
    assert not torch.equal(first.log_prob(value), other.log_prob(value))


def test_progress_bar_can_be_turned_off(capsys):
    pyro_stad.fit(mixture_sample(200, 2), budget="tiny", progress=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    pyro_stad.fit(mixture_sample(200, 2), budget="tiny", progress=True)
    assert "stein" in capsys.readouterr().err


def test_one_dimension_works():
    values = torch.randn(400, 1).exp()
    prior = pyro_stad.fit(values, bounds=[(0, None)], budget="tiny", progress=False)
    grid = torch.linspace(1e-3, 60, 4000, dtype=torch.float32)
    mass = prior.log_prob(grid[:, None]).exp().sum() * (grid[1] - grid[0])
    assert abs(mass - 1) < 0.05


def test_free_form_flow_fits():
    values = mixture_sample(400, 2)
    prior = pyro_stad.fit(values, path="cnf", budget="tiny", progress=False)
    assert "FreeFormField" in repr(prior)
    assert prior.calibration.audit.sd < 0.5


def test_validation_follows_pyro(free_prior):
    value = free_prior.sample((1,))
    value[0, 0] = math.nan
    with pyro.validation_enabled(False):
        assert free_prior.log_prob(value) == -math.inf
    with pytest.raises(ValueError, match="nan"):
        free_prior.log_prob(value)


def test_disk_errors_come_before_damage(free_prior, tmp_path, monkeypatch):
    """A full disk: the old file stays whole, and no debris is left."""
    path = tmp_path / "prior.safetensors"
    free_prior.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        free_prior.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["prior.safetensors"]


def test_folder_that_does_not_exist(free_prior, tmp_path):
    target = tmp_path / "nowhere" / "prior.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        free_prior.save(target)
    assert caught.value.filename == str(target)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "must name a torch device"),
        ("meta", "must hold values; got meta"),
        ("cuda:99", "sees [0-9]+ CUDA devices"),
    ],
)
def test_devices_that_are_not_there(free_prior, tmp_path, device, message):
    path = tmp_path / "prior.safetensors"
    free_prior.save(path)
    with pytest.raises(ValueError, match=message):
        pyro_stad.load(path, device=device)
    with pytest.raises(ValueError, match=message):
        pyro_stad.fit(mixture_sample(200, 2), budget="tiny", progress=False, device=device)


def test_likelihoods_that_do_not_fit(free_prior):
    """A field of other dimensions would be broadcast into a finite, wrong density."""
    with pytest.raises(TypeError, match="must be a likelihood, such as FlowODE; got None"):
        free_prior.with_likelihood(None)
    field = pyro_stad.from_score(lambda t, x: -x, path="vp", features=3)
    with pytest.raises(ValueError, match=r"events of shape \(3,\), the prior has .* \(2,\)"):
        free_prior.with_likelihood(FlowODE(field, Exact(), RK4(2)))


@pytest.mark.parametrize("size", [4, 5, 6, 7, 9])
def test_a_point_is_the_same_in_every_batch(size):
    """In dimensions where products of few columns see a row's place."""
    torch.manual_seed(size)
    field = PathField(OptimalTransport(), size, width=16, depth=2)
    correction = Correction(size, 16, 2)
    for module in (field, correction):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    tril = torch.eye(size, dtype=torch.float32) + 0.2 * torch.randn(size, size).float().tril(-1)
    names = tuple(f"x{i}" for i in range(size))
    layout = Layout(names, tuple((name, ()) for name in names))
    parts = field.float(), Exact(), RK4(2)
    distilled = DistilledDensity(*parts, correction.float(), Gate(9, 10))
    for way in (FlowODE(*parts), SteinPath(*parts), distilled):
        prior = FlowPrior(way, torch.ones(size).float(), tril, layout)
        x = prior.sample((21,))
        together = prior.log_prob(x)
        for part in (1, 4):
            assert torch.equal(
                torch.cat([prior.log_prob(rows) for rows in x.split(part)]), together
            )
