"""The fused Stein integral is the plain one: values, first and second derivatives, never stale."""

import copy
import io

import pytest
import torch

from pyro_stad.divergence import SeparateNetwork, Stein, TrunkHead
from pyro_stad.fields import Gate, PathField
from pyro_stad.likelihood import Coarse, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport

FEATURES = 3
GATES = {"open": None, "gated": Gate(1.0, 2.5)}


def path_of(depth=3, *, frozen=True, dtype=torch.float64, gate=GATES["open"], features=FEATURES):
    """Return a Stein path through networks of which no part is zero."""
    torch.manual_seed(depth)
    field = PathField(OptimalTransport(), features, width=16, depth=depth, gate=gate)
    divergence = Stein(TrunkHead.for_field(field))
    path = SteinPath(field, divergence, RK4(2), nodes=16)
    with torch.no_grad():
        for parameter in path.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return path.to(dtype).requires_grad_(not frozen).freeze()


def points(count, dtype=torch.float64, features=FEATURES):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(0), dtype=dtype)


def plain(path, x):
    """Return the log-density by the way that any divergence takes."""
    return path._log_prob_at_end(*path._follow_and_integrate(x * path.field.data_scale))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("gate", GATES)
def test_values_and_gradients_are_those_of_the_plain_way(depth, count, gate):
    path, x = path_of(depth, gate=GATES[gate]), points(count).requires_grad_()
    assert path.fused.serves(x)
    got, wanted = path.log_prob(x), plain(path, x)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for value in (got, wanted):
        assert value.grad_fn is not None
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (got, wanted)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gate", GATES)
def test_numerical_first_and_second_derivatives(gate):
    path, x = path_of(gate=GATES[gate]), points(4).requires_grad_()
    assert torch.autograd.gradcheck(path.log_prob, x)
    assert torch.autograd.gradgradcheck(path.log_prob, x)


@pytest.mark.parametrize("gate", GATES)
def test_hessians_by_functorch_are_those_of_autograd(gate):
    path, x = path_of(gate=GATES[gate]), points(1)

    def density(row):
        return path.log_prob(row[None])[0]

    wanted = torch.autograd.functional.hessian(density, x[0])
    torch.testing.assert_close(torch.func.hessian(density)(x[0]), wanted, rtol=0, atol=1e-10)


def test_a_point_beyond_the_gate_changes_no_bit_of_the_others():
    path, x = path_of(gate=Gate(3.5, 5.0), dtype=torch.float32), points(5, torch.float32)
    far = torch.cat([x, x.new_full((1, FEATURES), 30.0)])
    assert x.norm(dim=-1).max() < 3.5
    slopes = []
    for batch in (x, far):
        batch.requires_grad_()
        value = path.log_prob(batch)
        slopes.append((value[:5], *torch.autograd.grad(value.sum(), batch)))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.equal(slopes[0][1], slopes[1][1][:5])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_is_right_on_new_points_and_its_curvature_is_no_number(dtype, gate):
    path, x = path_of(dtype=dtype, gate=GATES[gate]), points(3, dtype).requires_grad_()
    traced = torch.jit.trace(lambda row: path.log_prob(row), x[:1], check_trace=False)
    values = [torch.cat([f(row[None]) for row in x]) for f in (traced, path.log_prob)]
    slopes = [torch.autograd.grad(v.sum(), x, create_graph=True)[0] for v in values]
    small = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(*values, rtol=small, atol=small)
    torch.testing.assert_close(*slopes, rtol=small, atol=10 * small)
    with torch.no_grad():
        torch.testing.assert_close(traced(x[:1]), values[1][:1], rtol=small, atol=small)
    (curvature,) = torch.autograd.grad(slopes[0][0, 0], x)
    assert curvature[0, 0].abs() > 1e30


def bias(path):
    return path.field.trunk.biases.bias


def written(path):
    with torch.no_grad():
        bias(path).add_(0.1)


def loaded(path):
    other = {name: value + 0.1 for name, value in path.state_dict().items()}
    path.load_state_dict(other)


def assigned(path):
    other = {name: value + 0.1 for name, value in path.state_dict().items()}
    path.load_state_dict(other, assign=True)
    path.requires_grad_(False)


def replaced(path):
    value = torch.nn.Parameter(bias(path) + 0.1, requires_grad=False)
    path.field.trunk.biases.bias = value


def another_head(path):
    head = TrunkHead.for_field(path.field)
    with torch.no_grad():
        head.clock.outer.bias.add_(0.3)
    path.divergence.network = head.to(bias(path)).requires_grad_(False)


def another_trunk(path):
    other = path_of(1)
    path.field.trunk.links[0] = type(path.field.trunk.links[0])(16, 16, bias=False)
    path.field.trunk.links[0].to(bias(other)).requires_grad_(False)


def another_gate(path):
    path.field.gate = Gate(0.5, 1.0)


CHANGES = {
    "another head": another_head,
    "another layer": another_trunk,
    "another gate": another_gate,
    "written": written,
    "loaded": loaded,
    "assigned": assigned,
    "replaced": replaced,
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_a_network_leaves_an_old_density(change):
    path, x = path_of(), points(4)
    before = path.log_prob(x)
    CHANGES[change](path)
    after = path.log_prob(x)
    assert (after - before).abs().min() > 1e-6
    torch.testing.assert_close(after, plain(path, x), rtol=0, atol=1e-12)
    assert path.fused.serves(x)


def test_parts_are_replaced_and_never_assigned():
    path, x = path_of(), points(4)
    before = path.log_prob(x)
    other = Stein(TrunkHead.for_field(path.field)).requires_grad_(False)
    changes = {"divergence": other, "log_mass": 0.5, "solver": RK4(3), "curve": Coarse(2)}
    changes |= {"nodes": 32, "consistent": other}
    for name, value in changes.items():
        with pytest.raises(AttributeError, match=rf"likelihood.replace\({name}=...\)"):
            setattr(path, name, value)
    torch.testing.assert_close(path.log_prob(x), before, rtol=0, atol=0)
    heavier = path.replace(log_mass=0.5).freeze()
    torch.testing.assert_close(heavier.log_prob(x), before - 0.5, rtol=0, atol=1e-12)
    another = path.replace(divergence=other).freeze()
    torch.testing.assert_close(another.log_prob(x), plain(another, x), rtol=0, atol=1e-12)
    assert (another.log_prob(x) - before).abs().min() > 1e-6


def pickled(path):
    buffer = io.BytesIO()
    torch.save(path, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "copy": copy.deepcopy,
    "pickle": pickled,
    "float": lambda path: copy.deepcopy(path).float(),
    "there and back": lambda path: copy.deepcopy(path).double().to("cpu"),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_whole_after_transforms_and_modes(how):
    """Tables that a transform or a mode had made would go with it."""
    path, x = path_of(), points(4)
    wanted = path.log_prob(x)
    torch.func.vmap(torch.func.grad(lambda row: path.log_prob(row[None])[0]))(x)
    with torch.inference_mode():
        path.log_prob(x)
    other = COPIES[how](path)
    dtype = next(other.parameters()).dtype
    found = other.log_prob(x.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)
    # A copy is another one.
    written(other)
    assert (other.log_prob(x.to(dtype)).double() - wanted).abs().min() > 1e-6
    torch.testing.assert_close(path.log_prob(x), wanted, rtol=0, atol=0)


def test_tables_made_in_inference_mode_serve_gradients():
    path, x = path_of(), points(1)
    with torch.inference_mode():
        value = path.log_prob(x).item()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(path.log_prob(leaf).sum(), leaf, create_graph=True)
    assert slope.requires_grad
    assert path.log_prob(leaf).item() == value


def test_training_takes_the_plain_way():
    path, x = path_of(frozen=False), points(2)
    assert not path.fused.serves(x)
    path.log_prob(x).sum().backward()
    assert path.field.trunk.out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("features", [3, 5, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_their_mates(dtype, features):
    path = path_of(dtype=dtype, features=features)
    x = points(40, dtype, features).requires_grad_()
    whole = path.log_prob(x)
    (slopes,) = torch.autograd.grad(whole.sum(), x)
    for row in range(40):
        one = x[row : row + 1].detach().requires_grad_()
        value = path.log_prob(one)
        assert value.item() == whole[row].item()
        assert torch.equal(torch.autograd.grad(value.sum(), one)[0][0], slopes[row])


def test_other_curves_and_networks_are_not_fused():
    path = path_of()
    assert SteinPath(path.field, path.divergence, RK4(2), Coarse(4)).freeze().fused is None
    separate = Stein(SeparateNetwork(FEATURES, width=8, depth=1))
    assert SteinPath(path.field, separate, RK4(2)).freeze().fused is None


def test_networks_of_other_kinds_are_not_fused():
    """A subclass may compute something else, which the fused pass would not know."""

    class Doubled(PathField):
        def velocity(self, t, x):
            return 2 * super().velocity(t, x)

    path = path_of()
    assert path.fused is not None
    field = Doubled(OptimalTransport(), FEATURES, width=16, depth=3)
    assert SteinPath(field, path.divergence, RK4(2)).freeze().fused is None


def test_what_trains_takes_the_plain_way_without_tables():
    """They would be made in vain for every point."""
    path, x = path_of(), points(1)
    path.requires_grad_(True)
    fused = path.fused
    for _ in range(3):
        path.log_prob(x)
    assert path.fused is fused
    assert not fused.serves(x)


def test_a_pickle_has_no_tables_that_are_copies():
    path = path_of()
    for count in range(1, 17):
        path.log_prob(points(count))
    assert path.fused.of_few
    assert not pickled(path).fused.of_few
