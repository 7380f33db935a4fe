"""A real foreign network: the photometric noise model of pop-cosmos, against golden densities.

The network is conditional, and each point has a condition of its own. The golden values
are exact-trace log-densities of the standardised variable at t_min = 1e-3, without the scale of the
path's data end.
"""

import math

import numpy as np
import pytest
import torch

from pyro_stad import from_score
from pyro_stad.divergence import Exact, Hutchinson
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4, Dopri5
from pyro_stad.paths import VPLinear

NETWORK = "model__score_model__model__"


def score_network(weights):
    """Return the network's score as a function of (t, x, condition)."""
    tensors = {name: torch.from_numpy(weights[name]).double() for name in weights.files}
    layers = [
        tuple(tensors[f"{NETWORK}NN__{i}__{kind}"] for kind in ("weight", "bias")) for i in range(6)
    ]

    def score(t, x, condition):
        phase = 2 * math.pi * t[:, None] * tensors[f"{NETWORK}W"]
        h = torch.cat([phase.sin(), phase.cos(), x, condition], dim=-1)
        for weight, bias in layers[:-1]:
            h = torch.tanh(h @ weight.mT + bias)
        weight, bias = layers[-1]
        return h @ weight.mT + bias

    return score


def points(shared_data):
    """Return the standardised points and conditions, and their golden densities."""
    golden = np.load(shared_data / "popcosmos" / "noiseModel_golden.npz")
    weights = np.load(shared_data / "popcosmos" / "noiseModel_weights.npz")
    x, condition = (
        torch.from_numpy((golden[name] - weights[shift]) / weights[scale]).double()
        for name, shift, scale in (
            ("x", "model__shift", "model__scale"),
            ("cond", "model__conditional_shift", "model__conditional_scale"),
        )
    )
    return weights, x, condition, torch.from_numpy(golden["logp_standardised"])


@pytest.mark.slow
def test_golden_log_densities(shared_data):
    """To a thousandth of a nat, with all conditions in one call."""
    weights, x, condition, known = points(shared_data)
    field = from_score(
        score_network(weights), path=VPLinear(t_min=1e-3), features=26, context_shape=26
    )
    # Adaptive: this network's score is rough in the angle near the data end.
    flow = FlowODE(field, Exact(), Dopri5(1e-7, 1e-7)).given(condition)
    found = flow.log_prob(x / field.data_scale) - 26 * math.log(field.data_scale)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-3)


def test_a_foreign_network_sees_the_context_and_passes_gradients_to_it(shared_data):
    weights, x, condition, _ = points(shared_data)
    field = from_score(score_network(weights), path="vp", features=26, context_shape=(26,))
    with pytest.raises(ValueError, match="depends on a context"):
        field.velocity(torch.tensor(0.5), x)
    condition.requires_grad_()
    flow = FlowODE(field, Hutchinson(2), RK4(4)).given(condition)
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), condition)
    assert (slope.abs().sum(-1) > 0).all()
    # Row by row, the same.
    alone = torch.cat([flow.given(condition[i]).log_prob(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, flow.log_prob(x)[:3], rtol=0, atol=1e-9)
    wrong = from_score(lambda t, x, c: c[:, :3], path="vp", features=26, context_shape=26)
    with pytest.raises(ValueError, match=r"called as function\(t, x, context\)"):
        wrong.given(condition).velocity(torch.tensor(0.5), x)
