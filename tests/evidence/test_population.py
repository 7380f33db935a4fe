"""Many objects at once: each with the evidence that it has alone."""

import math
from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats

from pyro_stad import CheckpointError, EvidenceWarning, log_evidence, log_evidences
from pyro_stad.evidence.population import Population
from tests.evidence.test_evidence import known

QUIET = {"progress": False}


def test_normals_of_many_objects_have_their_closed_forms():
    """Objects from the middle of the prior to six of its widths away: other temperatures each."""
    model, _, _ = known("normal, D = 2")
    y = torch.linspace(0, 6, 7)[:, None] * torch.ones(2)
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(y).sum(-1)
    found = log_evidences(model, y, **QUIET)
    for result, wanted in zip(found, truth):
        assert abs(result.log_z - wanted) < 4 * result.log_z_err < 0.8
    # Posterior means are 0.8 y.
    means = torch.stack([result.draws["x"].mean(0) for result in found])
    assert (means - 0.8 * y).abs().max() < 0.1
    assert found[6].likelihood_calls > found[0].likelihood_calls
    assert len({result.data for result in found}) == 7


def test_likelihoods_are_those_of_one_object_at_a_time():
    model, data, _ = known("mixture flow, D = 5")
    y = torch.stack([data[0], -data[0], 0 * data[0]])
    population = Population(model, (y,))
    u = torch.randn(3, 7, population.size)
    which = torch.tensor([2, 0])
    got = population.of_objects(which, u[which])
    for row, index in enumerate(which.tolist()):
        alone = population.problems[index].log_likelihood(u[index])
        torch.testing.assert_close(got[row], alone, rtol=1e-10, atol=1e-10)


def test_a_file_holds_all_objects(tmp_path):
    model, _, _ = known("normal, D = 2")
    y, options = torch.randn(3, 2), {"particles": 200, "checkpoint": tmp_path / "run", **QUIET}
    first, again = (log_evidences(model, y, **options) for _ in range(2))
    assert [result.log_z for result in first] == [result.log_z for result in again]
    with pytest.raises(CheckpointError, match="has data"):
        log_evidences(model, -y, **options)


def test_parts_are_estimated_apart(tmp_path):
    """Here or in other threads the same; the first as if it were alone; each with its file."""
    model, _, _ = known("normal, D = 2")
    y, options = torch.linspace(0, 3, 5)[:, None] * torch.ones(2), {"particles": 200, **QUIET}
    with ThreadPoolExecutor(2) as pool:
        found = [
            log_evidences(model, y, part=2, **more, **options)
            for more in ({}, {"executor": pool}, {"checkpoint": tmp_path / "run"})
        ]
    assert len({tuple(result.log_z for result in each) for each in found}) == 1
    alone = log_evidences(model, y[:2], **options)
    assert [result.log_z for result in alone] == [result.log_z for result in found[0][:2]]
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(y).sum(-1)
    for result, wanted in zip(found[0], truth):
        assert abs(result.log_z - wanted) < 5 * result.log_z_err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.2", "run.4"}
    bad = torch.cat([y, torch.full((1, 2), math.nan)])
    with pytest.raises(ValueError, match=r"of the objects from 4 on, counted from there: site"):
        log_evidences(model, bad, part=2, **options)
    with pytest.raises(TypeError, match="`executor` must be"):
        log_evidences(model, y, executor=3, **options)


def test_a_learned_prior_for_many(tiny_prior):
    def model(y):
        x = pyro.sample("x", tiny_prior)
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    y = tiny_prior.sample((4,))
    together = log_evidences(model, y, particles=300, **QUIET)
    for one, result in zip(y, together):
        alone = log_evidence(model, one, particles=300, **QUIET)
        apart = abs(alone.log_z - result.log_z)
        assert apart < 4 * math.hypot(alone.log_z_err, result.log_z_err)


def test_arguments_that_do_not_fit():
    model, data, _ = known("normal, D = 2")
    with pytest.raises(TypeError, match="a tensor with one row for each object; got 3.0"):
        log_evidences(model, 3.0, **QUIET)
    with pytest.raises(ValueError, match=r"as many rows as there are objects; got \[2, 3\]"):
        log_evidences(lambda a, b: None, torch.zeros(2), torch.zeros(3), **QUIET)


def test_a_model_that_can_not_be_mapped_says_so():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        # A branch on data.
        scale = 1.0 if y > 0 else 2.0
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    with pytest.raises(ValueError, match="can't be mapped over objects by torch.vmap"):
        log_evidences(model, torch.tensor([-1.0, 1.0]), **QUIET)


def test_an_impossible_object_is_named():
    def model(y):
        x = pyro.sample("x", dist.Uniform(torch.tensor(0.0), 1.0))
        pyro.factor("inside", torch.where(x < y, 0.0, -math.inf))

    with pytest.raises(ValueError, match="the likelihood of object 1 is zero at all of 200 draws"):
        log_evidences(model, torch.tensor([0.5, -1.0]), particles=200, **QUIET)


def test_smc_that_lost_its_way_is_found_out():
    """A half Cauchy prior and a datum of a hundred thousand: its noise is steep there."""

    def model(y):
        x = pyro.sample("x", dist.HalfCauchy(torch.tensor(1.0)))
        pyro.sample("y", dist.Normal(x, 0.01 * y), obs=y)

    y = torch.tensor([1.0, 1e3, 1e5])
    with pytest.warns(EvidenceWarning, match=r"of 3 objects are in doubt .*standard errors apart"):
        found = log_evidences(model, y, particles=500, **QUIET)
    for datum, result in zip(y.tolist(), found):
        sd = 0.01 * datum
        exact, _ = integrate.quad(
            lambda x, y=datum, sd=sd: stats.halfcauchy.pdf(x) * stats.norm.pdf(y, x, sd),
            datum - 10 * sd, datum + 10 * sd, points=[datum],
        )  # fmt: skip
        assert abs(result.log_z - math.log(exact)) < 0.1
    assert result.method == "importance"
    assert any("standard errors apart" in text for text in result.warnings)
    assert "by smc" in result.summary()


def test_objects_where_a_prior_extrapolates_are_named(tiny_prior):
    def model(y):
        x = pyro.sample("x", tiny_prior)
        pyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)

    sample = tiny_prior.sample((500,))
    y = torch.stack([sample.mean(0), sample.mean(0) + 8 * sample.std(0)])
    with pytest.warns(EvidenceWarning, match=r"1 of 2 objects are in doubt \(1\); .*hardly seen"):
        near, far = log_evidences(model, y, particles=200, **QUIET)
    assert near.extrapolated < 0.01 < far.extrapolated
    assert not any("hardly seen" in text for text in near.warnings)
    assert any("hardly seen a sample" in text for text in far.warnings)
