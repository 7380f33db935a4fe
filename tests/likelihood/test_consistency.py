"""Path consistency: the constant curve learns the flow's density, and the flow keeps its own."""

import copy

import pytest
import torch

from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.likelihood import Constant, FlowODE, SteinPath, make_consistent
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from pyro_stad.teacher import PathField
from pyro_stad.training import TrainingSettings

SETTINGS = TrainingSettings(150, batch_size=64, learning_rate=5e-3, validate_every=50, patience=0)


def inconsistent_flow(seed=0):
    """Return a flow whose field has no density: an untrained network that is not zero."""
    torch.manual_seed(seed)
    field = PathField(OptimalTransport(), 2, width=16, depth=2)
    head = TrunkHead.for_field(field)
    with torch.no_grad():
        for parameter in (*field.parameters(), *head.parameters()):
            parameter.add_(0.15 * torch.randn_like(parameter))
    return FlowODE(field, Stein(head), RK4(4))


def trained(flow, count=600):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 * count, 2, generator=generator)
    kept, held = Batches(x[:count]), Batches(x[count:])
    return make_consistent(flow, kept, held, SETTINGS, generator=generator, progress=False)


def rms(a, b):
    return (a - b).square().mean().sqrt()


def test_the_curve_agrees_with_the_flow_on_fresh_points_and_the_flow_is_left_alone():
    flow = inconsistent_flow()
    fresh = torch.randn(500, 2, generator=torch.Generator().manual_seed(9))
    before = flow.log_prob(fresh)
    state = copy.deepcopy(flow.state_dict())
    plain = SteinPath(flow.field, flow.divergence, flow.solver, Constant(), 16)
    path, history = trained(flow)
    assert torch.equal(flow.log_prob(fresh), before)
    assert all(torch.equal(state[k], v) for k, v in flow.state_dict().items())
    untrained = rms(plain.log_prob(fresh), before)
    assert untrained > 0.1
    assert rms(path.log_prob(fresh), before) < 0.5 * untrained
    assert history.losses[-1] < history.losses[0]
    assert repr(path) == "SteinPath(Stein(TrunkHead), Constant(), nodes=16, made consistent)"


def test_what_comes_back_is_frozen_fused_and_flows_as_before():
    flow = inconsistent_flow()
    path, _ = trained(flow, 100)
    x = torch.randn(3, 2, requires_grad=True)
    assert path.fused.ready(x)
    assert torch.equal(path.push(x), flow.push(x))
    assert not any(p.requires_grad for p in path.parameters())
    fused, plain = path.log_prob(x), path._log_prob_at_end(*path._follow_and_integrate(
        x * path.field.data_scale
    ))  # fmt: skip
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-10)


def test_only_a_distilled_divergence_can_be_copied_and_trained():
    flow = inconsistent_flow()
    with pytest.raises(TypeError, match=r"must have a distilled divergence; got Exact\(\)"):
        trained(FlowODE(flow.field, Exact(), flow.solver))
