"""``prior.calibrate`` and ``prior.surrogate_error``: what they take, keep and promise."""

import copy
import math

import pytest
import torch

import pyro_stad
from pyro_stad import AccuracyWarning
from pyro_stad.divergence import Exact, Hutchinson, Stein, TrunkHead
from pyro_stad.fields import Gate
from pyro_stad.fitting import FitSettings
from pyro_stad.learn import TrainingSettings
from pyro_stad.likelihood import (
    Constant,
    Correction,
    DistilledDensity,
    FlowODE,
    ScoreGradient,
    SteinPath,
)
from pyro_stad.ode import RK4
from pyro_stad.transport import AbstractTransport, Flow
from tests.oracles import mixture_sample


def test_a_loose_tolerance_takes_the_cheapest_and_a_strict_one_the_best(tiny_prior):
    x, flow = tiny_prior.sample((200,)), tiny_prior.likelihood
    parts = flow.field, flow.divergence, flow.solver
    plain = tiny_prior.with_likelihood(FlowODE(*parts))
    loose = plain.calibrate(x, tolerance=1e3)
    assert isinstance(loose.likelihood, SteinPath)
    assert loose.likelihood.curve == Constant()
    assert loose.likelihood.nodes == 8
    with pytest.warns(AccuracyWarning, match="the tolerance of 1e-09 nat is not met"):
        strict = plain.calibrate(x, tolerance=1e-9, reference="exact")
    assert "WARNING: the tolerance of 1e-09 nat is not met" in strict.summary()
    sds = [trial.sd for trial in strict.calibration.trials]
    assert strict.calibration.audit.sd == pytest.approx(min(sds))
    assert len(sds) > len(loose.calibration.trials) == 1


def test_a_distilled_density_is_tried_again_first_and_left_where_it_does_not_serve(tiny_prior):
    x, flow = tiny_prior.sample((200,)), tiny_prior.likelihood
    correction = Correction(3, 8, 1).double().requires_grad_(False)
    parts = flow.field, flow.divergence, flow.solver
    normal = tiny_prior.with_likelihood(DistilledDensity(*parts, correction, Gate(3.0, 4.5)))
    loose = normal.calibrate(x, tolerance=1e3)
    assert isinstance(loose.likelihood, DistilledDensity)
    assert loose.likelihood.correction is correction
    with pytest.warns(AccuracyWarning, match="is not met"):
        strict = normal.calibrate(x, tolerance=1e-9, reference="exact")
    first, *others = strict.calibration.trials
    assert first.likelihood == repr(normal.likelihood)
    assert first.sd > min(trial.sd for trial in others)
    assert not isinstance(strict.likelihood, DistilledDensity)


def test_the_prior_itself_is_left_alone_and_networks_are_shared(tiny_prior):
    x = tiny_prior.sample((50,))
    before, mass = tiny_prior.log_prob(x), tiny_prior.likelihood.log_mass
    with pytest.warns(AccuracyWarning, match="is not met"):
        batched = tiny_prior.expand((4,)).calibrate(x, tolerance=1e-9, reference="exact")
    assert batched.batch_shape == (4,)
    assert torch.equal(tiny_prior.log_prob(x), before)
    assert tiny_prior.likelihood.log_mass == mass
    assert batched.likelihood.field is tiny_prior.likelihood.field


def test_the_audit_is_that_of_the_density(tiny_prior):
    x = tiny_prior.sample((100,))
    prior = tiny_prior.calibrate(x, tolerance=0.05)
    flow = prior.likelihood
    exact = prior.with_likelihood(FlowODE(flow.field, Exact(), flow.solver))
    error = prior.log_prob(x) - exact.log_prob(x)
    assert prior.calibration.audit.bias == pytest.approx(error.mean().item(), abs=1e-9)
    assert prior.calibration.audit.sd == pytest.approx(error.std().item(), abs=1e-9)
    assert (error.abs() <= prior.surrogate_error(x)).double().mean() >= 0.95


def test_the_error_is_known_wherever_the_density_is(tiny_prior):
    x = tiny_prior.sample((5, 2))
    x[0, 0, 0] = -1.0  # below the bound
    x[1, 1, 2] = math.nan
    x[2, 0, 1] = math.inf
    error = tiny_prior.surrogate_error(x)
    assert error.shape == (5, 2)
    bad = [[1, 0], [0, 1], [1, 0], [0, 0], [0, 0]]
    assert torch.equal(torch.isinf(error), torch.tensor(bad, dtype=torch.bool))
    assert (error > 0).all()


def test_no_points_at_all(tiny_prior):
    none = torch.zeros(0, 3, requires_grad=True)
    assert tiny_prior.surrogate_error(none).shape == (0,)
    for curve in (None, pyro_stad.likelihood.Coarse(2)):
        flow = tiny_prior.likelihood
        path = SteinPath(flow.field, flow.divergence, flow.solver, curve)
        (slope,) = torch.autograd.grad(path.log_prob(none).sum(), none)
        assert slope.shape == (0, 3)


def test_an_uncalibrated_prior_says_so(tiny_prior):
    with pytest.raises(ValueError, match=r"not calibrated; use prior.calibrate\(samples\)"):
        tiny_prior.with_likelihood(tiny_prior.likelihood).surrogate_error(torch.ones(3))


def with_infinity(x):
    return x.index_fill(0, torch.tensor([7]), math.inf)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda x: x.numpy(), {}, TypeError, "`samples` must be a torch tensor"),
        (lambda x: x[:, :2], {}, ValueError, r"`samples` must have shape \(..., 3\)"),
        (with_infinity, {}, ValueError, r"`samples` is inf at index \(7,\) in scale"),
        (lambda x: -x, {}, ValueError, "60 outside"),
        (lambda x: x[:19], {}, ValueError, "at least 20 distinct points .* got 19 points"),
        (lambda x: x[:1].expand(60, 3), {}, ValueError, "60 points, 1 of them distinct"),
        (lambda x: 1e200 * x, {}, ValueError, "no way to the density is finite"),
        (lambda x: x, {"tolerance": "0.1"}, ValueError, "`tolerance` must be a positive number"),
        (lambda x: x, {"tolerance": 0.0}, ValueError, "of nats; got 0.0"),
        (lambda x: x, {"tolerance": math.nan}, ValueError, "of nats; got nan"),
        (lambda x: x, {"reference": "truth"}, ValueError, "`reference` must be one of"),
        (lambda x: x, {"seed": "a"}, TypeError, "`seed` must be an int; got 'a'"),
    ],
)
def test_bad_input_is_named(tiny_prior, change, options, error, message):
    x = mixture_sample(60, 3, seed=8)
    x[:, 0] = x[:, 0].exp()
    with pytest.raises(error, match=message):
        tiny_prior.calibrate(change(x), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FitSettings(tolerance=-1), "`tolerance` must be a positive number of nats; got"),
        (lambda: FitSettings(grid_tolerance="a"), "`grid_tolerance` must be .* got 'a'"),
        (lambda: FitSettings(polish_products=0), "`polish_products` must be .* got 0"),
        (lambda: FitSettings(density_width=10), "`density_width` must be a multiple of 4; got 10"),
        (lambda: FitSettings(density_labels=4), "`density_labels` must be .* at least 100; got 4"),
        (lambda: FitSettings(audit_points=1), "`audit_points` must be an integer of at least 2"),
        (lambda: TrainingSettings(10, patience=-1), "`patience` must be .* got -1"),
        (lambda: TrainingSettings(10, target="a"), "`target` must be a loss or None; got 'a'"),
        (lambda: TrainingSettings(10, learning_rate=0), "`learning_rate` must be .* got 0"),
        (lambda: TrainingSettings(10, ema_decay=1.0), "`ema_decay` must lie in"),
    ],
)
def test_settings_that_would_fail_after_minutes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["polish", "density"])
def test_settings_of_another_type_are_refused(name):
    with pytest.raises(TypeError, match=f"`{name}` must be TrainingSettings or None; got 5"):
        FitSettings(**{name: 5})


def test_resume_wants_a_folder(tmp_path):
    file = tmp_path / "state"
    file.write_text("")
    with pytest.raises(ValueError, match="`resume` must be a folder"):
        pyro_stad.fit(mixture_sample(200, 2), budget="tiny", progress=False, resume=file)


def test_the_exact_twin_is_one_call_and_keeps_the_rest(free_prior):
    """Chunk size, grid, draws and batch shape; what was measured was the other one."""
    likelihood = free_prior.likelihood.replace(chunk_size=64)
    prior = free_prior.with_likelihood(likelihood).expand((3,))
    twin = prior.exact()
    assert twin.likelihood.is_exact
    assert (twin.likelihood.chunk_size, twin.likelihood.solver) == (64, likelihood.solver)
    assert twin.transport is prior.transport
    assert twin.batch_shape == (3,)
    assert twin.calibration is None
    flow = FlowODE(likelihood.field, Exact(), likelihood.solver)
    x = free_prior.sample((5,))
    wanted = free_prior.with_likelihood(flow).log_prob(x)
    torch.testing.assert_close(twin.log_prob(x[:, None])[:, 0], wanted, rtol=0, atol=1e-9)
    heavier = flow.replace(log_mass=0.5, chunk_size=64)
    assert heavier.replace(divergence=Hutchinson(2)).log_mass == 0.5


@pytest.mark.parametrize("reference", ["data", "exact"])
def test_a_new_calibration_keeps_the_chunk_size(free_prior, reference):
    prior = free_prior.with_likelihood(free_prior.likelihood.replace(chunk_size=64))
    again = prior.calibrate(mixture_sample(60, 2, seed=9), reference=reference)
    assert again.likelihood.chunk_size == 64
    assert again.transport.chunk_size == prior.transport.chunk_size


def test_another_divergence_is_refused_where_it_would_change_nothing(free_prior):
    flow = free_prior.likelihood
    correction = Correction(2, 8, 1).double()
    distilled = DistilledDensity(
        flow.field, flow.divergence, flow.solver, correction, Gate(5.0, 6.0)
    )
    with pytest.raises(TypeError, match=r"FlowODE.of\(likelihood, divergence=...\)"):
        distilled.replace(divergence=Hutchinson(4))
    trained = Stein(TrunkHead.for_field(flow.field)).double()
    path = SteinPath(flow.field, flow.divergence, flow.solver, consistent=trained)
    assert path.replace(divergence=Exact()).integrand.is_exact
    assert path.replace(nodes=8).consistent is trained
    score = ScoreGradient(path).replace(chunk_size=64)
    assert (score.inner.chunk_size, score.chunk_size) == (64, 64)


def test_priors_made_of_a_prior_validate_as_it_does(free_prior):
    prior = pyro_stad.FlowPrior(**free_prior.stored()._asdict(), validate_args=False)
    bad = torch.tensor([[torch.nan, 0.0]])
    for made in (prior, prior.exact(), prior.with_likelihood(prior.likelihood), prior.to("cpu")):
        assert made.log_prob(bad) == -torch.inf
    with pytest.raises(ValueError, match="nan"):
        free_prior.exact().log_prob(bad)


def test_a_new_calibration_keeps_the_transport(free_prior):
    flow = free_prior.likelihood
    transport = Flow(flow.field, flow.solver, RK4(11), chunk_size=256)
    parts = free_prior.stored()._replace(transport=transport)
    again = pyro_stad.FlowPrior(**parts._asdict()).calibrate(mixture_sample(60, 2, seed=9))
    assert (again.transport.chunk_size, again.transport.back) == (256, RK4(11))


def test_a_transport_has_a_way_back_and_a_file_has_all_of_it(free_prior, tmp_path):
    class OneWay(AbstractTransport):
        def push(self, z):
            return z

        def sequential_calls(self):
            return 1

    parts = free_prior.stored()
    with pytest.raises(TypeError, match="`transport` must have a way back"):
        pyro_stad.FlowPrior(**parts._replace(transport=OneWay())._asdict())
    other = Flow(copy.deepcopy(parts.likelihood.field), RK4(4))
    with pytest.raises(TypeError, match="of the likelihood's own field"):
        pyro_stad.FlowPrior(**parts._replace(transport=other)._asdict()).save(tmp_path / "p")


def test_one_scale_for_a_vector_is_saved(free_prior, tmp_path):
    parts = free_prior.stored()._replace(scale_tril=torch.tensor(2.0), spread=None, reference=None)
    prior = pyro_stad.FlowPrior(**parts._asdict())
    prior.save(tmp_path / "p")
    x = prior.sample((4,))
    torch.testing.assert_close(pyro_stad.load(tmp_path / "p").log_prob(x), prior.log_prob(x))
