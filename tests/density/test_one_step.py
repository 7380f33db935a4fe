"""Generators of one step: their law, their place in Pyro, their files, and what they refuse."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import pyro_stad
from pyro_stad.calibrate import energy_distance
from pyro_stad.density import FlowPrior, OneStepGenerator
from pyro_stad.divergence import Exact
from pyro_stad.errors import AccuracyWarning, CheckpointError
from pyro_stad.evidence import SMC
from pyro_stad.fields import Gate, GaussianMixtureField, PathField
from pyro_stad.fitting import one_step_run
from pyro_stad.learn import EMSettings, OneStepEM, pairs_loss
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import VPCosine
from pyro_stad.transport import Flow, OneStep


@pytest.fixture(scope="module")
def learned(tiny_prior):
    torch.set_default_dtype(torch.float64)
    return pyro_stad.distil_one_step(tiny_prior, steps=400, pairs=4000, progress=False)


def test_regression_draws_where_the_flow_does(learned):
    found = learned.distilled
    assert found.method == "regression"
    # The law is off by no more than its draws are, one by one.
    assert abs(found.distance) < 4 * found.distance_error + found.displacement**2
    assert found.displacement < 0.2
    x = learned.sample([3000], generator=torch.Generator().manual_seed(0))
    assert learned.support.check(x).all()
    y = learned.prior.sample([3000], generator=torch.Generator().manual_seed(1))
    x, y = (learned.prior.whiten(part) for part in (x, y))
    assert energy_distance(x, y) < 5e-3 + found.displacement**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_it_moves_nothing_as_the_flow_does(dtype):
    """A gate that closed on the velocity alone would carry tails back into the cloud."""
    gate = Gate(inner=3.0, outer=4.0)
    source = torch.Generator().manual_seed(0)
    field = PathField(VPCosine(), 2, 8, 2, source, gate).to(dtype)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    far = torch.nn.functional.normalize(torch.randn(20, 2, dtype=dtype), dim=1)
    far = far * torch.linspace(4.0, 20.0, 20, dtype=dtype)[:, None]
    one_step, flow = OneStep(field), Flow(field, RK4(4))
    torch.testing.assert_close(one_step.push(far), far)
    torch.testing.assert_close(flow.push(far) * field.data_scale, far)
    # Inside, it is the denoiser.
    near = 0.1 * torch.randn(5, 2, dtype=dtype)
    w = field.velocity(torch.tensor(1.0, dtype=dtype), near)
    torch.testing.assert_close(one_step.push(near), math.cos(1) * near - math.sin(1) * w)


@pytest.mark.parametrize("width", [None, 16])
def test_a_generator_has_the_gate_of_its_prior(learned, width):
    prior = learned.prior
    gate = prior.transport.field.gate
    assert gate is not None
    made = pyro_stad.distil_one_step(prior, steps=20, pairs=200, width=width, progress=False)
    far = 3 * gate.outer * torch.nn.functional.normalize(torch.randn(10, 3), dim=1)
    torch.testing.assert_close(made.transport.push(far), far)
    assert made.transport.field.trunk.width == width or width is None


@pytest.mark.parametrize("method", ["em", "both"])
def test_em_draws_the_law_of_the_teacher(learned, method):
    made = pyro_stad.distil_one_step(
        learned.prior, method=method, steps=500, pairs=2000, batch_size=256, progress=False,
        em=EMSettings(inference_steps=2),
    )  # fmt: skip
    assert made.distilled.method == method
    # A field of sixteen units is the score of no law: its flow draws another one than it scores.
    assert made.distilled.distance < 0.4 * untrained(learned.prior)


def untrained(prior):
    """Return how far the draws of a denoiser are, from which all starts."""
    field = prior.likelihood.field
    z, other = torch.randn(2, 1000, 3)
    with torch.no_grad():
        return energy_distance(OneStep(field).push(z), Flow(field, RK4(8)).push(other))


def normal_em(settings, scale=1.3, shift=0.2):
    """Return a student of N(shift, scale^2), with its exact score, and a teacher of N(0, 1)."""
    teacher = GaussianMixtureField(
        VPCosine(), torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1)
    )
    student = GaussianMixtureField(
        VPCosine(), torch.ones(1), torch.full((1, 1), shift), torch.full((1, 1, 1), scale**2)
    )

    class Affine(OneStep):
        def __init__(self):
            super().__init__(PathField(VPCosine(), 1, 8, 1))
            self.scale, self.shift = (
                torch.nn.Parameter(torch.tensor(value)) for value in (scale, shift)
            )

        def draw(self, z, context=None):
            return self.scale * z + self.shift

    both = OneStepEM(Affine(), teacher, settings)
    both.student = student
    return both


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_the_gradient_of_em_leads_to_the_teacher(steps):
    """A student that is too wide and off the middle is told to shrink and to come back."""
    both = normal_em(EMSettings(inference_steps=steps))
    source = torch.Generator().manual_seed(0)
    loss = both._generator_loss(20_000, source, torch.zeros(1, 1))
    loss.backward()
    assert both.generator.scale.grad > 0
    assert both.generator.shift.grad > 0


def test_noise_cancellation_takes_the_noise_out():
    """At the teacher's law there is no drift: what is left of the movement is noise, or nothing."""
    moved = {}
    for cancelled in (True, False):
        settings = EMSettings(inference_steps=3, noise_cancellation=cancelled)
        both = normal_em(settings, scale=1.0, shift=0.0)
        with torch.no_grad():
            _, moved[cancelled] = both._inferred(
                2000, torch.Generator().manual_seed(0), torch.zeros(1, 1)
            )
    assert moved[True].abs().max() < 1e-10
    assert moved[False].std() > 1


def test_the_student_learns_the_score_of_the_generator():
    """Its loss is that of matching: least at the exact velocity of what the generator draws."""
    both = normal_em(EMSettings())
    exact, wrong = both.student, normal_em(EMSettings(), scale=0.7).student
    values = []
    for student in (exact, wrong):
        both.student = student
        source = torch.Generator().manual_seed(0)
        values.append(both._student_loss(20_000, source, torch.zeros(1, 1)).item())
    assert values[0] < values[1]


def test_it_is_a_pyro_distribution(learned):
    batch = learned.expand([3])
    assert batch.sample([2]).shape == (2, 3, 3)
    assert batch.batch_shape == (3,)
    assert learned.has_rsample
    z = torch.randn(4, 3, requires_grad=True)
    x = z
    for transform in learned.transforms:
        x = transform(x)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert gradient.abs().min() > 0

    def model():
        with pyro.plate("objects", 5):
            pyro.sample("theta", learned)

    assert Predictive(model, num_samples=3)()["theta"].shape == (3, 5, 3)
    moved = learned.to(torch.float32)
    assert moved.sample([2]).dtype == torch.float32
    # Copies keep nothing in common with what they were made from.
    assert learned.sample([2]).dtype == torch.float64


def test_it_has_no_density_and_says_where_one_is(learned):
    with pytest.raises(NotImplementedError, match=r"generator.prior.log_prob.*FlowReparam"):
        learned.log_prob(torch.ones(3))
    with pytest.raises(NotImplementedError, match="no way back from values to noise"):
        learned.transforms[0].inv(torch.zeros(3))


def posterior_model(prior):
    def model(y):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[..., 1], 0.3), obs=y)

    return model


def test_nuts_in_noise_agrees_with_the_flow(learned):
    means = []
    for prior in (learned, learned.prior):
        pyro.set_rng_seed(0)
        model = pyro_stad.FlowReparam()(posterior_model(prior))
        mcmc = MCMC(NUTS(model, max_tree_depth=4), 100, 60, disable_progbar=True)
        mcmc.run(torch.tensor(0.5))
        draws = Predictive(model, mcmc.get_samples())(torch.tensor(0.5))["theta"]
        means.append(draws[:, 1].mean())
    # Standard deviation 0.3 at the most, some thirty effective draws each.
    assert abs(means[0] - means[1]) < 4 * 0.3 * math.sqrt(2 / 30)


def test_svi_and_evidence_in_noise(learned):
    model = pyro_stad.FlowReparam()(posterior_model(learned))
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(torch.tensor(0.5)) for _ in range(100)]
    assert sum(losses[-25:]) < sum(losses[:25])


def evidence(model, y, **options):
    options = {"method": SMC(particles=1000), "seed": 0, **options}
    return pyro_stad.log_evidence(model, y, progress=False, **options)


@pytest.mark.parametrize("reparametrised", [False, True])
def test_an_evidence_of_a_generator_is_that_of_its_prior(learned, reparametrised, capsys):
    """Also of one that is far from the law of its prior: weights and moves put it right."""
    y, wrap = torch.tensor(0.5), pyro_stad.FlowReparam() if reparametrised else (lambda m: m)
    known = evidence(wrap(posterior_model(learned.prior)), y)
    for generator in (learned, shifted(learned)):
        model = wrap(posterior_model(generator))
        found, rough = evidence(model, y), evidence(model, y, correct=False)
        error = math.hypot(found.log_z_err, known.log_z_err)
        assert abs(found.log_z - known.log_z) < 4 * error
        value, own = found.correction
        # Of the same particles, so that it is known better than either.
        assert own < 1.5 * found.log_z_err
        assert abs(rough.log_z + value - found.log_z) < 4 * rough.log_z_err
        assert "generator of one step" in " ".join(rough.warnings)
        assert not found.warnings
        assert rough.correction is None
        assert rough.network_calls == rough.likelihood_calls
        assert "in place of a distilled one" in found.summary()
        # By the flow, what learned priors say of an evidence is said of this one too.
        assert (found.support is None) == (known.support is None)
        assert found.learning is not None or known.learning is None
        if generator is learned:
            # Near its flow, it saves most of the flow's likelihoods.
            assert found.network_calls < known.network_calls
    assert abs(value) > 0.1


def shifted(generator, step=0.5):
    """Return a generator whose draws are off by half a standard deviation."""

    class Shifted(OneStep):
        def draw(self, z, context=None):
            return super().draw(z, context) + step

    moved = Shifted(generator.transport.field, generator.transport.angle)
    return OneStepGenerator(generator.prior, moved, generator.distilled)


def test_a_killed_evidence_of_a_generator_goes_on(learned, tmp_path):
    y, model = torch.tensor(0.5), posterior_model(learned)
    options = {"method": SMC(particles=200), "checkpoint": tmp_path / "run"}
    first, again = (evidence(model, y, **options) for _ in range(2))
    assert first.log_z == again.log_z
    assert {file.name for file in tmp_path.iterdir()} == {"run", "run.exact"}
    # What was reached by the generator is no run of the flow.
    (tmp_path / "run").rename(tmp_path / "run.exact")
    with pytest.raises(CheckpointError):
        evidence(model, y, **options)


def test_evidences_of_many_objects_are_of_the_flow_too(learned):
    y = torch.tensor([0.0, 0.5, 1.0])
    options = {"particles": 500, "progress": False}
    found, known = (
        pyro_stad.log_evidences(posterior_model(prior), y, **options)
        for prior in (shifted(learned), learned.prior)
    )
    for ours, theirs in zip(found, known):
        assert abs(ours.log_z - theirs.log_z) < 4 * math.hypot(ours.log_z_err, theirs.log_z_err)
        # Importance is of the flow to begin with, and takes no correction.
        assert (ours.correction is None) == (ours.method == "importance")
    rough = pyro_stad.log_evidences(posterior_model(learned), y, correct=False, **options)
    assert "generator of one step" in " ".join(rough[0].warnings)


def test_draws_of_a_posterior_are_corrected_in_noise(learned):
    """Draws by a generator that is off, against the flow's own posterior."""
    y, generator = torch.tensor(0.5), shifted(learned, 0.3)
    rough = evidence(posterior_model(generator), y, correct=False)
    model = pyro_stad.FlowReparam()(posterior_model(generator))
    noise = evidence(model, y, correct=False).draws["theta_base"]
    found = pyro_stad.correct({"theta_base": noise}, model, y, draws=1000)
    assert found.sites == ("theta_base",)
    assert found.is_reliable
    known = evidence(posterior_model(learned.prior), y).draws["theta"]
    scale = known.std(0) / math.sqrt(0.5 * found.ess)
    before, after = ((x - known.mean(0)) / scale for x in (
        rough.draws["theta"].mean(0), found.mean()["theta"],
    ))  # fmt: skip
    assert after.abs().max() < 3.5 < before.abs().max()
    # What the model computes is that of the flow, also where draws of it were given.
    given = {"theta_base": noise, "theta": torch.zeros(len(noise), 3)}
    again = pyro_stad.correct(given, model, y, draws=1000)
    assert torch.equal(again.draws["theta"], found.draws["theta"])
    assert torch.equal(again.log_weights, found.log_weights)
    # What is too far off can't be weighed back, and is told.
    far = pyro_stad.FlowReparam()(posterior_model(shifted(learned, 2.0)))
    with pytest.warns(AccuracyWarning, match="Pareto shape"):
        assert not pyro_stad.correct({"theta_base": noise}, far, y).is_reliable


def test_the_bridge_is_corrected_in_noise(learned):
    y, generator = torch.tensor(0.5), shifted(learned, 0.1)
    model = pyro_stad.FlowReparam()(posterior_model(generator))
    draws = evidence(model, y, correct=False).draws
    found, known = (
        evidence(model, y, method="bridge", draws=draws),
        evidence(posterior_model(learned.prior), y),
    )
    assert abs(found.log_z - known.log_z) < 4 * math.hypot(found.log_z_err, known.log_z_err)
    assert found.correction[0] != 0


def test_a_file_holds_generator_and_prior(learned, tmp_path):
    path = tmp_path / "generator.safetensors"
    learned.save(path)
    back = pyro_stad.load(path)
    assert isinstance(back, OneStepGenerator)
    assert back.distilled == learned.distilled
    draws = (
        each.sample([4], generator=torch.Generator().manual_seed(0)) for each in (back, learned)
    )
    assert torch.equal(*draws)
    x = learned.prior.sample([3])
    assert torch.equal(back.prior.log_prob(x), learned.prior.log_prob(x))
    assert "distilled by regression" in back.summary()
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError):
        pyro_stad.load(path)


def test_a_field_that_shows_no_network_gets_one_of_its_own():
    field = pyro_stad.from_score(lambda t, x: -x, path="vp", features=2)
    layout = pyro_stad.fit(torch.randn(200, 2), budget="tiny", progress=False, members=0).layout
    prior = FlowPrior(FlowODE(field, Exact(), RK4(4)), torch.zeros(2), torch.eye(2), layout)
    made = pyro_stad.distil_one_step(prior, steps=300, pairs=1000, progress=False)
    assert made.distilled.displacement < 0.1
    z = torch.randn(50, 2)
    assert pairs_loss(made.transport, z, z) < 0.1  # standard normal data: nothing moves


def test_a_run_goes_on_after_a_kill(learned, tmp_path):
    options = {"steps": 60, "pairs": 500, "batch_size": 64, "progress": False}
    whole = pyro_stad.distil_one_step(learned.prior, resume=tmp_path, **options)
    again = pyro_stad.distil_one_step(learned.prior, resume=tmp_path, **options)
    z = torch.randn(5, 3)
    assert torch.equal(whole.transport.push(z), again.transport.push(z))
    assert len(list(tmp_path.iterdir())) == 1


def test_samples_are_learned_from_too(learned, monkeypatch):
    """Each with the noise that the flow draws it from; held-out pairs are the flow's own."""
    prior, options = learned.prior, {"steps": 40, "pairs": 50, "progress": False}
    samples = prior.sample([150], generator=torch.Generator().manual_seed(0))
    white = prior.whiten(samples)
    seen = []

    def watched(one_step, z, x, context=None):
        seen.append((z, x))
        return pairs_loss(one_step, z, x, context)

    monkeypatch.setattr(one_step_run, "pairs_loss", watched)
    pyro_stad.distil_one_step(prior, samples=samples, **options)
    trained = [pair for pair in seen if len(pair[0]) == 512]
    z, x = (torch.cat(parts) for parts in zip(*trained))
    apart = (x[:, None] - white).abs().amax(-1)
    ours = apart.amin(1) == 0
    # Of 195 pairs to draw from 150 are samples.
    assert abs(ours.double().mean() - 150 / 195) < 0.02
    torch.testing.assert_close(prior.transport.push(z[ours]), x[ours], rtol=0, atol=0.05)
    held = next(pair for pair in seen if len(pair[0]) != 512)
    assert not (held[1][:, None] == white).all(-1).any()
    with pytest.raises(ValueError, match="`samples`"):
        pyro_stad.distil_one_step(prior, samples=samples[:, :2], **options)


def test_a_run_of_another_law_is_not_gone_on_with(learned, tmp_path):
    options = {"steps": 20, "pairs": 500, "batch_size": 64, "progress": False, "resume": tmp_path}
    pyro_stad.distil_one_step(learned.prior, **options)
    other = copy.deepcopy(learned.prior)
    with torch.no_grad():
        next(other.transport.field.parameters()).add_(0.1)
    for prior, changed in ((other, {}), (learned.prior, {"pairs": 400})):
        with pytest.raises(ValueError, match="belongs to a run with other settings"):
            pyro_stad.distil_one_step(prior, **{**options, **changed})
    options |= {"method": "em", "em": EMSettings(inference_steps=0)}
    pyro_stad.distil_one_step(learned.prior, **options)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        pyro_stad.distil_one_step(learned.prior, **{**options, "em": EMSettings(inference_steps=1)})


def test_auto_leaves_out_a_bridge_that_needs_a_density(learned):
    model, y = posterior_model(learned), torch.tensor(0.5)
    draws = evidence(model, y).draws
    found = evidence(model, y, method="auto", draws=draws)
    assert any("bridge was refused" in text for text in found.warnings)
    with pytest.raises(NotImplementedError, match="FlowReparam"):
        evidence(model, y, method="bridge", draws=draws)


def test_what_can_not_be_distilled_is_refused(learned):
    with pytest.raises(ValueError, match="`method` must be one of"):
        pyro_stad.distil_one_step(learned.prior, method="gan")
    with pytest.raises(TypeError, match="`prior` must be a FlowPrior"):
        pyro_stad.distil_one_step(torch.zeros(2))
    with pytest.raises(ValueError, match="`steps` must be an integer"):
        pyro_stad.distil_one_step(learned.prior, steps=0)
    with pytest.raises(TypeError, match="`em` must be an EMSettings"):
        pyro_stad.distil_one_step(learned.prior, method="em", em={"inference_steps": 2})
    with pytest.raises(ValueError, match="`inference_steps` must be an integer"):
        EMSettings(inference_steps=-1)
    with pytest.raises(ValueError, match="`latent_step` must be a positive number"):
        EMSettings(latent_step=0.0)
    with pytest.raises(ValueError, match="`angle` must be a finite number within"):
        OneStep(learned.transport.field, angle=3.0)
    free = pyro_stad.fit(torch.randn(200, 2), path="cnf", budget="tiny", progress=False, members=0)
    with pytest.raises(TypeError, match=r"`method` 'em' needs a field on a Gaussian path"):
        pyro_stad.distil_one_step(free, method="em")
