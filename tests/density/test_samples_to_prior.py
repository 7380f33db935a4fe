"""From samples to a prior: what the fit says of its samples, and what resuming insists on."""

from dataclasses import replace

import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.report.fit import FitReport
from tests.oracles import mixture_sample

QUIET = {"budget": "tiny", "progress": False}


def test_the_summary_tells_what_the_samples_are_worth():
    rows = mixture_sample(200, 2).repeat(5, 1)
    prior = pyro_stad.fit(rows, **QUIET)
    assert (prior.report.rows, prior.report.distinct, prior.report.effective) == (1000, 200, 200)
    assert "fitted to 1000 samples (200 distinct)" in prior.summary()
    assert "effective sample size: 200" in prior.summary()


def test_repeats_are_the_rows_as_they_are():
    """Every row as often: the same fit, to the bit."""
    rows, value = mixture_sample(200, 2), torch.zeros(5, 2, dtype=torch.float32)
    once, often = (pyro_stad.fit(x, **QUIET) for x in (rows, rows.repeat(50, 1)))
    assert torch.equal(once.log_prob(value), often.log_prob(value))


def test_reports_of_older_files_can_be_read(tiny_prior):
    stored = tiny_prior.report.to_dict()
    for name in ("distinct", "effective", "moved"):
        del stored[name]
    read = FitReport.from_dict(stored)
    assert read == replace(tiny_prior.report, distinct=None, effective=None, moved=0)
    assert "effective" not in read.text()


def test_a_slow_chain_is_warned_of():
    chain = mixture_sample(3000, 2).cumsum(0)
    with pytest.warns(pyro_stad.SampleWarning, match="worth .* independent rows .* run the chain"):
        prior = pyro_stad.fit(chain, **QUIET)
    assert prior.report.effective < 100


def test_counts_are_warned_of():
    counts = torch.poisson(torch.full((500,), 3.0))
    samples = torch.stack([counts, torch.randn(500)], 1)
    with pytest.warns(pyro_stad.SampleWarning, match="k takes .* Dequantise"):
        pyro_stad.fit(samples, names=["k", "x"], **QUIET)


def test_weights_in_the_index_of_a_frame_are_used():
    """Uniform rows with the weights of a normal law: sd 1 and not 2.9, to a tiny fit's tenth."""
    x = np.random.default_rng(0).uniform(-5, 5, (3000, 2))
    weights = np.exp(-0.5 * (x**2).sum(1))
    index = pandas.MultiIndex.from_arrays([range(3000), weights], names=[None, "weights"])
    prior = pyro_stad.fit(pandas.DataFrame(x, columns=["a", "b"], index=index), **QUIET)
    assert (prior.sample((2000,)).std(0) - 1).abs().max() < 0.25


CHANGES = {
    "bounds": {"bounds": [(0, None), (0, None)]},
    "other bounds": {"bounds": [(0, 1e3), None]},
    "dtype": {"dtype": torch.float64},
    "names": {"names": ["a", "b"]},
    "weights": {"weights": torch.linspace(0.5, 1, 300)},
    "seed": {"seed": 1},
    "path": {"path": "vp"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_resume_insists_on_the_same_fit(name, tmp_path):
    samples = mixture_sample(300, 2).exp()
    first = pyro_stad.fit(samples, resume=tmp_path, **QUIET)
    again = pyro_stad.fit(samples, resume=tmp_path, **QUIET)
    value = torch.ones(2, dtype=torch.float32)
    assert torch.equal(first.log_prob(value), again.log_prob(value))
    with pytest.raises(ValueError, match="`resume` file .* other settings or data"):
        pyro_stad.fit(samples, resume=tmp_path, **QUIET, **CHANGES[name])


def test_resume_insists_on_the_same_variables(tmp_path):
    x = mixture_sample(300, 2)
    samples = {"a": x[:, 0], "b": x[:, 1]}
    pyro_stad.fit(samples, resume=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="`resume` file"):
        pyro_stad.fit(samples, var_names=["b", "a"], resume=tmp_path, **QUIET)


@pytest.mark.parametrize("seed", [np.int64(3), 2**60, 2**64 + 3, -3])
def test_any_integer_is_a_seed_of_an_evidence(seed):
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    options = {"progress": False, "method": "smc", "particles": 200}
    result = pyro_stad.log_evidence(model, torch.tensor(1.0), seed=seed, **options)
    truth = dist.Normal(0.0, 1.25**0.5).log_prob(torch.tensor(1.0))
    assert abs(result.log_z - truth) < 5 * result.log_z_err


def test_the_gate_is_about_the_rows_that_have_weight():
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 2, generator=source)
    far = 30 * torch.randn(500, 2, generator=source)
    weights = torch.cat([torch.ones(2000), torch.full((500,), 1e-12)])
    prior = pyro_stad.fit(torch.cat([rows, far]), weights=weights, budget="tiny", progress=False)
    # Of 2,000 normal rows in the plane the outermost thousandth begins between 3.2 and 4.6.
    assert 3.2 < prior.likelihood.field.gate.inner < 4.6
