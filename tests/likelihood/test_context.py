"""A context goes through field, divergence, likelihood and transport, row by row."""

import pytest
import torch

from pyro_stad import FlowPrior, from_velocity
from pyro_stad.data import Batches, Layout
from pyro_stad.divergence import Exact, Hutchinson
from pyro_stad.fields import ConditionalGaussianField, Gate
from pyro_stad.learn import TrainingSettings, distil_density
from pyro_stad.likelihood import (
    Coarse,
    Constant,
    Correction,
    DistilledDensity,
    FlowODE,
    ScoreGradient,
    SteinPath,
)
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.registry import Source, build, describe
from tests.oracles import field_on, gaussian

SIZE, GIVEN = 3, 2


def conditional():
    """Return data N(A c + b, C): where the noise end begins, their mean is nearly forgotten."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 * torch.randn(SIZE, GIVEN, generator=generator)
    factor = torch.eye(SIZE) + 0.2 * torch.randn(SIZE, SIZE, generator=generator).tril()
    bias = torch.tensor([0.3, -0.2, 0.1])
    return ConditionalGaussianField(OptimalTransport(), weight, bias, factor @ factor.mT)


WAYS = {
    "flow": lambda field: FlowODE(field, Exact(), RK4(24)),
    "flow, small chunks": lambda field: FlowODE(field, Exact(), RK4(24), chunk_size=64),
    "constant": lambda field: SteinPath(field, Exact(), RK4(4), Constant(), 64),
    "coarse": lambda field: SteinPath(field, Exact(), RK4(4), Coarse(8), 64),
}


def smeared(field):
    """Return the law with the little noise of the path's beginning: what a flow's density is of."""
    spread = torch.tan(torch.tensor(field.t_min)) ** 2
    covariance = field._axes @ torch.diag(field._spectrum + spread) @ field._axes.mT
    return ConditionalGaussianField(field.path, field.weight, field.bias, covariance)


@pytest.mark.parametrize("name", WAYS)
def test_the_density_given_a_context_is_that_of_the_conditional_law(name):
    field = conditional()
    x, context = torch.randn(20, SIZE), torch.randn(20, GIVEN)
    found = WAYS[name](field).given(context).log_prob(x)
    wanted = smeared(field).log_density(x, context)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", WAYS)
def test_gradients_reach_the_context(name):
    field = conditional()
    x, context = torch.randn(20, SIZE), torch.randn(20, GIVEN, requires_grad=True)
    found = WAYS[name](field).given(context).log_prob(x)
    (slope,) = torch.autograd.grad(found.sum(), context)
    wanted = torch.autograd.grad(smeared(field).log_density(x, context).sum(), context)[0]
    torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", WAYS)
def test_rows_keep_to_their_context(name):
    """Whatever their mates: turned round, alone, and with one context for all."""
    field = conditional()
    way = WAYS[name](field)
    x, context = torch.randn(9, SIZE), torch.randn(9, GIVEN)
    together = way.given(context).log_prob(x)
    turned = way.given(context.flip(0)).log_prob(x.flip(0)).flip(0)
    alone = torch.cat([way.given(c[None]).log_prob(row[None]) for row, c in zip(x, context)])
    # A product with the contexts rounds in its own order.
    for other in (turned, alone):
        torch.testing.assert_close(other, together, rtol=0, atol=1e-11)
    for one in (context[0], context[:1]):
        shared = way.given(one).log_prob(x)
        torch.testing.assert_close(shared[0], together[0], rtol=0, atol=1e-11)
        repeated = way.given(context[:1].expand(9, GIVEN)).log_prob(x)
        torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [16, 2048])
def test_draws_given_a_context_are_of_the_conditional_law(chunk_size):
    field = conditional()
    flow = FlowODE(field, Exact(), RK4(24), chunk_size).transport()
    z, context = torch.randn(100, SIZE), torch.randn(100, GIVEN)
    x = flow.given(context).push(z)
    torch.testing.assert_close(flow.given(context).pull(x), z, rtol=0, atol=1e-4)
    # What the flow does to noise is affine: from two contexts it differs by their means' distance.
    other = flow.given(context + 1.0).push(z)
    apart = field.weight.sum(1).expand(100, SIZE)
    torch.testing.assert_close(other - x, apart, rtol=0.02, atol=0.02)


def test_gradients_of_draws_reach_the_context():
    flow = FlowODE(conditional(), Exact(), RK4(8), chunk_size=16).transport()
    context = torch.randn(40, GIVEN, requires_grad=True)
    flow.given(context).push(torch.randn(40, SIZE)).sum().backward()
    assert context.grad.abs().min() > 0.01


def test_a_stochastic_divergence_knows_the_context():
    field = conditional()
    x, context = torch.randn(20, SIZE), torch.randn(20, GIVEN)
    flow = FlowODE(field, Hutchinson(64), RK4(8))
    exact = flow.replace(divergence=Exact())
    found, wanted = (way.given(context).log_prob(x) for way in (flow, exact))
    assert (found - wanted).abs().max() < 1.0


def test_what_is_given_is_kept_by_twins_and_flows():
    context = torch.randn(5, GIVEN)
    way = FlowODE(conditional(), Hutchinson(2), RK4(8), 64, 0.5).given(context)
    twin = way.replace(divergence=Exact())
    assert twin.context is context
    assert (twin.chunk_size, twin.log_mass) == (64, 0.5)
    assert way.transport().context is context
    assert FlowODE.of(way).context is context
    assert FlowODE(conditional(), Exact(), RK4(8)).context is None


def test_what_has_no_context_or_another_shape_is_refused():
    field = conditional()
    way = FlowODE(field, Exact(), RK4(2))
    with pytest.raises(ValueError, match=r"a row of it for each of 4 points; got \(3, 2\)"):
        way.given(torch.randn(3, GIVEN)).log_prob(torch.randn(4, SIZE))
    with pytest.raises(ValueError, match=r"`context` must have shape \(2,\)"):
        way.transport().given(torch.randn(4, GIVEN + 1)).push(torch.randn(4, SIZE))
    with pytest.raises(ValueError, match=r"use field.given\(context\)"):
        way.log_prob(torch.randn(4, SIZE))
    plain = FlowODE(field_on("ot", gaussian(SIZE)), Exact(), RK4(2))
    for part in (plain, plain.transport(), plain.field):
        with pytest.raises(TypeError, match="takes no context"):
            part.given(torch.randn(4, GIVEN))
    with pytest.raises(ValueError, match="a context of 0 numbers, the field has 3 and 2"):
        DistilledDensity(field, Exact(), RK4(2), Correction(SIZE, 8, 1), Gate(5.0, 6.0))
    correction = Correction(SIZE, 8, 1, context=GIVEN)
    distilled = DistilledDensity(field, Exact(), RK4(2), correction, Gate(5.0, 6.0))
    with pytest.raises(ValueError, match=r"use density.given\(context\)"):
        distilled.log_prob(torch.randn(4, SIZE))


def test_a_closed_field_and_a_foreign_weight_get_their_gradients_in_chunks():
    """Whatever a function closes over: a gradient is no matter of the batch's size."""
    context = torch.randn(1, GIVEN, requires_grad=True)
    weight = torch.eye(SIZE).requires_grad_()
    x = torch.randn(40, SIZE, requires_grad=True)
    fields = {
        "context": (lambda: conditional().given(context), context),
        "weight": (
            lambda: from_velocity(lambda t, y: torch.tanh(y @ weight), path="ot", features=SIZE),
            weight,
        ),
    }
    for make, asked in fields.values():
        slopes = [
            torch.autograd.grad(FlowODE(make(), Exact(), RK4(2), size).log_prob(x).sum(), asked)[0]
            for size in (16, 4096)
        ]
        assert slopes[0].abs().max() > 0.1
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)


def test_the_score_as_a_gradient_knows_the_context():
    x, context = torch.randn(20, SIZE, requires_grad=True), torch.randn(20, GIVEN)
    inner = FlowODE(conditional(), Exact(), RK4(16), chunk_size=16)
    for density in (ScoreGradient(inner).given(context), ScoreGradient(inner.given(context))):
        value = density.log_prob(x)
        torch.testing.assert_close(value, inner.given(context).log_prob(x), rtol=0, atol=1e-12)
        (slope,) = torch.autograd.grad(value.sum(), x)
        exact = smeared(conditional()).log_density(x, context)
        (wanted,) = torch.autograd.grad(exact.sum(), x)
        torch.testing.assert_close(slope, wanted, rtol=0.02, atol=0.02)


def test_a_prior_refuses_what_depends_on_a_context():
    way = FlowODE(conditional(), Exact(), RK4(2))
    for likelihood in (way, way.given(torch.zeros(GIVEN))):
        with pytest.raises(ValueError, match="depends on a context, of which a prior"):
            FlowPrior(likelihood, torch.zeros(SIZE), torch.eye(SIZE), Layout.of(["a", "b", "c"]))


@pytest.fixture(scope="module")
def distilled():
    """Return a density that has learned a law given a context, and the flow that it is of."""
    torch.set_default_dtype(torch.float64)
    field, source = conditional(), torch.Generator().manual_seed(3)
    context = torch.randn(3000, GIVEN, generator=source)
    flow = FlowODE(field, Exact(), RK4(8))
    with torch.no_grad():
        noise = torch.randn(3000, SIZE, generator=source)
        rows = torch.cat([flow.transport().given(context).push(noise), context], 1)
    settings = TrainingSettings(
        1500, batch_size=256, learning_rate=3e-3, optimiser="soap", patience=0, validate_every=250
    )
    correction = Correction(SIZE, 32, 2, source, context=GIVEN).double()
    kept, held = Batches(rows[:2500]), Batches(rows[2500:])
    density, _ = distil_density(
        flow, kept, held, settings, correction, 4000, generator=source, label="density",
        progress=False,
    )  # fmt: skip
    return density, flow


def test_a_distilled_density_learns_the_law_given_a_context(distilled):
    """One row a point; a tenth of a nat off at fresh draws, where the law itself is 1.6 wide."""
    density, flow = distilled
    context = torch.randn(500, GIVEN)
    x = flow.transport().given(context).push(torch.randn(500, SIZE))
    given = density.given(context.requires_grad_())
    found = given.log_prob(x)
    wanted = flow.given(context.detach()).log_prob(x)
    assert (found - wanted).std() < 0.1
    assert wanted.std() > 1.0
    assert given.sequential_calls() == 1
    (slope,) = torch.autograd.grad(found.sum(), context)
    other = context.detach().requires_grad_()
    exact = smeared(conditional()).log_density(x.detach(), other)
    (truth,) = torch.autograd.grad(exact.sum(), other)
    assert (slope - truth).std() < 0.3 * truth.std()
    alone = torch.cat([
        density.given(c[None]).log_prob(row[None]) for row, c in zip(x[:5], context[:5])
    ])  # fmt: skip
    torch.testing.assert_close(alone, found[:5], rtol=0, atol=1e-11)


def test_a_distilled_density_with_a_context_is_described_and_built(distilled):
    density, _ = distilled
    config = describe(density, "likelihood")
    assert config["context"] == GIVEN
    parts = {"field": density.field, "divergence": Exact(), "solver": RK4(8)}
    source = Source(density.state_dict(), given={**parts, "chunk_size": 64, "log_mass": 0.0})
    again = build(config, "likelihood", source).double()
    again.load_state_dict(density.state_dict())
    x, context = torch.randn(4, SIZE), torch.randn(4, GIVEN)
    torch.testing.assert_close(
        again.given(context).log_prob(x), density.given(context).log_prob(x), rtol=0, atol=1e-12
    )
