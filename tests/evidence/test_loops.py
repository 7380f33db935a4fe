"""Models that do not broadcast over draws: draw by draw, to the same numbers, with a word of it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_stad import log_evidence
from pyro_stad.model import LatentProblem
from pyro_stad.model.joint import JointDensity

Y = torch.tensor([0.3, -0.4], dtype=torch.float64)


def broadcasts(y):
    a = pyro.sample("a", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(b, 0.5 + a[..., None]).to_event(1), obs=y)


def picks_an_element(y):
    a = pyro.sample("a", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(b.reshape(-1)[:2], 0.5 + a.reshape(-1)[0]).to_event(1), obs=y)


def leaves_torch(y):
    a = pyro.sample("a", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = 0.5 + float(a)  # as a simulator of another library takes it
    pyro.sample("y", dist.Normal(b, scale).to_event(1), obs=y)


def branches(y):
    a = pyro.sample("a", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = 0.5 + a if a > 0 else a
    pyro.sample("y", dist.Normal(b, scale).to_event(1), obs=y)


def picks_where_hardly_anything_is_possible(y):
    """Nineteen of twenty draws are impossible, whichever way the model runs."""
    a = pyro.sample("a", dist.HalfNormal(1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("cut", torch.where(a > 2, 0.0, -math.inf).to(a))
    pyro.sample("y", dist.Normal(b.reshape(-1)[:2], 1.0).to_event(1), obs=y)


LOOPS = [picks_an_element, leaves_torch, branches]


def test_where_hardly_anything_is_possible_it_is_found_out_all_the_same():
    with pytest.warns(UserWarning, match="does not broadcast over draws"):
        assert LatentProblem(picks_where_hardly_anything_is_possible, Y).model.loops


@pytest.mark.parametrize("model", LOOPS, ids=lambda m: m.__name__)
def test_draw_by_draw_is_what_a_plate_gives(model):
    plate = LatentProblem(broadcasts, Y)
    with pytest.warns(UserWarning, match="does not broadcast over draws.*Index from the right"):
        loop = LatentProblem(model, Y)
    assert loop.model.loops
    assert not plate.model.loops
    u = torch.randn(5, plate.size)
    torch.testing.assert_close(loop.log_likelihood(u), plate.log_likelihood(u))
    (values, sites), (wanted, wanted_sites) = (
        problem.values_and_log_likelihoods(u) for problem in (loop, plate)
    )
    for name in ("a", "b"):
        torch.testing.assert_close(values[name], wanted[name])
    assert sites["y"].sum() == pytest.approx(wanted_sites["y"].sum().item())
    joints = [JointDensity(problem.model) for problem in (loop, plate)]
    z, wanted_z = (joint.unconstrain(wanted) for joint in joints)
    torch.testing.assert_close(z, wanted_z)
    torch.testing.assert_close(joints[0].log_joint(z), joints[1].log_joint(z))
    torch.testing.assert_close(joints[0].values(z)["b"], wanted["b"])
    torch.testing.assert_close(joints[0].pointwise(wanted), joints[1].pointwise(wanted))


def test_an_evidence_of_a_loop():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(float(x), 0.5), obs=y)

    with pytest.warns(UserWarning, match="many times slower"):
        found = log_evidence(model, torch.tensor(1.0), particles=100, progress=False)
    truth = dist.Normal(0.0, math.sqrt(1.25)).log_prob(torch.tensor(1.0)).item()
    assert abs(found.log_z - truth) < 4 * found.log_z_err < 0.4


def test_a_model_that_broadcasts_says_nothing():
    """Warnings are errors here."""
    assert LatentProblem(broadcasts, Y).size == 3
