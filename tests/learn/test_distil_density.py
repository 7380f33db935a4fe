"""Distilling a density from flows whose density has a closed form."""

import math
import sys

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_stad import TrainingError
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact
from pyro_stad.fields import FreeFormField, Gate
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.learn import TrainingSettings, distil_density
from pyro_stad.likelihood import Correction, FlowODE
from pyro_stad.ode import RK4
from tests.oracles import field_on

SETTINGS = TrainingSettings(
    600, learning_rate=7e-3, clip_norm=100.0, ema_decay=0.98, optimiser="soap", warmup=20,
    batch_size=256, patience=0,
)  # fmt: skip


def learn(flow, x, settings=SETTINGS):
    """Return a density of 32 units that was distilled from few labels, and its history."""
    correction = Correction(x.shape[1], 32, 2, torch.Generator().manual_seed(0)).to(x)
    options = {"generator": torch.Generator().manual_seed(0), "label": "density"}
    kept, held = Batches(x[:-500]), Batches(x[-500:])
    with pytest.MonkeyPatch.context() as patch:
        module = sys.modules[distil_density.__module__]
        patch.setattr(module, "_HELD", 500)
        return distil_density(
            flow, kept, held, settings, correction, 6000, progress=False, **options
        )


@pytest.fixture(scope="module")
def plane():
    """An exact field of a mixture in the plane, and the density that was learned from it."""
    torch.set_default_dtype(torch.float64)
    parts = random_mixture(2)
    flow = FlowODE(field_on("ot", parts), Exact(), RK4(8))
    return flow.field, *learn(flow, sample_mixture(parts, 3000))


def closed_form(field, x):
    angle = torch.tensor(field.t_min)
    return field.log_density(angle, x * field.data_scale) + x.shape[1] * math.log(field.data_scale)


def test_values_and_gradients_are_learned(plane):
    """As the history says, and with a gradient within a tenth of its own size."""
    field, density, history = plane
    x = sample_mixture(random_mixture(2), 2000, 9).requires_grad_()
    error = density.log_prob(x) - closed_form(field, x)
    assert error.square().mean() < 4 * history.best < 0.02
    got, wanted = (
        torch.autograd.grad(f(x).sum(), x)[0]
        for f in (density.log_prob, lambda at: closed_form(field, at))
    )
    assert (got - wanted).square().mean() < 0.02 * wanted.square().mean()


def test_its_mass_is_one_everywhere(plane):
    """By importance from a wide normal law, which sees what lies where no labels were."""
    _, density, _ = plane
    wide = MultivariateNormal(torch.zeros(2), 9 * torch.eye(2))
    x = wide.sample((100_000,))
    ratio = (density.log_prob(x) - wide.log_prob(x)).exp()
    error = (ratio.std() / math.sqrt(len(x))).item()
    assert error < 0.01
    assert abs(ratio.mean().item() - 1) < 0.03 + 3 * error


def test_the_correction_is_frozen_and_in_place(plane):
    _, density, _ = plane
    assert not any(p.requires_grad for p in density.parameters())
    assert density.correction.out.weight.abs().sum() > 0


def test_it_ends_where_the_labels_do_without_a_gate_of_the_field(plane):
    _, density, _ = plane
    assert 3.0 < density.gate.inner < 6.0
    far = torch.tensor([[density.gate.outer, 0.1]]) / density.field.data_scale
    normal = density.constant() - 0.5 * (far * density.field.data_scale).square().sum(-1)
    torch.testing.assert_close(density.log_prob(far), normal)


def test_the_field_s_own_gate_is_taken_and_a_normal_law_is_known_at_once():
    """A free-form field at the start carries nothing: its density is the normal law."""
    field = FreeFormField(2, width=8, depth=1, gate=Gate(5.0, 6.0)).double()
    settings = TrainingSettings(100, target=1e-6, validate_every=10, warmup=5, optimiser="soap")
    density, history = learn(FlowODE(field, Exact(), RK4(2)), torch.randn(3000, 2), settings)
    assert density.gate == field.gate
    assert history.steps == [10]
    assert history.best < 1e-6


def test_without_finite_labels_nothing_is_learned():
    field = FreeFormField(2, width=8, depth=1).double()
    torch.nn.init.constant_(field.trunk.out.bias, math.inf)
    with pytest.raises(TrainingError, match="density has finite labels at 0 of 6000 points"):
        learn(FlowODE(field, Exact(), RK4(2)), torch.randn(3000, 2))
