"""The distilled density: its formula, its derivatives, its tail, and rows that stand alone."""

import math
import subprocess
import sys

import pytest
import torch
from torch.distributions import Normal

from pyro_stad.data import Standardise
from pyro_stad.divergence import Exact
from pyro_stad.fields import FreeFormField, Gate, PathField
from pyro_stad.likelihood import Correction, DistilledDensity
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

FEATURES = 3
# Of points from N(0, I): all within, some in the rim and beyond, and most of them beyond.
GATES = {"open": Gate(9.0, 10.5), "half": Gate(1.0, 2.5), "shut": Gate(0.5, 1.0)}


def density_of(
    depth=2, *, gate="open", dtype=torch.float64, frozen=True, chunk_size=8192, features=FEATURES
):
    """Return a distilled density whose correction has no weight of zero."""
    torch.manual_seed(depth)
    field = PathField(OptimalTransport(t_min=0.2), features, width=8, depth=1)  # scales data
    correction = Correction(features, 16, depth)
    with torch.no_grad():
        for parameter in correction.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    density = DistilledDensity(field, Exact(), RK4(2), correction, GATES[gate], chunk_size)
    return density.to(dtype).requires_grad_(not frozen)


def points(count, dtype=torch.float64, features=FEATURES):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0), dtype=dtype)


def normal(density, x):
    """Return the normal law, in the field's own coordinates, at data ``x``."""
    scale = density.field.data_scale
    one = Normal(torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype))
    return one.log_prob(x * scale).sum(-1) + FEATURES * math.log(scale)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("gate", GATES)
def test_it_is_the_normal_law_and_a_gated_perceptron(depth, gate):
    density, x = density_of(depth, gate=gate), points(7)
    assert abs(density.field.data_scale - 1) > 0.01
    h = y = x * density.field.data_scale
    for layer in density.correction.layers:
        seen = h @ layer.weight.mT + layer.bias
        h = seen / (1 + (-seen).exp())
    h = h @ density.correction.out.weight[0] + density.correction.out.bias
    g = density.gate.at(y.square().sum(-1)).value
    density = density.replace(log_mass=0.25)
    wanted = normal(density, x) + g * h - 0.25
    torch.testing.assert_close(density.log_prob(x), wanted, rtol=0, atol=1e-12)


def test_untrained_it_is_the_normal_law_everywhere():
    field = PathField(OptimalTransport(), FEATURES, width=8, depth=1)
    density = DistilledDensity(field, Exact(), RK4(2), Correction(FEATURES, 8, 2), GATES["half"])
    x = 3 * points(20)
    torch.testing.assert_close(density.double().log_prob(x), normal(density, x))


@pytest.mark.parametrize("gate", GATES)
def test_beyond_the_gate_it_is_the_normal_law(gate):
    density = density_of(gate=gate)
    direction = torch.nn.functional.normalize(points(5))
    x = direction * (GATES[gate].outer / density.field.data_scale)
    for distance in (1.0, 1.01, 3.0, 1e6):
        at = (distance * x).requires_grad_()
        value = density.log_prob(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
        torch.testing.assert_close(value, normal(density, at), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(slope, -(density.field.data_scale**2) * at, rtol=1e-9, atol=1e-9)
    inside = density.log_prob(0.5 * x) - normal(density, 0.5 * x)
    assert inside.abs().min() > 1e-3


@pytest.mark.parametrize("gate", GATES)
def test_numerical_first_and_second_derivatives(gate):
    density, x = density_of(gate=gate), points(4).requires_grad_()
    assert torch.autograd.gradcheck(density.log_prob, x)
    assert torch.autograd.gradgradcheck(density.log_prob, x)


@pytest.mark.parametrize("gate", GATES)
def test_derivatives_go_through_the_whitening(gate):
    density, v = density_of(gate=gate), points(4).requires_grad_()
    tril = torch.eye(FEATURES) + 0.3 * torch.ones(FEATURES, FEATURES).tril(-1)
    whitening = Standardise(torch.arange(FEATURES) / 10, tril)

    def before(v):
        return density.log_prob_before(whitening, v)

    assert torch.equal(before(v), density.log_prob(whitening.inv(v)))
    assert torch.autograd.gradcheck(before, v)
    assert torch.autograd.gradgradcheck(before, v)
    torch.testing.assert_close(torch.vmap(lambda row: before(row[None])[0])(v), before(v))


@pytest.mark.parametrize("gate", GATES)
def test_transforms_give_what_autograd_gives(gate):
    density, x = density_of(gate=gate), points(5)

    def one(row):
        return density.log_prob(row[None])[0]

    torch.testing.assert_close(torch.vmap(one)(x), density.log_prob(x), rtol=0, atol=1e-12)
    leaf = x.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(density.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(torch.vmap(torch.func.grad(one))(x), slopes, rtol=0, atol=1e-11)
    wanted = torch.autograd.functional.hessian(one, x[0])
    torch.testing.assert_close(torch.func.hessian(one)(x[0]), wanted, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_is_right_on_new_points_and_its_curvature_is_no_number(dtype, gate):
    density, x = density_of(dtype=dtype, gate=gate), points(3, dtype).requires_grad_()
    traced = torch.jit.trace(lambda row: density.log_prob(row), x[:1], check_trace=False)
    values = [torch.cat([f(row[None]) for row in x]) for f in (traced, density.log_prob)]
    slopes = [torch.autograd.grad(v.sum(), x, create_graph=True)[0] for v in values]
    small = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(*values, rtol=small, atol=small)
    torch.testing.assert_close(*slopes, rtol=small, atol=10 * small)
    (curvature,) = torch.autograd.grad(slopes[0][0, 0], x)
    assert curvature[0, 0].abs() > 1e30


@pytest.mark.parametrize(
    ("dtype", "features"),
    [*((torch.float32, d) for d in (1, 3, 5, 6, 7, 9)), *((torch.float64, d) for d in (2, 3, 6))],
)
def test_rows_do_not_see_each_other(dtype, features):
    density, x = density_of(3, dtype=dtype, features=features), points(37, dtype, features)

    def both(rows):
        leaf = rows.clone().requires_grad_()
        value = density.log_prob(leaf)
        assert torch.equal(density.log_prob(rows), value)
        return torch.cat([value[:, None], torch.autograd.grad(value.sum(), leaf)[0]], 1)

    together = both(x)
    assert torch.equal(both(x.flip(0)).flip(0), together)
    assert torch.equal(torch.cat([both(row[None]) for row in x]), together)
    # One point beyond the gate makes all of them go through it: no bit may change.
    assert torch.equal(both(torch.cat([x, x.new_full((1, features), 1e4)]))[:-1], together)


def test_chunks_change_nothing():
    x = points(100, torch.float32).requires_grad_()
    values, slopes = [], []
    for size in (8192, 32):
        density = density_of(dtype=torch.float32, chunk_size=size)
        values.append(density.log_prob(x))
        slopes.append(torch.autograd.grad(values[-1].sum(), x)[0])
        with torch.no_grad():
            assert torch.equal(density.log_prob(x), values[-1])
    assert torch.equal(*values)
    assert torch.equal(*slopes)


def test_what_comes_back_is_the_caller_s_to_write_to():
    density, x = density_of(), points(5).requires_grad_()
    value = density.log_prob(x)
    before = value.detach().clone()
    value += 1.0
    (slopes,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(value, before + 1.0)
    assert torch.equal(slopes, torch.autograd.grad(density.log_prob(x).sum(), x)[0])


def test_no_points_at_all():
    none = points(0).requires_grad_()
    (slopes,) = torch.autograd.grad(density_of().log_prob(none).sum(), none)
    assert slopes.shape == (0, FEATURES)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_autocast_changes_no_bit_in_a_trace_either():
    density, x = density_of(dtype=torch.float32), points(3, torch.float32)
    traced = torch.jit.trace(lambda row: density.log_prob(row), x, check_trace=False)
    expected = density.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(traced(x), traced(x))
        torch.testing.assert_close(traced(x), expected, rtol=1e-6, atol=1e-6)


def test_the_module_can_be_loaded_again():
    """In a process of its own: classes that are loaded twice are not each other's."""
    name = DistilledDensity.__module__
    script = f"import importlib; importlib.reload(importlib.import_module({name!r}))"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_training_reaches_the_correction():
    density = density_of(frozen=False)
    density.log_prob(points(2)).sum().backward()
    for parameter in density.correction.parameters():
        assert parameter.grad.abs().sum() > 0


def test_any_field_will_do_and_noise_is_the_flow_s():
    field = FreeFormField(FEATURES, width=8, depth=1)
    density = DistilledDensity(field, Exact(), RK4(2), Correction(FEATURES, 8, 1), GATES["half"])
    density, x = density.double(), points(4)
    flow = density.transport()
    torch.testing.assert_close(flow.push(flow.pull(x)), x, rtol=0, atol=1e-6)
    assert density.sequential_calls() == 1
    assert repr(density) == "DistilledDensity(Exact(), RK4(steps=2), 1 x 8 units)"


def test_what_does_not_fit_is_refused():
    field = PathField(OptimalTransport(), FEATURES, width=8, depth=1)
    parts, correction = (field, Exact(), RK4(2)), Correction(FEATURES, 8, 1)
    with pytest.raises(TypeError, match="`correction` must be a Correction; got None"):
        DistilledDensity(*parts, None, GATES["open"])
    with pytest.raises(TypeError, match="`gate` must be a Gate, such as .*; got 4.0"):
        DistilledDensity(*parts, correction, 4.0)
    with pytest.raises(ValueError, match="takes points of 2 features .* the field has 3 and 0"):
        DistilledDensity(*parts, Correction(2, 8, 1), GATES["open"])
    with pytest.raises(ValueError, match="`width` must be a multiple of 4; got 10"):
        Correction(2, 10, 1)
    for name in ("features", "width", "depth"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1"):
            Correction(**{"features": 2, "width": 2, "depth": 2, name: 0})
