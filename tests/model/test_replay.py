"""A replay of all draws at once says what one draw after the other says, and never guesses."""

import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_stad.model.replay import _one_by_one, replay

COUNT = 60


def plain():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=torch.tensor(0.3))


def plates():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("objects", 4):
        z = pyro.sample("z", dist.Normal(x[..., 0], 1.0))
        pyro.deterministic("total", z + x[..., 1])
        with pyro.plate("bands", 2):
            pyro.sample("y", dist.Normal(z, 0.5), obs=torch.linspace(-1, 1, 8).reshape(2, 4))


def masked_and_scaled():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    mask = torch.tensor([True, False, True])
    with pyro.plate("data", 3), pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=mask):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([0.1, torch.nan, 0.4]))


def constant_beside():
    """A computed value that no draw changes."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.deterministic("fixed", torch.arange(3.0))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.zeros(2))


def by_hand():
    """Python looks at one draw: it can't be run for many."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    scale = 2.0 if float(x) > 0 else 0.5
    pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(0.3))


def across():
    """It runs for many draws, and mixes them up."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(x.mean(), 1.0), obs=torch.tensor(0.3))


MODELS = {
    "plain": (plain, {"x": ()}, True),
    "plates": (plates, {"x": (3,), "z": (4,)}, True),
    "masked and scaled": (masked_and_scaled, {"x": ()}, True),
    "constant beside": (constant_beside, {"x": (2,)}, True),
    "by hand": (by_hand, {"x": ()}, False),
    "across draws": (across, {"x": ()}, False),
}


def draws_of(shapes):
    return {name: torch.randn(COUNT, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_all_at_once_is_one_after_the_other(name):
    model, shapes, broadcasts = MODELS[name]
    draws, runs = draws_of(shapes), 0

    def counted():
        nonlocal runs
        runs += 1
        model()

    wanted = _one_by_one(model, (), {}, draws)
    found = replay(counted, (), {}, draws)
    torch.testing.assert_close(found.lp, wanted.lp, rtol=0, atol=1e-12)
    for part in ("log_likelihood", "computed", "inner"):
        ours, theirs = getattr(found, part), getattr(wanted, part)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-12, equal_nan=True)
    assert found.observed.keys() == wanted.observed.keys()
    # All of them at once, and some alone; or each by itself.
    assert (runs <= 16) == broadcasts
    assert runs <= 16 + COUNT


def test_many_draws_go_in_chunks(monkeypatch):
    monkeypatch.setattr(sys.modules[replay.__module__], "_CHUNK", 4)
    draws = draws_of({"x": (3,), "z": (4,)})
    wanted = _one_by_one(plates, (), {}, draws)
    found = replay(plates, (), {}, draws)
    torch.testing.assert_close(found.lp, wanted.lp, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.computed["total"], wanted.computed["total"])


@pytest.mark.parametrize("plate", [False, True])
def test_learned_priors_are_seen_in_their_own_coordinates(plate, free_prior):
    def model():
        if plate:
            with pyro.plate("objects", 3):
                theta = pyro.sample("theta", free_prior)
                pyro.sample("y", dist.Normal(theta[..., 0], 1.0), obs=torch.zeros(3))
        else:
            theta = pyro.sample("theta", free_prior)
            pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=torch.zeros(2))

    shape = (COUNT, 3) if plate else (COUNT,)
    draws = {"theta": free_prior.sample(shape)}
    found, wanted = replay(model, (), {}, draws), _one_by_one(model, (), {}, draws)
    torch.testing.assert_close(found.lp, wanted.lp, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.inner["theta"], wanted.inner["theta"], rtol=0, atol=0)
    assert found.priors["theta"].likelihood is free_prior.likelihood


def negatives_spoil_all():
    """One bad draw, and the model replaces all of them."""
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    root = (x + 1.0).sqrt()
    if torch.isnan(root).any():
        root = torch.full_like(root, 100.0)
    pyro.sample("y", dist.Normal(root, 1.0), obs=torch.tensor(0.3))


def only_if_all():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    scale = 1.0 if bool((x > -1.5).all()) else 10.0
    pyro.sample("y", dist.Normal(x, scale), obs=torch.tensor(0.3))


def own_error():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    assert x.ndim == 0
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.3))


@pytest.mark.parametrize("model", [across, negatives_spoil_all, only_if_all, own_error])
def test_what_mixes_draws_up_gives_itself_away(model):
    """Though most of the draws, and the first, the middle and the last, know nothing of it."""
    x = torch.linspace(0.1, 0.2, 50)
    x[17] = -2.0
    draws = {"x": x}
    found, wanted = replay(model, (), {}, draws), _one_by_one(model, (), {}, draws)
    torch.testing.assert_close(found.lp, wanted.lp, rtol=0, atol=1e-12, equal_nan=True)
