"""Beyond its gate a field does nothing, and every density is that of the normal law."""

import math

import pytest
import torch

from pyro_stad.divergence import Exact, Hutchinson, SeparateNetwork, Stein, TrunkHead
from pyro_stad.fields import FreeFormField, Gate, PathField
from pyro_stad.likelihood import Coarse, Constant, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

FEATURES = 2
GATE = Gate(1.5, 3.0)


def wild(module, size=0.5):
    """Give a module weights with which it says large things everywhere."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module.requires_grad_(False)


def field_of(kind="path", size=0.5):
    sizes = {"width": 16, "depth": 2, "gate": GATE}
    if kind == "path":
        return wild(PathField(OptimalTransport(), FEATURES, **sizes), size)
    return wild(FreeFormField(FEATURES, **sizes), size)


DIVERGENCES = {
    "exact": lambda field: Exact(),
    "hutchinson": lambda field: Hutchinson(2),
    "head": lambda field: Stein(wild(TrunkHead.for_field(field))),
    "separate": lambda field: Stein(wild(SeparateNetwork(FEATURES, width=16, depth=2))),
}
WAYS = {
    "flow": lambda *parts: FlowODE(*parts),
    "constant": lambda *parts: SteinPath(*parts, Constant(), 16),
    "coarse": lambda *parts: SteinPath(*parts, Coarse(4), 16),
}


def points(count=64, scale=2.0):
    source = torch.Generator().manual_seed(0)
    return scale * torch.randn(count, FEATURES, generator=source, dtype=torch.float64)


def test_the_derivatives_are_those_of_the_gate_and_have_no_jump():
    squared = torch.linspace(0, 12, 1201, dtype=torch.float64).requires_grad_()
    gate = GATE.at(squared)
    (slope,) = torch.autograd.grad(gate.value.sum(), squared, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), squared)
    torch.testing.assert_close(gate.slope, slope)
    torch.testing.assert_close(gate.bend, bend)
    # The third derivative is at most 60 over the cube of the span.
    largest = 60 / (GATE.outer**2 - GATE.inner**2) ** 3
    assert gate.bend.diff().abs().max() <= 1.01 * largest * 0.01
    assert torch.equal(gate.value[squared <= GATE.inner**2].unique(), torch.ones(1).double())
    assert torch.equal(gate.value[squared >= GATE.outer**2].unique(), torch.zeros(1).double())


@pytest.mark.parametrize("kind", ["path", "free form"])
def test_the_velocity_is_the_networks_inside_and_nothing_outside(kind):
    field, x, t = field_of(kind), points(), torch.tensor(0.7)
    norm, velocity = x.norm(dim=-1), field.velocity(t, x)
    inside, outside = norm < GATE.inner, norm > GATE.outer
    assert inside.any()
    assert outside.any()
    assert torch.equal(velocity[inside], field.ungated().velocity(t, x)[inside])
    assert torch.equal(velocity[outside], torch.zeros_like(velocity[outside]))
    assert field.gate is GATE
    assert field.ungated().trunk is field.trunk


@pytest.mark.parametrize("kind", ["path", "free form"])
def test_the_exact_divergence_is_the_trace_of_the_gated_jacobian(kind):
    field, x, t = field_of(kind), points(), torch.tensor(0.7)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: field.velocity(t, row[None])[0]))(x)
    wanted = torch.diagonal(jacobians, dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(Exact()(field, t, x), wanted, rtol=1e-10, atol=1e-10)


def test_a_distilled_divergence_is_gated_in_closed_form():
    field, x = field_of(), points()
    t = torch.full((len(x),), 0.7)
    divergence = DIVERGENCES["head"](field)
    velocity, learned = divergence.velocity_and_divergence(field.ungated(), t, x)
    gate = GATE.at(x.square().sum(-1))
    wanted = gate.value * learned + 2 * gate.slope * (x * velocity).sum(-1)
    torch.testing.assert_close(divergence(field, t, x), wanted)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("way", WAYS)
def test_beyond_the_gate_every_density_is_the_normal_one(way, divergence):
    field = field_of()
    likelihood = WAYS[way](field, DIVERGENCES[divergence](field), RK4(8)).double()
    direction = torch.nn.functional.normalize(points(), dim=-1)
    # Data are scaled on their way into the field's coordinates.
    x = torch.linspace(1.001, 40, 64, dtype=torch.float64)[:, None] * GATE.outer * direction
    x = x / field.data_scale
    normal = -0.5 * (field.data_scale * x).square().sum(-1)
    normal = normal + FEATURES * (math.log(field.data_scale) - 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(likelihood.log_prob(x), normal, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["path", "free form"])
def test_the_exact_flow_of_a_gated_field_has_mass_one(kind):
    # Tame enough for the grids of time and space; what is left is their error.
    flow = FlowODE(field_of(kind, 0.2), Exact(), RK4(32)).double()
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    log_prob = flow.log_prob(torch.cartesian_prod(axis, axis))
    mass = log_prob.exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 5e-3


def test_a_gate_leaves_the_samples_alone_and_a_normal_cloud_too():
    normal = torch.randn(5000, 5, generator=torch.Generator().manual_seed(0))
    gate = Gate.around(normal)
    # The quantile of a thousandth, seen by five samples, is known to a tenth or so.
    assert gate.inner == pytest.approx(math.sqrt(5) + 2.3, abs=0.3)
    assert (normal.norm(dim=-1) > gate.inner).double().mean() <= 1e-3
    wide = Gate.around(1.1 * normal)
    share = (1.1 * normal.norm(dim=-1) > wide.inner).double().mean()
    assert share == pytest.approx(1e-3, abs=3e-4)


def test_a_cloud_that_reaches_much_further_than_a_normal_one_gets_no_gate():
    heavy = torch.distributions.StudentT(torch.tensor(3.0, dtype=torch.float64))
    torch.manual_seed(0)
    cloud = heavy.sample((5000, 2))
    assert Gate.around(cloud / cloud.std(0)) is None


@pytest.mark.parametrize("radii", [(0.0, 1.0), (2.0, 2.0), (1.0, math.inf), (math.nan, 1.0)])
def test_radii_that_make_no_gate_are_refused(radii):
    with pytest.raises(ValueError, match="positive, finite and increase"):
        Gate(*radii)
