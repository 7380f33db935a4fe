"""A real foreign network: the photometric noise model of pop-cosmos, against golden densities.

The network is conditional; each point is evaluated with its own condition fixed. The golden values
are exact-trace log-densities of the standardised variable at t_min = 1e-3, without the scale of the
path's data end.
"""

import math

import numpy as np
import pytest
import torch

from pyro_stad import from_score
from pyro_stad.divergence import Exact
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import Dopri5
from pyro_stad.paths import VPLinear

NETWORK = "model__score_model__model__"


def score_network(weights, condition):
    """Return the network's score as a function of (t, x) at one condition."""
    tensors = {name: torch.from_numpy(weights[name]).double() for name in weights.files}
    layers = [
        tuple(tensors[f"{NETWORK}NN__{i}__{kind}"] for kind in ("weight", "bias")) for i in range(6)
    ]

    def score(t, x):
        phase = 2 * math.pi * t[:, None] * tensors[f"{NETWORK}W"]
        h = torch.cat([phase.sin(), phase.cos(), x, condition.expand(len(x), -1)], dim=-1)
        for weight, bias in layers[:-1]:
            h = torch.tanh(h @ weight.mT + bias)
        weight, bias = layers[-1]
        return h @ weight.mT + bias

    return score


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 7])
def test_golden_log_density(index, shared_data):
    golden = np.load(shared_data / "popcosmos" / "noiseModel_golden.npz")
    weights = np.load(shared_data / "popcosmos" / "noiseModel_weights.npz")
    x, condition = (
        torch.from_numpy((golden[name][index] - weights[shift]) / weights[scale]).double()
        for name, shift, scale in (
            ("x", "model__shift", "model__scale"),
            ("cond", "model__conditional_shift", "model__conditional_scale"),
        )
    )
    score = score_network(weights, condition)
    field = from_score(score, path=VPLinear(t_min=1e-3), features=26)
    # Adaptive: this network's score is rough in the angle near the data end.
    flow = FlowODE(field, Exact(), Dopri5(1e-6, 1e-6))
    point = x[None] / field.data_scale
    found = flow.log_prob(point) - 26 * math.log(field.data_scale)
    assert found.item() == pytest.approx(golden["logp_standardised"][index], abs=5e-3)
