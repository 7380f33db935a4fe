"""Goodness of fit: a right prior passes at the stated rate, a wrong one is found out."""

import math
import sys
from importlib.util import find_spec

import pytest
import torch

import pyro_stad
from pyro_stad import TrainingWarning
from pyro_stad.calibrate.two_sample import TwoSample, two_sample
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.report import FitReport
from pyro_stad.report.gaussians import best_mixture
from pyro_stad.report.goodness import Gain, Goodness, goodness
from tests.oracles import field_on, gaussian, mixture_sample


def judged(likelihood, *arguments, **options):
    """Hold a density, and draws of its own flow, against samples."""
    return goodness(likelihood, likelihood.transport(), *arguments, **options)


def bimodal(count, seed=0):
    """Two narrow modes and a valley between them; whitened, but for sampling."""
    mean, covariance = torch.tensor([0.9**0.5, 0.0]), torch.diag(torch.tensor([0.1, 1.0]))
    parts = torch.full((2,), 0.5), torch.stack([mean, -mean]), covariance.expand(2, 2, 2)
    return parts, sample_mixture(parts, count, seed)


def flow_of(parts):
    return FlowODE(field_on("ot", parts), Exact(), RK4(16))


@pytest.mark.parametrize(("rows", "repeats"), [(100, 400), (500, 60)])
def test_samples_of_one_law_pass_at_the_stated_rate(rows, repeats):
    """Mean and variance are exact: over R repeats, 4 standard errors of each.

    Of a normal law, 5 percent lie above 1.645; 4 standard errors of that share as well.
    """
    g = torch.Generator().manual_seed(0)
    found = [two_sample(*torch.randn(2, rows, 3, generator=g)) for _ in range(repeats)]
    scores = torch.tensor([(t.share - t.chance) / t.chance_error for t in found])
    assert abs(scores.mean()) < 4 / math.sqrt(repeats)
    assert abs(scores.std() - 1) < 4 / math.sqrt(2 * repeats)
    below = sum(t.p_value < 0.05 for t in found) / repeats
    assert below < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_the_variance_is_that_of_permuted_labels():
    """Of 20 points in all orders that 4,000 permutations try; 4 standard errors of a variance."""
    g = torch.Generator().manual_seed(1)
    pooled = torch.randn(20, 2, generator=g)
    shares = []
    for _ in range(4000):
        order = torch.randperm(20, generator=g)
        found = two_sample(pooled[order[:8]], pooled[order[8:]])
        shares.append(found.share)
    shares = torch.tensor(shares)
    assert shares.mean() == pytest.approx(found.chance, abs=4 * found.chance_error / 4000**0.5)
    assert shares.var() == pytest.approx(found.chance_error**2, rel=4 * math.sqrt(2 / 4000))


def test_a_law_of_the_same_moments_is_told_apart():
    parts = random_mixture(8)
    found = two_sample(sample_mixture(parts, 500), torch.randn(500, 8))
    assert found.p_value < 1e-9
    assert found.share > 0.6


def test_the_chosen_mixture_is_the_law_of_its_samples():
    """Held-out log-density within a standard error and p / 2n of the truth's."""
    pytest.importorskip("sklearn")
    (parts, rows), fresh = bimodal(4000, 1), bimodal(2000, 2)[1]
    found = best_mixture(rows, 4000, torch.Generator().manual_seed(0))
    truth = field_on("ot", parts).log_density(torch.zeros(1), fresh)
    loss = truth - torch.from_numpy(found.score_samples(fresh.numpy()))
    assert loss.mean() < 11 / 8000 + 3 * loss.std() / math.sqrt(2000)
    assert best_mixture(torch.randn(1000, 3), 1000, torch.Generator()).n_components == 1


def test_without_scikit_learn_there_is_no_mixture(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    held, kept = (Batches(torch.randn(n, 2)) for n in (600, 1000))
    found = judged(flow_of(gaussian(2)), held, 0, kept=kept)
    assert found.over_mixture is None
    assert "multivariate normal's; draws" in found.text()


@pytest.mark.parametrize("features", [2, 8])
def test_the_law_itself_passes(features):
    parts = random_mixture(features)
    held, kept = (Batches(sample_mixture(parts, n, s)) for n, s in ((600, 1), (4000, 2)))
    found = judged(flow_of(parts), held, 0, kept=kept)
    assert found.troubles == ()
    assert found.over_normal.mean > 3 * found.over_normal.standard_error
    if found.over_mixture is not None:
        assert found.over_mixture.mean > -3 * found.over_mixture.standard_error
    assert "cannot be told apart" in found.text()


def test_the_gain_is_that_of_the_densities():
    parts = random_mixture(3)
    x = sample_mixture(parts, 300, 1)
    weights = torch.rand(300) + 0.1
    found = judged(flow_of(parts), Batches(x, weights), 0)
    log_prob = flow_of(parts).log_prob(x)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(x)
    share = weights / weights.sum()
    gain = log_prob - normal
    assert found.over_normal.mean == pytest.approx((share @ gain).item(), abs=1e-10)
    assert found.log_density == pytest.approx((share @ log_prob).item(), abs=1e-10)
    kish = 1 / share.square().sum().item()
    assert found.effective == pytest.approx(kish, abs=0.05)
    sd = (share @ (gain - share @ gain).square()).sqrt().item()
    assert found.over_normal.standard_error == pytest.approx(sd / math.sqrt(kish - 1), rel=1e-3)


def test_an_untrained_field_is_found_out():
    _, x = bimodal(1000)
    found = judged(flow_of(gaussian(2)), Batches(x), 0)
    (trouble,) = found.troubles
    assert "draws of the prior can be told from held-out samples" in trouble
    # It is the normal law, and exactly as good.
    assert found.over_normal.mean == pytest.approx(0.0, abs=1e-3)


def test_worse_than_a_normal_is_said():
    parts, _ = bimodal(10)
    found = judged(flow_of(parts), Batches(torch.randn(800, 2)), 0)
    assert any("worse than a multivariate normal" in trouble for trouble in found.troubles)
    assert found.over_normal.mean < 0


def test_weights_are_honoured():
    """A normal sample, weighted to be of the mixture: the mixture's flow passes."""
    parts = random_mixture(2)
    x = torch.randn(6000, 2)
    log_ratio = field_on("ot", parts).log_density(torch.zeros(1), x) + 0.5 * x.square().sum(-1)
    found = judged(flow_of(parts), Batches(x, log_ratio.exp()), 0)
    assert found.troubles == ()
    assert 50 <= found.draws.rows <= 1000
    assert judged(flow_of(parts), Batches(x), 0).troubles != ()


def test_a_chain_is_thinned():
    """An autoregression that forgets slowly: as independent rows it would be told apart."""
    x, noise, slope = torch.zeros(8000, 2), torch.randn(8000, 2), 0.9
    for i in range(1, len(x)):
        x[i] = slope * x[i - 1] + math.sqrt(1 - slope**2) * noise[i]
    time = (1 + slope) / (1 - slope)
    flow = flow_of(gaussian(2))
    found = judged(flow, Batches(x), 0, time=time)
    assert found.troubles == ()
    assert found.effective == pytest.approx(8000 / time, rel=0.01)
    assert found.draws.rows == math.ceil(8000 / math.ceil(2 * time))


def test_few_samples_conclude_nothing():
    found = judged(flow_of(gaussian(2)), Batches(torch.randn(30, 2)), 0)
    assert found.draws is None
    assert "too few samples" in found.text()


def test_what_is_not_finite_is_said():
    found = Goodness(100, 100.0, math.nan, Gain(math.nan, math.nan))
    assert "log_prob is not finite" in found.troubles[0]


def test_a_fit_keeps_it_and_a_bad_one_warns(tmp_path):
    values = bimodal(3000)[1]
    with pytest.warns(TrainingWarning, match="draws of the prior can be told from held-out"):
        prior = pyro_stad.fit(values, budget="tiny", progress=False)
    found = prior.report.goodness
    if find_spec("sklearn") is not None:
        assert found.components == 2
        assert found.over_mixture.mean < -0.1
    assert found.text() in prior.summary()
    assert found.troubles[0] in prior.summary()
    prior.save(tmp_path / "prior.safetensors")
    assert pyro_stad.load(tmp_path / "prior.safetensors").report == prior.report


def test_a_file_of_before_has_none():
    old = {"seed": 0, "rows": 100, "stages": []}
    assert FitReport.from_dict(old).goodness is None
    with pytest.raises(ValueError, match="`rows` must be an integer of at least 1"):
        TwoSample(0, 0.5, 0.5, 0.1)


def test_the_same_seed_gives_the_same_numbers(tiny_prior):
    held = Batches(mixture_sample(200, 3))
    first, second = (judged(tiny_prior.likelihood, held, 3) for _ in range(2))
    assert first == second
