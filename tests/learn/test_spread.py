"""The error of learning: members against closed forms, in every form of a prior."""

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import t as student

import pyro_stad
from pyro_stad.data import Batches, Layout, Standardise
from pyro_stad.data.reference import Reference
from pyro_stad.density import FlowPrior
from pyro_stad.density.typical import spread_factor
from pyro_stad.divergence import Exact
from pyro_stad.fields import PathField
from pyro_stad.learn import Spread, TrainingSettings, joint_log_weights, shifts
from pyro_stad.learn.matching import match
from pyro_stad.learn.members import Member, Resampler, labelled
from pyro_stad.learn.spread import Labels, distil_spread
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from tests.oracles import field_on, gaussian


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def flat_spread(deviations, size=2, factor=1.0):
    """Members that differ from the flow by the same everywhere."""
    spread = Spread(size, len(deviations), 4, source())
    with torch.no_grad():
        for layer in (spread.enter, spread.link, spread.out):
            layer.weight.zero_()
            layer.bias.zero_()
        spread.unit.fill_(1.0)
        spread.most.fill_(10.0)
        spread.factor.fill_(factor)
        spread.log_mass.copy_(-torch.tensor(deviations))
    return spread.double().requires_grad_(False)


def prior_of(spread, **options):
    flow = FlowODE(field_on("ot", gaussian(2)), Exact(), RK4(16))
    return FlowPrior(flow, torch.zeros(2), torch.eye(2), Layout.of("ab"), spread=spread, **options)


def sample_of(values, **options):
    parts = {"weights": None, "chains": None, "time": 1.0, "bounds": None, "margins": None}
    parts |= {"effective": float(len(values)), "names": ("a", "b"), **options}
    size = values.shape[1]
    affine = Standardise(torch.zeros(size), torch.eye(size))
    return Resampler(values=values, affine=affine, **parts)


def test_the_error_is_the_standard_deviation_of_members_times_the_factor():
    prior = prior_of(flat_spread([0.1, -0.2, 0.3, -0.4], factor=1.5))
    x = torch.randn(3, 7, 2)
    expected = 1.5 * math.sqrt((0.15**2 + 0.15**2 + 0.35**2 + 0.35**2) / 3)
    torch.testing.assert_close(prior.learning_error(x), torch.full((3, 7), expected))
    # With four members, Student's law has three degrees of freedom.
    bound = prior.learning_error(x, level=0.9) / prior.learning_error(x)
    torch.testing.assert_close(bound, torch.full((3, 7), float(student.ppf(0.95, 3))))
    weights = prior.learning_log_weights(x)
    torch.testing.assert_close(weights.square().sum(-1).sqrt(), prior.learning_error(x))


def test_log_weights_shift_expectations_as_members_do():
    """Members tilted by +-c x_0: the mean of N(0, 1) shifts by +-c, and the error is its sd."""
    c, spread = 0.05, flat_spread([0.0, 0.0])
    x = torch.randn(200_000, 2, generator=source())
    deviations = torch.stack([c * x[:, 0], -c * x[:, 0]], 1)
    weights = joint_log_weights([(spread, deviations)]).softmax(0)
    error = (weights.mT @ x[:, 0] - x[:, 0].mean()).square().sum().sqrt()
    # The variance of 200,000 draws is one to a part in three hundred.
    assert error.item() == pytest.approx(math.sqrt(2) * c, rel=0.02)


def test_values_of_one_prior_are_off_together_and_those_of_two_apart():
    one, other = flat_spread([0.3, -0.1]), flat_spread([0.2, 0.2])
    deviations = torch.tensor([[0.3, -0.1]]).expand(5, 3, 2)  # three values in a plate
    both = joint_log_weights([(one, deviations), (other, torch.full((5, 2), 0.2))])
    by_hand = torch.tensor([0.6, -0.6, 0.0, 0.0])
    torch.testing.assert_close(both, by_hand.expand(5, 4))
    torch.testing.assert_close(shifts(both), by_hand)
    # The same prior at two sites.
    twice = joint_log_weights([(one, deviations[:, 0]), (one, deviations[:, 0])])
    torch.testing.assert_close(twice[0], torch.tensor([0.4, -0.4]))


def test_what_has_no_density_has_an_infinite_error_and_no_weight():
    prior = prior_of(flat_spread([0.1, 0.3]), bounds=[(0.0, math.inf), (-math.inf, math.inf)])
    x = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [math.nan, 0.0]])
    assert torch.isinf(prior.learning_error(x)).tolist() == [True, False, True]
    assert prior.learning_log_weights(x)[[0, 2]].abs().max() == 0
    assert prior.learning_error(torch.empty(0, 2)).shape == (0,)


def test_a_cut_divides_out_what_members_have_inside():
    """A member that is off by a constant is normalised by it inside a region: no error is left."""
    prior = prior_of(flat_spread([0.3, -0.1]))
    cut = prior.truncate(lambda t: t["a"] > 0)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(
        cut.learning_error(x), torch.tensor([0.0, math.inf]), atol=1e-6, rtol=0
    )
    assert cut.expand((3,)).spread is prior.spread


@pytest.mark.parametrize("level", [0.0, 1.0, -2, 1.5])
def test_a_level_lies_between_zero_and_one(level):
    with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\)"):
        prior_of(flat_spread([0.1, 0.1])).learning_error(torch.zeros(2), level=level)


def test_a_prior_without_members_says_so():
    for call in ("learning_error", "learning_log_weights"):
        with pytest.raises(ValueError, match="it has no members"):
            getattr(prior_of(None), call)(torch.zeros(2))


@pytest.mark.parametrize("members", [1, -1, 2.5, True, 10_000])
def test_members_are_none_or_two_at_least(members):
    with pytest.raises((TypeError, ValueError), match="`members`"):
        pyro_stad.fit(torch.randn(200, 2), members=members, budget="tiny", progress=False)


def test_a_bootstrap_draws_rows_as_often_as_chance_has_it():
    times = sample_of(torch.randn(20_000, 1))._times(source())
    assert times.sum() == 20_000
    # Poisson with mean one: a share 1/e is not drawn, to five standard errors.
    assert abs((times == 0).double().mean().item() - math.exp(-1)) < 5 * 0.31 / math.sqrt(20_000)


def test_a_chain_is_drawn_in_stretches():
    chains = torch.arange(1000) % 2  # two chains, row by row in turn
    sample = sample_of(torch.randn(1000, 1), chains=chains, time=5.0)
    times = sample._times(source())
    for chain in (0, 1):
        stretches = times[chains == chain].reshape(-1, 25)  # five autocorrelation times
        assert (stretches == stretches[:, :1]).all()
    assert len(times.unique()) > 2


@pytest.mark.parametrize("time", [40.0, 1000.0])
def test_of_a_slow_chain_something_is_always_left_out(time):
    sample = sample_of(torch.randn(60, 1), time=time)
    generator = source()
    for _ in range(200):
        times = sample._times(generator)
        assert 0 < (times == 0).sum() < 60


def test_labels_are_the_differences_of_exact_log_densities():
    """Members that are normal laws of other widths, with and without margins in between."""
    values = torch.randn(3000, 2, generator=source())
    sample = sample_of(values)
    flow = FlowODE(field_on("ot", gaussian(2)), Exact(), RK4(32))
    scale = torch.tensor([0.8, 1.2])
    other = field_on("ot", (torch.ones(1), torch.zeros(1, 2), torch.diag(scale**2)[None]))
    labels = labelled(flow, [Member(other, sample.affine, None)], sample, Batches(values), source())
    law = dist.Normal(torch.zeros(2), scale).to_event(1)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    expected = law.log_prob(labels.points) - base.log_prob(labels.points)
    torch.testing.assert_close(labels.deviations[:, 0], expected, atol=2e-3, rtol=2e-3)
    assert labels.is_near.sum() == 1600
    assert labels.is_draw.sum() == 800


def test_members_of_normal_samples_spread_as_fitted_normals_do():
    """Mean and covariance are off by chance: in one dimension (x^2 + (x^2 - 1)^2 / 2) / N."""
    rows, count = 1000, 60
    sample = sample_of(torch.randn(rows, 2, generator=source()))
    field = PathField(OptimalTransport(), features=2, width=4, depth=2).double()  # N(0, I)
    generator = source(1)
    members = [sample.member(field, lambda *_: None, generator) for _ in range(count)]
    flow = FlowODE(field, Exact(), RK4(2))
    labels = labelled(flow, members, sample, Batches(sample.values), source(2))
    x = labels.points[labels.is_draw]
    each = x.square() + 0.5 * (x.square() - 1).square()
    cross = (x[:, 0] * x[:, 1]).square()
    expected = (each.sum(1) + cross) / rows
    found = labels.deviations[labels.is_draw].var(1)
    # The mean of many variances by sixty members, each known to a part in five.
    assert (found.mean() / expected.mean()).item() == pytest.approx(1.0, abs=0.3)
    assert torch.corrcoef(torch.stack([found.log(), expected.log()]))[0, 1] > 0.8


def test_a_network_learns_deviations_and_counts_what_is_left():
    x = torch.randn(3000, 2, generator=source())
    wanted = torch.stack([0.1 * x[:, 0], 0.2 * (x[:, 1].square() - 1), -0.1 * x[:, 0]], 1)
    near = torch.ones(3000, dtype=torch.bool)
    settings = TrainingSettings(800, batch_size=256, learning_rate=5e-3)
    spread, history = distil_spread(
        Labels(x, wanted, near, near), 32, settings, source(), generator=source(), progress=False
    )
    y = torch.randn(500, 2, generator=source(1))
    truth = torch.stack([0.1 * y[:, 0], 0.2 * (y[:, 1].square() - 1), -0.1 * y[:, 0]], 1)
    rest = (spread(y) + spread.log_mass - truth).abs()
    assert rest.median() < 0.02
    assert history.best < 0.05
    # It has learned them, and leaves nothing over.
    assert spread.residual == 0.0
    # Normalised: by the same network, over the draws.
    torch.testing.assert_close(shifts(spread(x)), torch.zeros(3), atol=1e-6, rtol=0)


def test_one_wild_output_does_not_decide():
    x = torch.randn(1000, 2, generator=source())
    wanted = 0.1 * torch.randn(1000, 3, generator=source(1))
    wanted[::50] = 30.0  # far out, and not among those near data
    near = torch.ones(1000, dtype=torch.bool)
    near[::50] = False
    settings = TrainingSettings(300, batch_size=256, learning_rate=1e-2)
    spread, _ = distil_spread(
        Labels(x, wanted, near, near), 32, settings, source(), generator=source(), progress=False
    )
    largest = wanted.abs().amax()
    # Units are scaled up by three at the most; a mass is a mean, on which one output does not bear.
    assert spread.nats(torch.full((1, 3), 50.0)).max() <= 3.0 * largest * (1 + 1e-9)
    assert spread.log_mass.abs().max() < 0.3


def test_what_a_network_does_not_show_is_scaled_and_counted():
    """Labels that are noise to it: their spread is that of the labels all the same."""
    x = torch.randn(3000, 2, generator=source())
    wanted = 0.2 * torch.randn(3000, 4, generator=source(1))
    near = torch.ones(3000, dtype=torch.bool)
    settings = TrainingSettings(100, batch_size=256, learning_rate=1e-3)
    spread, _ = distil_spread(
        Labels(x, wanted, near, near), 8, settings, source(), generator=source(), progress=False
    )
    error = spread.error(spread(x))
    # About a mean of four, three of them count. A network is not noise, and has other tails.
    assert error.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_evidences_shift_as_they_would_by_exact_members():
    """A banana and its members: what a network says of wide posteriors, and of narrow ones."""
    generator = source(3)
    a = torch.randn(2000, generator=generator)
    values = torch.stack([a, 0.5 * a.square() + 0.4 * torch.randn(2000, generator=generator)], 1)
    values = (values - values.mean(0)) / values.std(0)
    sample, field = sample_of(values), PathField(OptimalTransport(), 2, 16, 2).double()
    settings = TrainingSettings(150, batch_size=128, learning_rate=5e-3, warmup=10)

    def train(module, kept, held):
        match(module, kept, held, settings, generator=generator, progress=False)

    train(field, Batches(values), Batches(values))
    members = [sample.member(field, train, generator) for _ in range(5)]
    flow = FlowODE(field, Exact(), RK4(8))
    labels = labelled(flow, members, sample, Batches(values), source(1))
    spread, _ = distil_spread(
        labels, 32, TrainingSettings(1000, batch_size=256, learning_rate=5e-3), source(),
        generator=source(), progress=False,
    )  # fmt: skip
    found = []
    fresh = labelled(flow, members, sample, Batches(values), source(2))
    x = fresh.points[fresh.is_draw]
    for width in (3.0, 1.0, 0.5):
        weights = torch.log_softmax(-0.5 * ((x - 0.5) / width).square().sum(1), 0)[:, None]
        exact = (weights + fresh.deviations[fresh.is_draw]).logsumexp(0)
        by_network = weights[:, 0].exp() @ spread(x)  # to first order
        found.append((by_network.std() / exact.std()).item())
    # Five members know their spread to a third; the network may add to that, and take a little.
    assert all(0.6 < ratio < 2.5 for ratio in found), found


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (0.5, 8.0)])
def test_the_factor_is_what_local_masses_say(scale, expected):
    """Samples half as wide as the flow; members that say it is off by a twentieth or so."""
    rows = scale * torch.randn(8000, 2, generator=source())
    flow = FlowODE(field_on("ot", gaussian(2)), Exact(), RK4(16))
    spread = flat_spread([0.1, -0.1])
    found = spread_factor(flow.transport(), Reference(rows, 8000.0), spread)
    if expected == 1.0:
        assert found == 1.0
    else:
        # In the middle it is 2 log 2 = 1.4 nats; smoothed, and further out, it is less.
        assert 4.0 < found < 14.0


def test_a_spread_travels_with_its_prior(tmp_path, free_prior):
    prior, x = free_prior, free_prior.sample((50,))
    known = prior.learning_error(x)
    assert torch.isfinite(known).all()
    assert (known > 0).all()
    prior.save(tmp_path / "prior.safetensors")
    others = [
        pyro_stad.load(tmp_path / "prior.safetensors"),
        copy.deepcopy(prior),
        pickle.loads(pickle.dumps(prior)),
        prior.expand((4,)),
        prior.with_likelihood(prior.likelihood),
    ]
    for other in others:
        torch.testing.assert_close(other.learning_error(x), known, rtol=0, atol=0)
    single = prior.to(torch.float32)
    torch.testing.assert_close(
        single.learning_error(x.float()).double(), known, rtol=1e-4, atol=1e-6
    )
    assert prior.spread.unit.dtype == torch.float64  # what was moved was a copy


def test_a_file_with_another_spread_is_refused(tmp_path, free_prior):
    from pyro_stad._config import encode
    from pyro_stad._files import read_tensors, write_tensors

    path = tmp_path / "prior.safetensors"
    free_prior.save(path)
    tensors, document = read_tensors(path)
    changes = [
        ({"spread": {"members": 50_000_000, "width": 3}}, {}),
        ({}, {"spread.factor": torch.tensor(-1.0)}),
        ({}, {"spread.unit": tensors["spread.unit"][:-1]}),
        ({}, {"spread.out.bias": torch.full_like(tensors["spread.out.bias"], math.nan)}),
    ]
    for in_document, in_tensors in changes:
        write_tensors(path, {**tensors, **in_tensors}, encode({**document, **in_document}))
        with pytest.raises(pyro_stad.CheckpointError):
            pyro_stad.load(path)


def test_the_error_of_an_angle_is_periodic():
    angle = (2 * math.pi * torch.rand(600, generator=source())) % (2 * math.pi)
    prior = pyro_stad.fit(
        {"phi": angle.numpy()}, bounds={"phi": "periodic"}, budget="tiny", progress=False,
        dtype=torch.float64,
    )  # fmt: skip
    x = torch.linspace(0.1, 6.0, 9)[:, None]
    torch.testing.assert_close(
        prior.learning_error(x), prior.learning_error(x + 2 * math.pi), rtol=1e-6, atol=1e-9
    )


def test_members_do_not_change_the_density():
    x = torch.randn(400, 2, generator=source())
    options = {"budget": "tiny", "progress": False, "dtype": torch.float64}
    with_members, without = pyro_stad.fit(x, **options), pyro_stad.fit(x, members=0, **options)
    assert without.spread is None
    assert "unknown, without members" in without.summary()
    names = [stage.name for stage in with_members.report.stages]
    assert [f"member_{k}" for k in range(1, 6)] + ["spread"] == names[-6:]
    assert "5 members, each: 30 steps" in with_members.summary()
    torch.testing.assert_close(with_members.log_prob(x), without.log_prob(x), rtol=0, atol=0)


def test_a_member_that_fails_is_left_out(monkeypatch):
    from pyro_stad.fitting.stages import FitStages

    train, failed = FitStages.train, []

    def failing(self, name, *args, **options):
        if name in ("member_2", *failed):
            raise pyro_stad.TrainingError(f"{name} met non-finite losses")
        return train(self, name, *args, **options)

    monkeypatch.setattr(FitStages, "train", failing)
    x = torch.randn(400, 2, generator=source())
    with pytest.warns(pyro_stad.TrainingWarning, match="member_2 .* It is left out"):
        prior = pyro_stad.fit(x, members=3, budget="tiny", progress=False)
    assert prior.spread.members == 2
    failed.append("member_1")
    with pytest.warns(pyro_stad.TrainingWarning) as said:
        prior = pyro_stad.fit(x, members=3, budget="tiny", progress=False)
    assert prior.spread is None
    assert any("1 of 3 members" in str(warning.message) for warning in said)


def test_a_fit_is_resumed_with_another_number_of_members(tmp_path):
    x = torch.randn(400, 2, generator=source()).float()
    options = {"budget": "tiny", "progress": False, "resume": tmp_path}
    two, three = (pyro_stad.fit(x, members=members, **options) for members in (2, 3))
    assert (two.spread.members, three.spread.members) == (2, 3)
    again = pyro_stad.fit(x, members=3, **options)
    torch.testing.assert_close(again.learning_error(x), three.learning_error(x), rtol=0, atol=0)
