"""What a user has who changes nothing: torch's default dtype is float32, and all of it works.

The other tests set float64, to hold mathematics against closed forms; a tensor made without a dtype
would go unnoticed there.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad

ROWS = 400


@pytest.fixture(autouse=True)
def _single():
    torch.set_default_dtype(torch.float32)


def values():
    return np.random.default_rng(0).normal(size=(ROWS, 2)) * [1.0, 3.0]


def an_angle():
    turned = values()
    turned[:, 0] = np.arctan2(np.sin(turned[:, 0]), np.cos(turned[:, 0]))
    return turned, {"bounds": {"x[0]": "periodic"}}


def an_angle_with_weights():
    turned, options = an_angle()
    return turned, {**options, "weights": np.random.default_rng(1).gamma(2.0, size=ROWS)}


def walls():
    return np.exp(values() / [1.0, 3.0]), {"bounds": [(0, None), (None, 100)]}


def rows_on_a_wall():
    positive = np.abs(values())
    positive[:3, 0] = 0.0
    return positive, {"bounds": [(0, None), (0, None)]}


def weights():
    return values(), {"weights": np.random.default_rng(1).gamma(2.0, size=ROWS)}


def log_weights():
    return values(), {"log_weights": np.random.default_rng(1).normal(size=ROWS)}


def repeats():
    return values()[np.random.default_rng(1).integers(ROWS, size=4 * ROWS)], {}


def single_tensors():
    return {"a": torch.as_tensor(values()[:, 0]).float(), "b": values()[:, 1]}, {}


def free_form():
    return values(), {"path": "cnf"}


SAMPLES = [
    an_angle,
    an_angle_with_weights,
    walls,
    rows_on_a_wall,
    weights,
    log_weights,
    repeats,
    single_tensors,
    free_form,
]


@pytest.mark.parametrize("make", SAMPLES, ids=lambda m: m.__name__)
def test_fits_and_all_that_a_prior_is_asked(make, tmp_path):
    given, options = make()
    prior = pyro_stad.fit(given, budget="tiny", progress=False, **options)
    draws = prior.sample((50,))
    assert draws.dtype == torch.float32
    draws.requires_grad_()
    log_prob = prior.log_prob(draws)
    assert log_prob.dtype == torch.float32
    assert torch.isfinite(torch.autograd.grad(log_prob.sum(), draws)[0]).all()
    assert torch.isfinite(prior.surrogate_error(draws)).all()
    assert (prior.tail_probability(draws) > 0).all()
    prior.save(tmp_path / "prior")
    assert torch.equal(pyro_stad.load(tmp_path / "prior").log_prob(draws), log_prob)
    again = prior.calibrate(prior.sample((200,)))
    torch.testing.assert_close(again.log_prob(draws), log_prob, rtol=0.1, atol=0.5)
    vector = "x" in prior.unpack(draws)
    cut = prior.truncate(lambda t: (t["x"][..., 0] if vector else t["a"]) > -10)
    assert cut.sample((5,)).dtype == torch.float32


def test_evidence_and_arviz():
    prior = pyro_stad.fit(values(), budget="tiny", progress=False)

    def model(y):
        theta = pyro.sample("theta", prior)
        width = pyro.sample("width", dist.HalfCauchy(1.0))
        pyro.sample("y", dist.Normal(theta[..., 0], 0.5 + width), obs=y)

    y = torch.tensor(0.3)
    found = pyro_stad.log_evidence(model, y, particles=200, progress=False)
    draws = found.draws
    by_bridge = pyro_stad.log_evidence(model, y, method="bridge", draws=draws, progress=False)
    assert abs(found.log_z - by_bridge.log_z) < 0.2
    data = pyro_stad.to_arviz(found, prior={"theta": prior})
    assert data["posterior"]["theta"].shape[-1] == 2
