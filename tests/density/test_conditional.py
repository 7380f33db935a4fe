"""Conditional flows: against closed forms, in every shape, in files, and where users slip."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import pyro_stad
from pyro_stad import AccuracyWarning, CheckpointError
from pyro_stad.data import Layout
from pyro_stad.data.contexts import Contexts
from pyro_stad.density import ConditionalFlow, FlowPrior, find_flow
from pyro_stad.divergence import Exact
from pyro_stad.fields import ConditionalGaussianField
from pyro_stad.fields.networks.location_scale import LocationScale
from pyro_stad.files.conditional import StoredConditional
from pyro_stad.likelihood import Constant, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

SLOPE, SCALE = torch.tensor([[1.0, -0.5], [0.3, 2.0]]), torch.tensor([0.5, 0.1])


def law(context):
    """Normal, with a mean that bends and a scale that depends on the context."""
    mean = context @ SLOPE.to(context).mT + torch.sin(2 * context)
    scale = SCALE.to(context) * (0.5 * context[..., :1]).exp()
    return dist.Normal(mean, scale).to_event(1)


def pairs(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    normal = law(context).base_dist
    return normal.mean + normal.stddev * noise, context


@pytest.fixture(scope="module")
def flow():
    x, context = pairs(4000)
    return pyro_stad.fit(
        x, context=context, names=["a", "b"], context_names=["u", "v"], budget="tiny",
        progress=False, dtype=torch.float64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    """A flow whose field is known: the law of x = A c + b + L e, on the flow's own grid."""
    weight = torch.tensor([[0.6, -0.3, 0.2], [0.1, 0.5, -0.4]], dtype=torch.float64)
    bias = torch.tensor([0.3, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=torch.float64)
    field = ConditionalGaussianField(OptimalTransport(), weight, bias, covariance)
    likelihood = FlowODE(field, Exact(), RK4(32))
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    seen = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    contexts = Contexts(
        Layout.of(["p", "q", "r"]), None, zero, one, seen[:100],
        torch.cdist(seen[100:], seen[:100]).amin(1).sort().values,
    )  # fmt: skip
    return ConditionalFlow(
        StoredConditional(
            likelihood,
            likelihood.transport(),
            LocationScale(2, 3, 8).double(),
            contexts,
            Layout.of(["a", "b"]),
            None,
            None,
            None,
            None,
        )  # fmt: skip
    )


def truth(oracle, context):
    field = oracle.parts.likelihood.field
    covariance = (field._axes * field._spectrum) @ field._axes.mT
    return dist.MultivariateNormal(context @ field.weight.mT + field.bias, covariance)


def test_density_and_gradients_are_those_of_the_closed_form(oracle):
    """But for the blur at the data end: a hundredth of a standard deviation."""
    context = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    found = oracle(context).log_prob(x)
    known = truth(oracle, context).log_prob(x)
    torch.testing.assert_close(found, known, rtol=1e-3, atol=5e-3)
    ours = torch.autograd.grad(found.sum(), (context, x))
    theirs = torch.autograd.grad(known.sum(), (context, x))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=2e-2)


def test_draws_follow_the_context_with_their_gradient(oracle):
    context = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]], dtype=torch.float64)
    context.requires_grad_()
    draws = oracle(context).rsample((4000,))
    known = truth(oracle, context)
    error = known.variance.sqrt() / math.sqrt(4000)
    assert ((draws.mean(0) - known.mean).abs() < 5 * error).all()
    # d mean / d context = A, up to the noise end, where noise stands for the last of the data.
    (slope,) = torch.autograd.grad(draws[:, 0, 0].mean(), context)
    torch.testing.assert_close(
        slope[0], oracle.parts.likelihood.field.weight[0], rtol=0.02, atol=0.01
    )
    assert (slope[1] == 0).all()


def test_what_was_learned_is_the_law(flow):
    x, context = pairs(2000, seed=1)
    difference = law(context).log_prob(x) - flow(context).log_prob(x)
    # Kullback-Leibler, of a tiny budget; the plain normal law of least squares is off by 1.4.
    assert -0.02 < difference.mean() < 0.1
    assert flow.parts.accuracy.worst_decile < 0.5
    assert "worst tenth" in flow.summary()
    assert "given: u, v" in flow.summary()


def test_shapes_are_those_of_pyro(flow):
    context = torch.randn(3, 1, 2, dtype=torch.float64)
    prior = flow(context)
    assert isinstance(prior, FlowPrior)
    assert prior.batch_shape == (3, 1)
    assert prior.event_shape == (2,)
    assert prior.expand([5, 3, 4]).batch_shape == (5, 3, 4)
    assert prior.sample((7,)).shape == (7, 3, 1, 2)
    assert prior.rsample().requires_grad is False
    x = torch.randn(6, 3, 4, 2, dtype=torch.float64)
    assert prior.log_prob(x).shape == (6, 3, 4)
    assert prior.mask(False).log_prob(x).shape == (6, 3, 4)
    assert prior.to_event(2).event_shape == (3, 1, 2)
    for measure in (prior.tail_probability, prior.density_level, prior.surrogate_error):
        assert measure(x).shape == (6, 3, 4)
    one = flow(context[0, 0])
    assert one.batch_shape == ()
    assert one.log_prob(x).shape == (6, 3, 4)
    assert flow({"u": torch.zeros(4, 1), "v": torch.zeros(5)}).batch_shape == (4, 5)
    assert flow({"u": torch.zeros(0), "v": torch.zeros(0)}).sample().shape == (0, 2)


def test_every_layout_of_a_batch_says_the_same(flow):
    """Broadcast, expanded, row by row: the same density to the last bit."""
    context = torch.randn(5, 2, dtype=torch.float64)
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    together = flow(context).log_prob(x)
    assert torch.equal(together, flow(context.expand(4, 5, 2)).log_prob(x))
    assert torch.equal(together, flow(context).expand([4, 5]).log_prob(x))
    alone = torch.stack([flow(context[i]).log_prob(x[:, i]) for i in range(5)], 1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert torch.equal(alone[:, 2], flow(context[2]).expand([4]).log_prob(x[:, 2]))


def test_gradients_to_the_context_match_differences(flow):
    context = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    x = law(context.detach()).sample((8,))
    (slope,) = torch.autograd.grad(flow(context).log_prob(x).sum(), context)
    step, differences = 1e-5, []
    for i in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[i] = step
        up, down = (flow(context.detach() + s * shift).log_prob(x).sum() for s in (1, -1))
        differences.append((up - down) / (2 * step))
    torch.testing.assert_close(slope, torch.stack(differences), rtol=1e-4, atol=1e-4)


def test_it_can_be_mapped_and_differentiated_by_torch(flow):
    x, context = pairs(4, seed=5)
    together = flow(context).log_prob(x)
    mapped = torch.vmap(lambda c, y: flow(c).log_prob(y))(context, x)
    torch.testing.assert_close(mapped, together, rtol=0, atol=1e-9)
    one = torch.vmap(lambda c: flow(c).log_prob(x[0]))(context)
    torch.testing.assert_close(one, flow(context).log_prob(x[0]), rtol=0, atol=1e-9)
    slope = torch.func.grad(lambda c: flow(c).log_prob(x[0]))(context[0])
    at = context[0].clone().requires_grad_()
    (known,) = torch.autograd.grad(flow(at).log_prob(x[0]), at)
    torch.testing.assert_close(slope, known)


def test_one_context_of_many_points_is_encoded_once(oracle, flow, monkeypatch):
    seen = []
    kind = type(flow.parts.location.network)
    forward = kind.forward

    def counted(module, rows):
        seen.append(len(rows))
        return forward(module, rows)

    monkeypatch.setattr(kind, "forward", counted)
    x = torch.randn(1000, 2, dtype=torch.float64)
    exact = flow.exact()
    with torch.no_grad():
        exact(torch.zeros(2, dtype=torch.float64)).expand([1000]).log_prob(x)
    # Sixteen rows of the whitening, as few as products are made of; one for each call of the field.
    assert max(seen) <= 16
    parts = flow.parts.likelihood.field, Exact(), RK4(4)
    path = flow.with_likelihood(SteinPath(*parts, Constant(), 8))
    together = path(torch.zeros(2, dtype=torch.float64)).expand([40])
    seen.clear()
    with torch.no_grad():
        found = together.log_prob(x[:40])
    assert seen == [1]
    # A row of each: no node of a point is encoded again.
    context = torch.zeros(40, 2, dtype=torch.float64) + 0.0 * x[:40]
    prior = path(context)
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(x[:40]), found, rtol=0, atol=1e-12)
    assert sum(seen) <= 48


def test_the_exact_twin_and_files_keep_everything(flow, tmp_path):
    x, context = pairs(50, seed=2)
    flow.save(tmp_path / "flow.safetensors")
    loaded = pyro_stad.load(tmp_path / "flow.safetensors")
    assert torch.equal(loaded(context).log_prob(x), flow(context).log_prob(x))
    assert loaded.summary() == flow.summary()
    assert loaded.context_names == ("u", "v")
    assert torch.equal(loaded(context).tail_probability(x), flow(context).tail_probability(x))
    single = loaded.to(torch.float32)
    assert single(context.float()).log_prob(x.float()).dtype == torch.float32
    assert isinstance(flow.exact().parts.likelihood.divergence, Exact)
    error = flow.exact()(context).log_prob(x) - flow(context).log_prob(x)
    assert torch.equal(flow(context).exact().log_prob(x), flow.exact()(context).log_prob(x))
    assert error.std() < 0.3
    with pytest.raises(ValueError, match="`region` is not for"):
        pyro_stad.load(tmp_path / "flow.safetensors", region=lambda t: t)
    from pyro_stad._files import read_tensors, write_tensors

    tensors, document = read_tensors(tmp_path / "flow.safetensors")
    document["context"]["names"] = ["u"]
    write_tensors(tmp_path / "broken.safetensors", tensors, document)
    with pytest.raises(CheckpointError, match="does not describe a conditional flow"):
        pyro_stad.load(tmp_path / "broken.safetensors")


def test_a_flow_is_calibrated_anew(flow):
    x, context = pairs(200, seed=4)
    loose = flow.calibrate(x, context, tolerance=1e3)
    assert len(loose.parts.calibration.trials) == 1
    assert loose.parts.accuracy.contexts == 100
    with pytest.warns(AccuracyWarning, match="the tolerance of 1e-09 nat is not met"):
        strict = flow.calibrate(x, {"u": context[:, 0], "v": context[:, 1]}, tolerance=1e-9,
                                reference="exact")  # fmt: skip
    assert len(strict.parts.calibration.trials) > 1
    assert flow.parts.likelihood.field is strict.parts.likelihood.field
    for arguments, message in (
        ((x[:5], context[:5]), "at least 20 distinct ones"),
        ((x, context[:7]), "must be rows of pairs"),
        ((x * math.nan, context), "`samples` is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.calibrate(*arguments)


def test_a_context_never_seen_is_flagged(flow):
    context = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.5, -12.0]], dtype=torch.float64)
    prior = flow(context)
    x = prior.sample((20,))
    level = prior.alarm_level
    assert (prior.context_level() < level).tolist() == [False, True, True]
    assert (prior.tail_probability(x)[:, 1:] < level).all()
    assert (prior.tail_probability(x)[:, 0] < level).double().mean() < 0.2
    # Of few pairs, sooner: five of four thousand are what is known of the tail.
    assert level == pytest.approx(5 / 4000)
    # Of contexts of the training's law, an alarm's share.
    new = flow(pairs(2000, seed=3)[1]).context_level()
    assert (new < 0.05).double().mean() == pytest.approx(0.05, abs=5 * math.sqrt(0.05 / 2000))


def test_a_flow_is_a_likelihood_in_nuts(flow):
    """Its posterior is that of the law it has learned, within five standard errors."""
    theta = torch.tensor([0.4, -0.3], dtype=torch.float64)
    x = law(theta).sample((30,))

    def model(make):
        zero = torch.zeros(2, dtype=torch.float64)
        at = pyro.sample("theta", dist.Normal(zero, 1.0).to_event(1))
        with pyro.plate("n", 30):
            pyro.sample("x", make(at), obs=x)

    found = []
    for make in (lambda at: flow(at).expand([30]), lambda at: law(at)):
        pyro.set_rng_seed(0)
        mcmc = MCMC(
            NUTS(lambda make=make: model(make), jit_compile=False), 150, 100, disable_progbar=True,
            initial_params={"theta": theta.clone()},
        )  # fmt: skip
        mcmc.run()
        found.append(mcmc.get_samples()["theta"])
    ours, known = found
    # At least 30 effective draws each, and a tiny budget's error of learning.
    error = known.std(0) * 5 * math.sqrt(2 / 30)
    assert ((ours.mean(0) - known.mean(0)).abs() < error).all()


def test_bounds_hold_for_both(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rate = torch.rand(1500, 1, generator=generator, dtype=torch.float64) + 0.1
    x = rate * torch.randn(1500, 1, generator=generator, dtype=torch.float64).exp()
    flow = pyro_stad.fit(
        x, context=rate, bounds={"x[0]": (0, None)}, context_bounds=[(0, None)], budget="tiny",
        progress=False, dtype=torch.float64,
    )  # fmt: skip
    prior = flow(torch.tensor([0.5], dtype=torch.float64))
    assert (prior.sample((100,)) > 0).all()
    assert prior.log_prob(torch.tensor([[-1.0]], dtype=torch.float64)) == -math.inf
    at = torch.tensor([[0.3], [0.6], [1.2]], dtype=torch.float64)
    known = dist.LogNormal(math.log(0.5), 1.0).log_prob(at[:, 0])
    torch.testing.assert_close(prior.log_prob(at), known, rtol=0, atol=0.2)
    with pytest.raises(ValueError, match="finite and within its bounds"):
        flow(torch.tensor([-0.5], dtype=torch.float64))
    # Rounding puts a context on its bound, in the middle of a chain: it is just inside.
    assert torch.isfinite(flow(torch.zeros(1, dtype=torch.float64)).log_prob(at)).all()
    flow.save(tmp_path / "flow.safetensors")
    again = pyro_stad.load(tmp_path / "flow.safetensors")
    assert torch.equal(again(at[:1]).log_prob(at), flow(at[:1]).log_prob(at))


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, TypeError, "the context is missing"),
        (torch.zeros(3), ValueError, r"must have shape \(..., 2\), for u, v; got \(3,\)"),
        (torch.tensor([0.0, math.nan]), ValueError, "must be finite"),
        ([0.0, 1.0], TypeError, "must be a tensor or a mapping"),
        ({"u": torch.zeros(())}, ValueError, r"must have the variables \['u', 'v'\]"),
    ],
)
def test_a_wrong_context_has_a_message_that_helps(flow, context, error, message):
    with pytest.raises(error, match=message):
        flow(context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": torch.zeros(3, 2)}, "a row for each sample; got 3 rows for 200"),
        ({"context": torch.full((200, 1), math.nan)}, "`context` must be finite"),
        ({"context": torch.ones(200, 1)}, "is constant"),
        ({"path": "cnf"}, "must be a Gaussian one"),
        ({"bounds": ["periodic", None]}, "can't be periodic"),
        ({"context_bounds": [(0, 1), (0, 1)]}, r"`context_bounds` of context\[0\] are"),
    ],
)
def test_pairs_that_cannot_be_learned_are_refused(change, message):
    x, context = pairs(200)
    options = {"context": context, "budget": "tiny", "progress": False} | change
    with pytest.raises(ValueError, match=message):
        pyro_stad.fit(x, **options)


def test_what_the_context_tells_has_no_density():
    x, context = pairs(200)
    with pytest.raises(ValueError, match=r"x\[0\] is a linear function of the context"):
        pyro_stad.fit(
            torch.stack([context.sum(1), x[:, 1]], 1), context=context, budget="tiny",
            progress=False,
        )  # fmt: skip


def test_what_is_of_the_flow_is_refused_for_one_context(flow):
    prior = flow(torch.zeros(2, dtype=torch.float64))
    for call in (prior.save, prior.calibrate, prior.to, prior.with_likelihood):
        with pytest.raises(NotImplementedError, match="say flow"):
            call(None)
    with pytest.raises(NotImplementedError, match="the mass inside a region changes"):
        prior.truncate(lambda t: t["a"] > 0)
    with pytest.raises(ValueError, match="knows no error of learning"):
        prior.learning_error(torch.zeros(2, dtype=torch.float64))
    # It is another one for every context: nobody may ask the first of them for all.
    assert find_flow(prior) is None
    with pytest.raises(ValueError, match="must be a way to the density of this flow's own"):
        flow.with_likelihood(3)
    with pytest.raises(ValueError, match="are for a `context`"):
        pyro_stad.fit(torch.randn(200, 1), context_names=["u"])
