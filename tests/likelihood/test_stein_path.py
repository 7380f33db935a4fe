"""The Stein path against closed-form densities: every curve, every path, values and derivatives."""

import math

import pytest
import torch

from pyro_stad.divergence import Exact, SeparateNetwork, Stein, TrunkHead
from pyro_stad.fields import FreeFormField, PathField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import CURVES, Coarse, Constant, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import PATHS, OptimalTransport
from tests.oracles import field_on, gaussian

NAMES = sorted(PATHS)
CURVE_NAMES = sorted(CURVES)


def closed_form(field, x):
    """Return the density of the data at the path's data end, in data coordinates."""
    angle = torch.tensor(field.t_min)
    return field.log_density(angle, x * field.data_scale) + x.shape[1] * math.log(field.data_scale)


@pytest.mark.parametrize("curve", CURVE_NAMES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [2, 8])
@pytest.mark.parametrize("make", [gaussian, random_mixture])
def test_every_curve_gives_the_closed_form_density(curve, name, features, make):
    parts = make(features)
    field, x = field_on(name, parts), sample_mixture(parts, 64)
    path = SteinPath(field, Exact(), RK4(4), CURVES[curve](), nodes=48)
    assert (path.log_prob(x) - closed_form(field, x)).abs().max() < 2e-3


@pytest.mark.parametrize("curve", CURVE_NAMES)
def test_quadrature_converges(curve):
    """Gauss-Legendre on a smooth integrand: 32 nodes leave less than a tenth of the error of 8."""
    parts = random_mixture(4)
    field, x = field_on("ot", parts), sample_mixture(parts, 64)
    errors = [
        (SteinPath(field, Exact(), RK4(4), CURVES[curve](), nodes=n).log_prob(x)
         - closed_form(field, x)).abs().max()
        for n in (8, 32)
    ]  # fmt: skip
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("curve", CURVE_NAMES)
def test_first_and_second_derivatives_are_those_of_the_density(curve):
    parts = random_mixture(3)
    field, x = field_on("ot", parts), sample_mixture(parts, 4)
    path = SteinPath(field, Exact(), RK4(4), CURVES[curve](), nodes=48)
    for row in x:

        def density(point, log_prob):
            return log_prob(point[None])[0]

        got, wanted = (
            (
                torch.autograd.functional.jacobian(lambda p, f=f: density(p, f), row),
                torch.autograd.functional.hessian(lambda p, f=f: density(p, f), row),
            )
            for f in (path.log_prob, lambda p: closed_form(field, p))
        )
        # Derivatives of the quadrature's error are larger than it, by the inverse of the scale
        # of the mixture, here about 1 / 0.3 for each.
        torch.testing.assert_close(got[0], wanted[0], atol=0.02, rtol=0.01)
        torch.testing.assert_close(got[1], wanted[1], atol=0.1, rtol=0.05)


def network_path(curve, nodes=16, dtype=torch.float32, chunk_size=8192):
    """Return a path of a random network, which is nobody's true field, with a random head."""
    torch.manual_seed(0)
    field = PathField(OptimalTransport(), 3, 16, 2)
    head = TrunkHead.for_field(field)
    for module in (field, head):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        module.to(dtype).requires_grad_(False)
    return SteinPath(field, Stein(head), RK4(4), CURVES[curve](), nodes, chunk_size=chunk_size)


@pytest.mark.parametrize("nodes", [8, 16, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("curve", CURVE_NAMES)
def test_rows_do_not_see_each_other(curve, dtype, nodes):
    path = network_path(curve, nodes, dtype)
    x = torch.randn(37, 3, dtype=dtype)
    together = path.log_prob(x)
    assert torch.equal(path.log_prob(x), together)
    assert torch.equal(path.log_prob(x.flip(0)).flip(0), together)
    assert torch.equal(torch.cat([path.log_prob(x[:5]), path.log_prob(x[5:])]), together)
    alone = torch.cat([path.log_prob(row[None]) for row in x])
    assert torch.equal(alone, together)
    outlier = torch.cat([x, torch.full((1, 3), 1e6, dtype=dtype)])
    assert torch.equal(path.log_prob(outlier)[:-1], together)


@pytest.mark.parametrize("curve", CURVE_NAMES)
def test_chunks_change_nothing(curve):
    x = torch.randn(100, 3, dtype=torch.float32, requires_grad=True)
    whole, chunked = network_path(curve), network_path(curve, chunk_size=512)
    values = whole.log_prob(x), chunked.log_prob(x)
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(value.sum(), x)[0] for value in values]
    torch.testing.assert_close(*gradients)


def test_curves_agree_with_the_flow_only_for_a_true_field():
    """On the oracle they are one density; on a field of none they differ, and say so."""
    parts = random_mixture(3)
    true, x = field_on("ot", parts), sample_mixture(parts, 32)
    constant, coarse = (SteinPath(true, Exact(), RK4(4), c, 48) for c in (Constant(), Coarse(8)))
    assert (constant.log_prob(x) - coarse.log_prob(x)).abs().max() < 1e-2
    field = network_path("constant", dtype=torch.float64).field
    constant, coarse = (SteinPath(field, Exact(), RK4(4), c, 48) for c in (Constant(), Coarse(8)))
    assert (constant.log_prob(x) - coarse.log_prob(x)).std() > 0.05


def test_coarse_curve_near_the_flow_gives_the_flow():
    """With many steps it is the flow, and so is its density, whatever the field."""
    field = network_path("constant", dtype=torch.float64).field
    x = torch.randn(16, 3)
    flow = FlowODE(field, Exact(), RK4(64)).log_prob(x)
    errors = [
        (SteinPath(field, Exact(), RK4(4), Coarse(steps), 64).log_prob(x) - flow).abs().max()
        for steps in (4, 32)
    ]
    # Second order: eight times the steps leave a sixty-fourth, here a fortieth.
    assert errors[1] < errors[0] / 40, errors


def test_coarse_curve_and_its_slopes_belong_together():
    field = network_path("coarse", dtype=torch.float64).field
    start, step = torch.randn(2, 3), 1e-6
    times = torch.linspace(0.1, 1.5, 9)
    (before, _, _), (at, slopes, _), (after, _, _) = (
        Coarse(3).follow(field, start, times + h) for h in (-step, 0, step)
    )
    torch.testing.assert_close((after - before) / (2 * step), slopes, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(at, 0.5 * (before + after), atol=1e-6, rtol=0)


def test_what_it_refuses():
    with pytest.raises(TypeError, match="field with a score.* got FreeFormField"):
        SteinPath(FreeFormField(2, 8, 1), Exact(), RK4(4))
    field = PathField(OptimalTransport(), 2, 8, 1)
    with pytest.raises(ValueError, match="multiple of 8 and of the 1 pieces.* got 12"):
        SteinPath(field, Exact(), RK4(4), nodes=12)
    for nodes in (0, 7, 16.0):
        with pytest.raises(ValueError, match=f"`nodes` must be an integer.* got {nodes}"):
            SteinPath(field, Exact(), RK4(4), nodes=nodes)
    with pytest.raises(ValueError, match="of the 5 pieces of the curve; got 16"):
        SteinPath(field, Exact(), RK4(4), Coarse(5))
    with pytest.raises(TypeError, match="`curve` must be a curve.* got 'constant'"):
        SteinPath(field, Exact(), RK4(4), "constant")
    for steps in (0, 2.5):
        with pytest.raises(ValueError, match=f"`steps` must be an integer.* got {steps}"):
            Coarse(steps)


@pytest.mark.parametrize("curve", [Constant(), Coarse(2), Coarse(4)], ids=repr)
def test_the_calls_are_those_that_are_made(curve, monkeypatch):
    field, calls = PathField(OptimalTransport(), features=2, width=8, depth=1), []
    velocity = field.velocity
    monkeypatch.setattr(field, "velocity", lambda t, y: calls.append(1) or velocity(t, y))
    divergence = Stein(SeparateNetwork(features=2, width=8, depth=1))
    path = SteinPath(field, divergence, RK4(2), curve, nodes=16)
    path.log_prob(torch.zeros(1, 2))
    assert len(calls) == path.sequential_calls()
