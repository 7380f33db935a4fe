"""The battery: what Pyro asks of a distribution, asked of every prior."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit
from torch.distributions import constraints

from pyro_stad.divergence import Exact
from pyro_stad.fields import Gate
from pyro_stad.likelihood import CURVES, Correction, DistilledDensity, FlowODE, SteinPath
from pyro_stad.ode import RK4, Dopri5


@pytest.fixture(params=["bounded", "free", "constant path", "coarse path", "distilled"])
def prior(request, tiny_prior, free_prior):
    """Every likelihood, and bounds, meet the same battery."""
    if request.param in ("bounded", "free"):
        return tiny_prior if request.param == "bounded" else free_prior
    flow = tiny_prior.likelihood
    parts = flow.field, flow.divergence, flow.solver
    if request.param == "distilled":
        correction = Correction(3, 8, 2).double()
        torch.nn.init.normal_(correction.out.weight, std=0.2)
        return tiny_prior.with_likelihood(DistilledDensity(*parts, correction, Gate(2.0, 3.5)))
    return tiny_prior.with_likelihood(SteinPath(*parts, CURVES[request.param.split()[0]]()))


def exact(prior, steps=32):
    return prior.with_likelihood(FlowODE(prior.likelihood.field, Exact(), RK4(steps)))


def test_shapes(prior):
    size = len(prior.names)
    assert prior.event_shape == (size,)
    assert prior.batch_shape == ()
    assert prior.event_dim == 1
    assert prior.has_rsample
    assert prior.sample().shape == (size,)
    assert prior.sample((4, 2)).shape == (4, 2, size)
    assert prior.log_prob(prior.sample((4, 2))).shape == (4, 2)
    assert prior.log_prob(prior.sample()).shape == ()


def test_is_a_torch_distribution_and_a_transformed_one(prior):
    assert isinstance(prior, dist.TorchDistribution)
    assert isinstance(prior, torch.distributions.TransformedDistribution)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1,)])
@pytest.mark.parametrize("container", [torch.Size, tuple, list])
def test_expand(prior, shape, container):
    expanded = prior.expand(container(shape))
    assert type(expanded) is type(prior)
    assert expanded.batch_shape == shape
    assert expanded.event_shape == prior.event_shape
    value = expanded.sample((5,))
    assert value.shape == (5, *shape, len(prior.names))
    torch.testing.assert_close(
        expanded.log_prob(value), prior.log_prob(value), rtol=1e-12, atol=1e-12
    )
    assert expanded.likelihood is prior.likelihood


def test_expand_again_and_illegally(prior):
    twice = prior.expand((1, 3)).expand((2, 3))
    assert twice.batch_shape == (2, 3)
    with pytest.raises(RuntimeError):
        prior.expand((3,)).expand((4,))
    assert prior.expand_by((6,)).batch_shape == (6,)
    assert prior.expand((3,)).log_prob(prior.sample()).shape == (3,)


def test_mask_and_to_event(prior):
    value = prior.expand((3,)).sample()
    mask = torch.tensor([True, False, True])
    masked = prior.expand((3,)).mask(mask).log_prob(value)
    torch.testing.assert_close(masked, torch.where(mask, prior.log_prob(value), 0.0))
    event = prior.expand((3,)).to_event(1)
    assert event.event_shape == (3, len(prior.names))
    torch.testing.assert_close(event.log_prob(value), prior.log_prob(value).sum())
    assert prior.expand((3,)).mask(False).log_prob(value).abs().max() == 0


def test_plates(prior):
    def model():
        with pyro.plate("n", 5):
            return pyro.sample("x", prior)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (5, len(prior.names))
    assert trace.nodes["x"]["log_prob"].shape == (5,)


def test_support(prior):
    value = prior.sample((200,))
    assert prior.support.check(value).all()
    assert prior.support.event_dim == 1
    if prior.bounds is None:
        assert prior.support is constraints.real_vector
    else:
        assert not prior.support.check(-value).any()


def test_discrete_methods_are_refused(prior):
    assert not prior.has_enumerate_support
    with pytest.raises(NotImplementedError):
        prior.enumerate_support()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_are_the_same_distribution(prior, duplicate):
    twin, value = duplicate(prior), prior.sample((7,))
    assert torch.equal(twin.log_prob(value), prior.log_prob(value))
    assert twin.names == prior.names
    assert torch.equal(*(_seeded(p) for p in (prior, twin)))


def _seeded(prior):
    torch.manual_seed(5)
    return prior.sample((3,))


def test_conversion_of_dtype(prior):
    single, value = prior.to(torch.float32), prior.sample((50,))
    assert single.sample().dtype == torch.float32
    torch.testing.assert_close(
        single.log_prob(value.float()).double(), prior.log_prob(value), rtol=1e-3, atol=1e-3
    )
    assert prior.expand((3,)).to(torch.float32).batch_shape == (3,)


def test_a_field_that_is_trained_stays_so(prior):
    """A prior has networks that are trained no more; the caller's own are left as they were."""
    likelihood = FlowODE(copy.deepcopy(prior.likelihood.field), Exact(), RK4(8))
    likelihood.requires_grad_(True).train()
    made = prior.with_likelihood(likelihood)
    assert all(parameter.requires_grad for parameter in likelihood.parameters())
    assert all(module.training for module in likelihood.modules())
    for part in (made.likelihood, made.transport):
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not any(module.training for module in part.modules())
    assert made.transport.field is made.likelihood.field
    x = prior.sample((3,))
    torch.testing.assert_close(made.log_prob(x), exact(prior, 8).log_prob(x))


def test_reparametrised_samples_carry_gradients(prior):
    base = torch.zeros(len(prior.names), requires_grad=True)
    value = base
    for transform in prior.transforms:
        value = transform(value)
    (gradient,) = torch.autograd.grad(value.sum(), base)
    assert (gradient != 0).all()
    assert prior.rsample().shape == prior.event_shape


def test_transforms_agree_with_log_prob(prior):
    """The stock route, pull and two log-determinants, gives the same density."""
    value = prior.sample((9,))
    stock = torch.distributions.TransformedDistribution(prior.base_dist, prior.transforms)
    torch.testing.assert_close(stock.log_prob(value), prior.log_prob(value), rtol=1e-6, atol=1e-4)


def test_samples_fit_log_prob(prior):
    """Pyro's goodness of fit, at its failure rate of 2e-5, with the exact trace on a fine grid."""
    fine = exact(prior)
    with torch.no_grad():
        samples = fine.sample((4_000,))
        probs = fine.log_prob(samples).exp()
    assert auto_goodness_of_fit(samples, probs) > 2e-5


def test_bounded_density_has_unit_mass():
    """The bijection's and the whitening's log-determinants, by quadrature in two dimensions."""
    import pyro_stad
    from tests.oracles import mixture_sample

    values = mixture_sample(400, 2, seed=8)
    values = torch.stack([5 * torch.sigmoid(values[:, 0]), 40 * values[:, 1].exp()], dim=1)
    prior = pyro_stad.fit(
        values,
        bounds=[(0, 5), (0, None)],
        budget="tiny",
        progress=False,
        dtype=torch.float64,
    )
    u, log_v = torch.linspace(0.001, 4.999, 400), torch.linspace(-1.5, 9.0, 400)
    grid = torch.cartesian_prod(u, log_v.exp())
    density = exact(prior, 8).log_prob(grid).exp() * grid[:, 1]
    mass = density.sum() * (u[1] - u[0]) * (log_v[1] - log_v[0])
    assert abs(mass - 1) < 0.01


def test_gradient_matches_differences(prior):
    value = prior.sample((3,)).requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, (value,), rtol=1e-4)


def test_same_value_in_every_context(prior):
    value = prior.sample((6,))
    expected = prior.log_prob(value)
    with torch.inference_mode():
        assert torch.equal(prior.log_prob(value), expected)
    with torch.no_grad():
        assert torch.equal(prior.log_prob(value), expected)
    strided = torch.stack([value, value], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(prior.log_prob(strided), expected)
    repeated = value[:1].expand(6, -1)
    torch.testing.assert_close(prior.log_prob(repeated), expected[:1].expand(6))
    torch.testing.assert_close(torch.vmap(prior.log_prob)(value), expected, rtol=0, atol=1e-6)
    slope = torch.func.vmap(torch.func.grad(lambda x: prior.log_prob(x)))(value)
    leaf = value.clone().requires_grad_()
    (expected_slope,) = torch.autograd.grad(prior.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(slope, expected_slope, rtol=0, atol=1e-6)


def test_deterministic_and_quiet(prior):
    value = prior.sample((6,))
    state = torch.get_rng_state()
    first = prior.log_prob(value)
    assert torch.equal(prior.log_prob(value), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_repr_and_summary_show_the_approximation(prior):
    assert "(Stein(TrunkHead), " in repr(prior)
    audited = prior.calibration is not None
    assert ("sd against exact" in repr(prior)) == audited
    shown = (
        ("bias", "normaliser", "Stein residual", "held-out points")
        if audited
        else ("not calibrated",)
    )
    for part in (*shown, *prior.names):
        assert part in prior.summary()


def test_unpack_gives_the_names_back(tiny_prior):
    parts = tiny_prior.unpack(tiny_prior.sample((4,)))
    assert list(parts) == ["scale", "shift", "slope"]
    assert all(part.shape == (4,) for part in parts.values())
    one = tiny_prior.unpack(tiny_prior.sample())
    assert all(part.shape == () for part in one.values())


def test_tail_probability_flags_what_was_never_seen(free_prior):
    """Silent failure 5: one in a thousand of its own draws, and all points five times inflated."""
    inside = free_prior.sample((5_000,))
    # Binomial with mean 5: more than 20 has odds of 1e-7.
    assert (free_prior.tail_probability(inside) < 1e-3).sum() <= 20
    centre = inside.mean(0)
    far = centre + 8 * torch.nn.functional.normalize(inside[:50] - centre, dim=-1)
    assert (free_prior.tail_probability(far) < 1e-3).all()


def test_adaptive_solver_in_a_prior(free_prior):
    reference = free_prior.with_likelihood(
        FlowODE(free_prior.likelihood.field, Exact(), Dopri5(1e-8, 1e-8))
    )
    value = free_prior.sample((8,))
    torch.testing.assert_close(
        reference.log_prob(value), exact(free_prior, 64).log_prob(value), rtol=0, atol=1e-3
    )


def test_normaliser_of_the_audit_is_near_one(tiny_prior):
    audit = tiny_prior.calibration.audit
    assert abs(audit.normaliser - 1) < 0.05 + 4 * audit.normaliser_error
    assert math.isfinite(audit.solver_error)
