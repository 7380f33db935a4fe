"""What an evidence owes to samples: right where they are, refused where the flow made them up."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad import EvidenceError, log_evidence, log_evidences, sample_support
from pyro_stad.data import Layout
from pyro_stad.data.reference import Reference
from pyro_stad.density import FlowPrior
from pyro_stad.density.typical import typical_error
from pyro_stad.divergence import Exact
from pyro_stad.learn import Spread
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from tests.oracles import field_on, gaussian

SIZE, WIDTH = 2, 0.5


def prior_with(rows, effective=None):
    """The standard normal flow, with samples of whatever law."""
    flow = FlowODE(field_on("ot", gaussian(SIZE)), Exact(), RK4(4))
    reference = rows if rows is None else Reference(rows, effective or float(len(rows)))
    names = Layout.of("ab")
    return FlowPrior(flow, torch.zeros(SIZE), torch.eye(SIZE), names, reference=reference)


def model_of(prior, width=WIDTH):
    def model(y):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, width).to_event(1), obs=y)

    return model


def truth(y, width=WIDTH):
    return dist.Normal(0.0, math.hypot(1.0, width)).log_prob(y).sum().item()


def samples(count=10_000, seed=1):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed))


def hollow(count=10_000):
    """A normal law without its middle."""
    x = samples(2 * count)
    return x[x.norm(dim=1) > 0.5][:count]


Y = torch.tensor([0.5, -0.3])


def test_samples_of_the_law_confirm_the_evidence():
    result = log_evidence(model_of(prior_with(samples())), Y, progress=False)
    owed = result.support
    assert owed.power == 1.0
    assert owed.trouble is None
    assert owed.ess > 500
    # Three standard errors, that of the samples being the weights' own.
    assert abs(owed.log_z - truth(Y)) < 3 * owed.log_z_err
    assert abs(result.log_z - truth(Y)) < 3 * result.log_z_err
    assert owed.log_ratio == pytest.approx(owed.log_z - result.log_z)
    assert result.log_z_err >= owed.learning_error >= abs(owed.log_ratio)
    assert owed.text() in result.summary()
    assert result.attributes()["support_power"] == 1.0


def test_mass_where_there_are_no_samples_is_refused():
    prior = prior_with(hollow())
    with pytest.raises(EvidenceError, match="times more mass than its samples") as refused:
        log_evidence(model_of(prior, 0.1), torch.zeros(2), progress=False)
    assert refused.value.result.support.log_ratio < -1.0
    allowed = log_evidence(
        model_of(prior, 0.1), torch.zeros(2), progress=False, allow_extrapolation=True
    )
    assert allowed.support == refused.value.result.support
    assert any("times more mass" in text for text in allowed.warnings)
    with pytest.warns(pyro_stad.EvidenceWarning, match="1 of 2 objects are in doubt"):
        found = log_evidences(
            model_of(prior, 0.1), torch.tensor([[0.0, 0.0], [1.5, 0.0]]), progress=False
        )
    assert [r.support.trouble is None for r in found] == [False, True]


def test_a_small_difference_is_in_the_error():
    """Samples of another width: 0.9 of the flow's."""
    result = log_evidence(model_of(prior_with(0.9 * samples())), Y, progress=False)
    other = dist.Normal(0.0, math.hypot(0.9, WIDTH)).log_prob(Y).sum().item()
    assert abs(result.log_z - truth(Y)) < 0.05
    assert abs(result.support.log_z - other) < 3 * result.support.log_z_err
    assert abs(result.log_z - other) < 3 * result.log_z_err


def test_samples_are_believed_rather_than_members():
    """Members that are sure, of a flow that is off by 0.4 nat: in the error all the same."""
    rows = samples()[samples()[:, 0].argsort()]
    left = torch.cat([rows[:5000], rows[5000::2]])  # twice as many left of the middle
    prior = prior_with(left)
    known = Spread(SIZE, 3, 4, torch.Generator()).double()
    known.unit.fill_(1e-6)
    known.factor.fill_(1.0)
    sure = FlowPrior(
        prior.likelihood, torch.zeros(SIZE), torch.eye(SIZE), prior.layout,
        reference=prior.reference, spread=known,
    )  # fmt: skip
    result = log_evidence(model_of(sure, 0.2), torch.tensor([-1.0, 0.0]), progress=False)
    # No less than ten thousand samples can tell.
    assert result.support.expected == pytest.approx(0.01, rel=0.3)
    assert result.support.trouble is None
    # Two thirds of the samples are where half of the flow is.
    assert result.support.log_ratio == pytest.approx(math.log(4 / 3), abs=0.2)
    assert abs(result.support.log_ratio) < 1.2 * result.log_z_err
    assert f"{result.support.learning_error:.3f}, in the above" in result.summary()


def test_a_sharp_likelihood_in_the_bulk_is_no_trouble():
    """Hardly a sample is within its width, and the flow is right to interpolate."""
    result = log_evidence(model_of(prior_with(samples()), 0.01), Y, progress=False)
    owed = result.support
    assert owed.ess < 20
    assert owed.power < 0.1
    assert owed.trouble is None
    assert abs(result.log_z - truth(Y, 0.01)) < 3 * result.log_z_err
    assert "at power" in owed.text()


def test_alarms_are_rare_in_the_bulk():
    """Sixty likelihoods: at three standard errors and half a nat, at most one in fifty."""
    found = [
        sample_support(model_of(prior_with(samples(2000, seed)), width), y, seed=seed)
        for seed in range(2)
        for y in torch.randn(6, SIZE, generator=torch.Generator().manual_seed(100 + seed))
        for width in (0.05, 0.2, 0.5, 1.0, 2.0)
    ]
    assert sum(owed.trouble is not None for owed in found) <= 1
    z = torch.tensor([owed.log_ratio / owed.error for owed in found])
    assert 0.7 < z.std() < 1.4


def test_few_samples_raise_an_alarm_sooner_than_many():
    """Three standard deviations out is where 2 of 150 samples are, and 110 of 10,000."""
    y = torch.tensor([3.0, 0.0])
    with pytest.raises(EvidenceError, match="has hardly seen a sample") as refused:
        log_evidence(model_of(prior_with(samples(150)), 0.1), y, progress=False)
    assert refused.value.result.tolerated == pytest.approx(1 / 3)
    assert refused.value.result.extrapolated > 0.9
    many = log_evidence(model_of(prior_with(samples()), 0.1), y, progress=False)
    assert many.extrapolated < many.tolerated == 0.01


def test_samples_that_are_alike_are_worth_less():
    rows = samples(1000).repeat(4, 1)
    alone, alike = (
        sample_support(model_of(prior_with(rows, worth)), Y) for worth in (4000.0, 1000.0)
    )
    assert alike.log_z_err == pytest.approx(2 * alone.log_z_err)


def test_without_samples_or_flow_there_is_nothing_to_say():
    result = log_evidence(model_of(prior_with(None)), Y, progress=False)
    assert result.support is None
    assert "support_ess" not in result.attributes()
    assert sample_support(model_of(dist.Normal(torch.zeros(2), 1.0).to_event(1)), Y) is None


def test_plates_and_several_flows_share_out_their_noise():
    prior = prior_with(samples())

    def model(y):
        first = pyro.sample("first", prior)
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("n", 3):
            more = pyro.sample("more", prior)
            pyro.sample("y", dist.Normal(first[..., 0] + more[..., 0], 1.0 + scale), obs=y)

    owed = sample_support(model, torch.tensor([0.3, -0.5, 1.0]))
    assert owed.trouble is None
    assert abs(owed.log_ratio) < 3 * owed.error


def test_a_likelihood_of_nowhere_near_is_refused():
    owed = sample_support(model_of(prior_with(samples()), 1e-3), torch.tensor([40.0, 0.0]))
    assert owed.power < 1e-4
    nowhere = replace(owed, log_ratio=-100.0)
    assert "times more mass" in nowhere.trouble


def inside(low, high):
    """A likelihood for ``low < a < high``, zero elsewhere; the samples are about a = 30."""
    prior = prior_with(samples(2000) + torch.tensor([30.0, 0.0]))

    def model():
        a = pyro.sample("theta", prior)[..., 0]
        pyro.factor("cut", torch.where((a > low) & (a < high), 0.0, -torch.inf), has_rsample=False)
        pyro.sample("y", dist.Normal(a, 1e3), obs=torch.tensor(0.0))

    return model


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(25.0, 35.0, 100.0), (-5.0, 5.0, -100.0), (90.0, 95.0, 0.0)]
)
def test_where_one_has_nothing_and_the_other_all(low, high, expected):
    """Samples that are thirty deviations from the flow's draws."""
    owed = sample_support(inside(low, high))
    assert owed.log_ratio == expected
    assert (owed.trouble is None) == (expected == 0.0)
    assert math.isfinite(owed.learning_error)


def test_few_samples_are_held_against_many_draws():
    """A hundred of them, a hundred nats below the draws."""
    prior = prior_with(samples(100) + torch.tensor([14.0, 0.0]))
    owed = sample_support(model_of(prior, 1.0), torch.tensor([0.0, 0.0]))
    assert owed.power == 1.0
    assert owed.trouble is not None


def test_repeats_are_no_neighbours():
    """Rows that a nested sampler's weights repeat are no evidence of a spike at each."""
    few = prior_with(samples(500).repeat(20, 1), 500.0)
    assert typical_error(few, few.reference) < 0.08


def test_a_plate_of_priors_is_not_refused_for_its_size():
    """Posterior and prior nearly alike: each of twenty is far out once in a thousand draws."""
    prior = prior_with(samples())

    def model(y):
        with pyro.plate("n", 20):
            theta = pyro.sample("theta", prior)
            pyro.sample("y", dist.Normal(theta[..., 0], 20.0), obs=y)

    result = log_evidence(model, torch.zeros(20), particles=200, method="smc", progress=False)
    assert 0 < result.extrapolated < 0.01


def test_files_keep_samples(tmp_path, tiny_prior):
    reference = tiny_prior.reference
    assert len(reference.rows) >= 100
    assert reference.effective <= len(reference.rows)
    tiny_prior.save(tmp_path / "a.safetensors")
    again = pyro_stad.load(tmp_path / "a.safetensors").reference
    assert torch.equal(again.rows, reference.rows)
    assert again.effective == reference.effective
    assert tiny_prior.to(torch.float64).reference.rows.dtype == torch.float64
    assert tiny_prior.expand((2,)).reference is reference
    assert tiny_prior.with_likelihood(tiny_prior.likelihood).reference is reference
    bare = tiny_prior.with_likelihood(tiny_prior.likelihood)
    bare.reference = None
    bare.save(tmp_path / "b.safetensors")
    assert pyro_stad.load(tmp_path / "b.safetensors").reference is None


@pytest.mark.parametrize("bad", [(torch.zeros(3), 1.0), (torch.zeros(3, 2), 4.0)])
def test_a_reference_is_checked(bad):
    with pytest.raises(ValueError, match="of a reference must"):
        Reference(*bad)


def test_the_typical_error_is_that_of_the_widths():
    """Samples narrower by a: log ratios D log(1/a) - (1/a^2 - 1) r^2 / 2, r those of the samples.

    Their mean square is that of (1 - a^2) (D/2 - r'^2/2) + D log(1/a) - D (1 - a^2) / 2 with r' of
    the unit normal: D (1 - a^2)^2 / 2, and the square of the rest. Kernels smooth it, by less than
    half.
    """
    size, narrower = 2, 0.8
    rest = size * math.log(1 / narrower) - size * (1 - narrower**2) / 2
    expected = math.sqrt(size * (1 - narrower**2) ** 2 / 2 + rest**2)
    prior = prior_with(narrower * samples())
    found = typical_error(prior, prior.reference)
    assert 0.5 * expected < found < 1.2 * expected
    right = prior_with(samples())
    assert typical_error(right, right.reference) < 0.06


def test_arviz_says_it_of_any_draws():
    """Draws of a posterior that somebody else made: where the flow made up its mass, a warning."""
    y = torch.tensor([0.0, 0.0])
    mean, sd = y / (1 + 0.1**2), 0.1 / math.hypot(1.0, 0.1)
    draws = mean + sd * torch.randn(200, 2, generator=torch.Generator().manual_seed(3))
    prior = prior_with(hollow())
    with pytest.warns(pyro_stad.OutOfDistributionWarning, match="times more mass than its samp"):
        data = pyro_stad.to_arviz(
            {"theta": draws}, prior=prior, model=model_of(prior, 0.1), args=(y,)
        )
    assert data["sample_stats"].attrs["support_log_ratio"] < -1.0
    sound = prior_with(samples())
    data = pyro_stad.to_arviz({"theta": draws}, prior=sound, model=model_of(sound, 0.1), args=(y,))
    assert abs(data["sample_stats"].attrs["support_log_ratio"]) < 0.5
