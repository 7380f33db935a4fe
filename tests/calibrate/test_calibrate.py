"""Calibration: the cheapest way that is accurate enough, its mass, and a bound that covers."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from pyro_stad.calibrate import Calibration, Trial, audit, calibrate
from pyro_stad.calibrate import exact_points as standard
from pyro_stad.calibrate.exact_points import ExactPoints
from pyro_stad.calibrate.suspects import climbed, disagreement, suspects
from pyro_stad.data import Batches
from pyro_stad.divergence import Exact, Stein, TrunkHead
from pyro_stad.fields import Gate, PathField
from pyro_stad.fields.mixture import random_mixture, sample_mixture
from pyro_stad.learn.clouds import cloud_for
from pyro_stad.likelihood import Constant, Correction, DistilledDensity, FlowODE, SteinPath
from pyro_stad.ode import RK4
from pyro_stad.paths import OptimalTransport
from tests.oracles import field_on, gaussian


@pytest.fixture
def few_probes(monkeypatch):
    """Exact traces of all ways are dear, and not every test is about what is looked at."""
    monkeypatch.setattr(standard, "_PROBES", 64)
    monkeypatch.setattr(sys.modules[audit.__module__], "_LOOKED_AT", 200)


class Shifted(Exact):
    """The exact divergence of a field, times a factor: a density with a known kind of error."""

    def __init__(self, factor):
        self.factor = factor

    def velocity_and_divergence(self, field, t, x):
        velocity, divergence = super().velocity_and_divergence(field, t, x)
        return velocity, self.factor * divergence


def calibrated(likelihood, x, tolerance=0.1, **options):
    generator = torch.Generator().manual_seed(0)
    cloud = cloud_for(likelihood.field, Batches(x), generator)
    return calibrate(likelihood, x, cloud, tolerance, generator, **options)


def mixture(features=3, count=200, seed=1):
    parts = random_mixture(features)
    return field_on("ot", parts), sample_mixture(parts, count, seed)


@pytest.mark.usefixtures("few_probes")
def test_an_exact_field_needs_no_more_than_the_constant_curve():
    """The field of a density has no inconsistency, so that only quadrature is in the way."""
    field, x = mixture()
    chosen, calibration = calibrated(FlowODE(field, Exact(), RK4(16)), x)
    assert isinstance(chosen, SteinPath)
    assert chosen.curve == Constant()
    assert chosen.log_mass == 0.0 or abs(chosen.log_mass) < 0.01
    assert calibration.audit.sd < 0.1
    assert len(calibration.trials) <= 3


@pytest.mark.usefixtures("few_probes")
def test_trials_go_from_cheap_to_dear_and_end_at_the_first_that_serves():
    field, x = mixture()
    flow = FlowODE(field, Exact(), RK4(16))
    _, calibration = calibrated(flow, x, tolerance=1e-6, reference="exact")
    calls = [trial.sequential_calls for trial in calibration.trials]
    assert calls == sorted(calls)
    assert calls[-1] == 64
    loose = calibrated(flow, x, tolerance=10.0)[1]
    assert len(loose.trials) == 1


@pytest.mark.usefixtures("few_probes")
def test_without_any_that_serves_the_best_is_taken():
    field, x = mixture()
    flow = FlowODE(field, Shifted(1.3), RK4(16))
    chosen, calibration = calibrated(flow, x, tolerance=1e-9, reference="exact")
    best = min(calibration.trials, key=lambda trial: trial.sd)
    assert repr(chosen) == best.likelihood


@pytest.mark.usefixtures("few_probes")
def test_mass_is_divided_out():
    """A divergence that is too large by a tenth makes a density whose mass is not one."""
    field, x = mixture(count=2000)
    likelihood = FlowODE(field, Shifted(1.1), RK4(8))
    chosen, calibration = calibrated(likelihood, x)
    assert abs(chosen.log_mass) > 0.01
    audit = calibration.audit
    assert abs(audit.normaliser - 1) < 4 * math.sqrt(2) * audit.normaliser_error


@pytest.mark.usefixtures("few_probes")
@pytest.mark.parametrize("factor", [1.05, 1.3])
def test_the_bound_covers_fresh_data_and_ranks_the_error(factor):
    """95 percent of the calibration's kind: of 1,000 fresh points at least 92 percent.

    The conformal quantile of 500 points covers a share with standard deviation 0.01, and 1,000
    fresh ones add 0.007: 0.92 is 2.5 of both together below 0.95.
    """
    field, x = mixture(count=500)
    flow = FlowODE(field, Shifted(factor), RK4(8))
    chosen, calibration = calibrated(flow, x, tolerance=1e-9, reference="exact")
    fresh = sample_mixture(random_mixture(3), 1000, 7)
    error = (chosen.log_prob(fresh) - FlowODE(field, Exact(), RK4(8)).log_prob(fresh)).abs()
    bound = calibration.bound.at(disagreement(chosen, fresh))
    assert (error <= bound).double().mean() >= 0.92
    assert bound.median() < 20 * error.median()


def test_json_and_back():
    field, x = mixture(count=50)
    calibration = calibrated(FlowODE(field, Exact(), RK4(4)), x)[1]
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    assert "sequential calls" in calibration.text()


def test_a_gaussian_has_nothing_to_bound():
    field = field_on("ot", gaussian(2))
    x = torch.randn(100, 2)
    chosen, calibration = calibrated(FlowODE(field, Exact(), RK4(4)), x)
    assert math.isfinite(calibration.bound.scale)
    assert isinstance(chosen, SteinPath)


@pytest.mark.usefixtures("few_probes")
def test_a_density_that_describes_the_data_better_than_the_flow_is_taken():
    """Data from the law of the constant curve itself, which is not that of the flow."""
    field, pool = mixture(count=6000)
    flow = FlowODE(field, Shifted(1.8), RK4(8))
    path = SteinPath(field, Shifted(1.8), RK4(8), nodes=16)
    error = path.log_prob(pool) - FlowODE(field, Exact(), RK4(8)).log_prob(pool)
    # Own draws of the flow, weighted to be those of the curve.
    share = torch.softmax(error, 0)
    generator = torch.Generator().manual_seed(0)
    x = pool[torch.multinomial(share, 800, replacement=True, generator=generator)]
    chosen, calibration = calibrated(flow, x)
    (trial,) = calibration.trials
    assert chosen.curve == Constant()
    assert trial.sd > 0.2
    divergence = (share * error).sum() - error.exp().mean().log()
    assert abs(trial.score - divergence) < 4 * trial.score_error
    assert divergence > 2 * trial.score_error
    strict = calibrated(flow, x, reference="exact")[1]
    assert len(strict.trials) > 1


@pytest.mark.parametrize(
    ("sd", "score", "score_error", "reference", "serves"),
    [
        (0.09, -1.0, 0.01, "exact", True),
        (0.11, 0.01, 0.01, "exact", False),
        (0.11, -0.004, 0.0, "data", True),
        (0.11, -0.006, 0.0, "data", False),
        (0.11, -0.006, 0.002, "data", True),
        # Not known well enough is no excuse for more than as much again.
        (0.11, -0.011, 1.0, "data", False),
    ],
)
def test_what_serves(sd, score, score_error, reference, serves):
    trial = Trial("FlowODE", 1, 0.0, sd, score, score_error)
    assert trial.serves(0.1, reference) == serves


def test_a_mass_that_was_divided_out_is_no_disagreement():
    """Both ways are the normal law: one of them with a constant that its mass takes off again."""
    field = PathField(OptimalTransport(), 2, width=8, depth=2).double()
    correction = Correction(2, 8, 1).double()
    torch.nn.init.constant_(correction.out.bias, 0.5)
    parts = field, Stein(TrunkHead.for_field(field)).double(), RK4(4)
    density = DistilledDensity(*parts, correction, Gate(5.0, 6.0), log_mass=0.5)
    density.requires_grad_(False)
    x = torch.randn(20, 2)
    assert disagreement(density, x).max() < 1e-6


class Unsure(Exact):
    """The exact divergence, taken for a learned one."""

    is_exact = False


class Bumpy(FlowODE):
    """The exact density, but for a bump of ``height`` nats about a point."""

    def __init__(self, field, centre, height, width=0.1, divergence=None, log_mass=0.0):
        super().__init__(field, divergence or Exact(), RK4(8), log_mass=log_mass)
        self.centre, self.height, self.width = centre, height, width

    def log_prob(self, x):
        near = (-0.5 * (x - self.centre).square().sum(-1) / self.width**2).exp()
        return super().log_prob(x) + self.height * near


def test_a_bump_among_all_held_out_rows_is_seen():
    """The part with exact traces has no point near it; one of all held-out rows lies on top."""
    field, x = mixture(features=2, count=3000)
    here = x[x.square().sum(-1).argmax()]
    part = x[((x - here).norm(dim=-1) > 1).nonzero().flatten()[:200]]
    bumpy = Bumpy(field, here, 5.0)
    assert (suspects(bumpy, x, 5) == here).all(-1).any()
    generator = torch.Generator().manual_seed(0)
    found = audit(bumpy, part, cloud_for(field, Batches(part), generator), generator, others=x)
    assert found.worst == found.highest == pytest.approx(5.0, abs=1e-6)
    # They count for the worst error alone.
    assert found.sd < 1e-6
    assert (found.points, found.looked_at) == (200, 6000)
    assert 32 <= found.suspects <= 64


# Where nobody looks: between the modes, far out, and on one of two thousand data.
PLACES = {
    "between modes": (lambda x: torch.zeros(2), 12.0, 0.15, "bump"),
    "far out": (lambda x: torch.tensor([0.0, 6.0]), 25.0, 1.0, "bump"),
    "on one datum": (
        lambda x: x[200 + x[200:].square().sum(-1).argmax()],
        -140.0,
        0.01,
        "collapse",
    ),
}


def tried(held, way):
    return held.looked_over(*held.standard.measured(way))


@pytest.mark.parametrize("name", PLACES)
def test_a_way_is_refused_for_what_the_data_do_not_show(name):
    parts = two_modes()
    field, x = field_on("ot", parts), sample_mixture(parts, 2000, 1)
    place, height, width, reason = PLACES[name]
    bumpy = Bumpy(field, place(x), height, width)
    held = ExactPoints.of(bumpy, x[:200], x, torch.Generator().manual_seed(0))
    sound = tried(held, FlowODE(field, Exact(), RK4(8)))
    assert sound.serves(0.1, "exact")
    assert sound.refusal == ""
    assert sound.bump < 1e-6
    assert sound.collapse == 0.0
    trial = tried(held, bumpy)
    assert trial.sd < 0.1
    assert not trial.serves(0.1, "data")
    assert f"refused for a {reason}" in trial.refusal
    if reason == "bump":
        # As high as it is at a probe nearby, over the exact trace or the level.
        assert 3.0 < trial.bump <= height


def test_what_is_climbed_ends_on_top():
    """Two deviations are within reach; where the slope is no number, a point stays."""
    top = torch.tensor([1.0, -1.0])
    x = top + 1.5 * torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, 0.8]])
    found = climbed(lambda at: -(at - top).norm(dim=-1), x)
    # The last strides are a seventh: half of one is as close as a point gets for sure.
    assert ((found - top).norm(dim=-1) < 0.2).all()
    assert torch.equal(climbed(lambda at: at[:, 0] * math.nan, x), x)


def test_a_bump_off_the_lines_between_modes_is_climbed(monkeypatch):
    """Few probes, none of them near its top: it is seen from its foot."""
    monkeypatch.setattr(standard, "_PROBES", 64)
    monkeypatch.setattr(standard, "_SUSPECTS", 3)
    size = 4
    mean = torch.zeros(size)
    mean[0] = 0.99**0.5
    covariance = torch.eye(size)
    covariance[0, 0] = 0.01
    parts = torch.full((2,), 0.5), torch.stack([mean, -mean]), covariance.expand(2, size, size)
    field, x = field_on("ot", parts), sample_mixture(parts, 500, 1)
    centre = torch.tensor([0.0, 1.5, -1.5, 1.5])
    bumpy = Bumpy(field, centre, 30.0, 0.4, Unsure())
    held = ExactPoints.of(bumpy, x[:100], x, torch.Generator().manual_seed(0))
    # What exceeds the flow by less than three nats would not be refused.
    by_way = bumpy.log_prob(held.probes)
    above = torch.minimum(by_way - held.standard.at_draws.quantile(0.005), by_way - held.at_probes)
    assert 0.1 < above.max() < 3.0
    assert 25.0 < tried(held, bumpy).bump <= 30.0


def test_a_bump_that_looks_improbable_is_no_reason():
    """At twelve deviations the density is e^-72: with eight nats more it is flagged still."""
    parts = two_modes()
    field, x = field_on("ot", parts), sample_mixture(parts, 500, 1)
    held = ExactPoints.of(
        FlowODE(field, Exact(), RK4(8)), x, None, torch.Generator().manual_seed(0)
    )
    assert tried(held, Bumpy(field, torch.tensor([0.0, 12.0]), 8.0, width=1.0)).bump < 1e-6


def two_modes():
    """The mixture of two narrow modes, whitened."""
    mean, covariance = torch.tensor([0.96**0.5, 0.0]), torch.diag(torch.tensor([0.04, 1.0]))
    return torch.full((2,), 0.5), torch.stack([mean, -mean]), covariance.expand(2, 2, 2)


def test_what_is_not_finite_anywhere_is_seen():
    field, x = mixture(features=2, count=1000)
    bumpy = Bumpy(field, x[900], math.nan)
    x[901] = math.inf
    generator = torch.Generator().manual_seed(0)
    cloud = cloud_for(field, Batches(x[:100]), generator)
    found = audit(FlowODE(field, Exact(), RK4(4)), x[:100], cloud, generator, others=x)
    assert not found.is_finite
    assert not audit(bumpy, x[:100], cloud, generator, others=x[:100]).is_finite


@pytest.fixture(scope="module")
def good():
    """The calibration of an exact field, with which nothing is wrong."""
    torch.set_default_dtype(torch.float64)
    field, x = mixture(count=1000)
    return calibrated(FlowODE(field, Exact(), RK4(16)), x)[1]


def with_audit(calibration, **changes):
    return replace(calibration, audit=replace(calibration.audit, **changes))


def with_trial(calibration, **changes):
    return replace(calibration, trials=(replace(calibration.trials[-1], **changes),))


CASES = {
    "a good one": (lambda c: c, ()),
    "sd too large, score too low": (
        lambda c: with_trial(with_audit(c, sd=0.26), sd=0.26, score=-0.1),
        ("the tolerance of 0.1 nat is not met: log_prob has sd 0.26 nat",),
    ),
    "sd too large, but it describes the data": (
        lambda c: with_trial(with_audit(c, sd=0.26), sd=0.26, score=0.01), ()
    ),
    "every way refused": (
        lambda c: with_trial(c, bump=9.4, collapse=0.5),
        ("every way was refused, the last for a bump of 9.4 nat and a collapse that costs 0.5",),
    ),
    "which is not what was asked for": (
        lambda c: replace(with_trial(c, sd=0.26, score=0.01), reference="exact"),
        ("the tolerance of 0.1 nat is not met",),
    ),
    "mass": (
        lambda c: with_audit(c, normaliser=0.9, normaliser_error=0.01),
        ("its mass is 0.9 +- 0.01",),
    ),
    "mass within its error": (
        lambda c: with_audit(c, normaliser=0.9, normaliser_error=0.04), ()
    ),
    "mass within two percent": (
        lambda c: with_audit(c, normaliser=0.985, normaliser_error=1e-3), ()
    ),
    "mass unknown": (
        lambda c: with_audit(c, normaliser=1.0, normaliser_error=0.3),
        ("its mass is 1 +- 0.3",),
    ),
    # A tenth of a mass of 5,000 points is 500 points: 6.2 nats.
    "a bump": (
        lambda c: with_audit(c, highest=6.3, looked_at=5000),
        ("has a bump: at one of 5000 points that were looked at it is 6.3 nat",),
    ),
    "a small bump": (lambda c: with_audit(c, highest=6.1, looked_at=5000), ()),
    "a hole": (lambda c: with_audit(c, worst=9.0, highest=0.5, looked_at=5000), ()),
    "an old file": (lambda c: with_audit(c, highest=math.nan, looked_at=0), ()),
    "not finite": (lambda c: with_audit(c, bias=math.nan, worst=9.0), ("is not finite",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said(name, good):
    change, expected = CASES[name]
    changed = change(good)
    assert len(changed.troubles) == len(expected)
    for trouble, words in zip(changed.troubles, expected):
        assert words in trouble
        assert f"WARNING: {trouble}" in changed.text()
    assert ("WARNING" in changed.text()) == bool(expected)
