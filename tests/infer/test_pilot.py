"""The pilot: on a model whose best form is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.infer import FORMS, choose_form


def test_a_narrow_ridge_is_not_sampled_as_it_is():
    """Scales of hundreds to one, turned: NUTS creeps along it, and whitened it is round."""
    z = torch.randn(600, 2)
    x = torch.stack([z[:, 0], z[:, 0] + 0.005 * z[:, 1]], 1)
    prior = pyro_stad.fit(x, budget="tiny", members=0, progress=False, dtype=torch.float64)

    def model():
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[..., 0], 1.0), obs=torch.tensor(0.3))

    before = torch.get_rng_state()
    found = choose_form(model, warmup=60, draws=60, nuts={"max_tree_depth": 6})
    assert torch.equal(torch.get_rng_state(), before)
    assert [run.form for run in found.runs] == ["as it is", *FORMS]
    rates = {run.form: run.rate for run in found.runs}
    assert found.best in FORMS
    assert rates["whitened"] > rates["as it is"]
    assert found.summary().startswith(f"fastest: {found.best}")
    assert "theta_base" in pyro.poutine.trace(found.model).get_trace().nodes


def test_slips_have_messages(free_prior):
    with pytest.raises(ValueError, match="`draws` must be an integer of at least 20"):
        choose_form(lambda: pyro.sample("theta", free_prior), draws=3)
