"""Posteriors by many chains: against closed forms and the flow, resumed, and in doubt."""

import math
import warnings
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad import sample_posterior
from pyro_stad.data import Periodic
from pyro_stad.errors import AccuracyWarning, CheckpointError, EvidenceError
from pyro_stad.evidence import SMC
from pyro_stad.infer.starts import Doubts
from pyro_stad.samplers import CrankNicolson

QUIET = {"progress": False}
Y = torch.tensor([0.3, -1.1, 0.7, 1.9])


def conjugate(y):
    """A normal mean with a wide prior, and a scale with a closed posterior of its own."""
    mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 10.0))
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)
    pyro.sample("waited", dist.Exponential(rate), obs=torch.tensor(0.8))


PRECISION = 1 / 100 + 4 / 0.25
KNOWN = {
    "mean": (Y.sum().item() / 0.25 / PRECISION, PRECISION**-0.5),
    "rate": (3 / 3.8, math.sqrt(3) / 3.8),
}


@pytest.mark.parametrize(
    ("form", "kernel"),
    [("auto", None), ("noise", None), ("parameters", None), ("noise", CrankNicolson())],
)
def test_moments_are_those_of_the_closed_form(form, kernel):
    count = 250 if kernel is None else 800  # small moves take longer to forget
    found = sample_posterior(conjugate, Y, form=form, kernel=kernel, num_samples=count, **QUIET)
    assert found.draws["mean"].shape == (64, count)
    assert form in (found.form, "auto")
    assert bool(found.pilot) == (form == "auto")
    for name, (mean, sd) in KNOWN.items():
        draws, effective = found.draws[name].double(), found.ess[name].item()
        assert abs(draws.mean() - mean) < 4.5 * sd / math.sqrt(effective)
        assert abs(draws.std() / sd - 1) < 0.08
    assert not found.disagreeing
    assert "worst R-hat" in found.summary()
    stats = found.to_arviz()["sample_stats"]
    assert stats["diverging"].dtype == bool
    assert not stats["diverging"].any()
    assert stats["energy"].shape == (64, count)


def test_it_stops_at_the_effective_draws_that_were_asked_for():
    found = sample_posterior(conjugate, Y, num_samples=20, min_ess=2000.0, **QUIET)
    assert found.worst_ess >= 2000
    assert found.lp.shape[1] < 400
    # Not a block more than it takes.
    before = found.lp.shape[1] - 20
    assert sample_posterior(conjugate, Y, num_samples=before, **QUIET).worst_ess < 2000


def test_a_learned_prior_has_one_posterior_in_both_forms(tiny_prior):
    """In parameters by the distilled density, in noise by the flow: as near as these are."""

    def model(y):
        theta = pyro.sample("theta", tiny_prior)
        pyro.sample("y", dist.Normal(theta[..., 1], 0.3), obs=y)

    y = torch.tensor(0.5)
    noise, parameters = (
        sample_posterior(model, y, form=form, num_samples=100, **QUIET)
        for form in ("noise", "parameters")
    )
    known = pyro_stad.log_evidence(model, y, method=SMC(4000), **QUIET).draws["theta"]
    for found in (noise, parameters):
        draws = found.draws["theta"].flatten(0, 1)
        error = known.std(0) * (1 / found.ess["theta"] + 1 / 4000).sqrt()
        assert ((draws.mean(0) - known.mean(0)) / error).abs().max() < 5
    # It is taken for draws wherever Pyro's own are, chain by chain.
    corrected = pyro_stad.correct(parameters, model, y, draws=200)
    assert corrected.draws["theta"].shape[-1] == 3


def test_same_seed_same_bits_and_it_goes_on_after_a_kill(tmp_path, monkeypatch):
    options = {"num_samples": 120, "num_chains": 32, **QUIET}
    whole = sample_posterior(conjugate, Y, **options)
    torch.rand(1)  # the global generator has no say
    assert torch.equal(whole.draws["mean"], sample_posterior(conjugate, Y, **options).draws["mean"])
    file, step, moves = tmp_path / "chains", pyro_stad.samplers.Ensemble.step, []

    def killed(chains):
        moves.append(1)
        if len(moves) == 75:
            raise KeyboardInterrupt
        step(chains)

    with monkeypatch.context() as patch:
        patch.setattr(pyro_stad.samplers.Ensemble, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            sample_posterior(conjugate, Y, checkpoint=file, **options)
    again = sample_posterior(conjugate, Y, checkpoint=file, **options)
    for name in KNOWN:
        assert torch.equal(again.draws[name], whole.draws[name])
    assert again.pilot == whole.pilot
    with pytest.raises(CheckpointError, match="has seed = 0, these chains have 1"):
        sample_posterior(conjugate, Y, checkpoint=file, seed=1, **options)


def test_a_file_is_there_from_the_warm_up_on(tmp_path):
    """Also of few draws; fewer or more of them are had from it afterwards."""
    file, options = tmp_path / "chains", {"num_chains": 32, **QUIET}
    few, more = (
        sample_posterior(conjugate, Y, num_samples=count, checkpoint=file, **options)
        for count in (40, 60)
    )
    whole = sample_posterior(conjugate, Y, num_samples=60, **options)
    assert torch.equal(more.draws["mean"], whole.draws["mean"])
    assert torch.equal(few.draws["mean"], whole.draws["mean"][:, :40])
    back = sample_posterior(conjugate, Y, num_samples=40, checkpoint=file, **options)
    assert torch.equal(back.draws["mean"], few.draws["mean"])

    def other(y):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 10.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.sample("waited", dist.Exponential(torch.tensor(1.0)), obs=torch.tensor(0.8))

    with pytest.raises(CheckpointError, match="has sites"):
        sample_posterior(other, Y, checkpoint=file, form="auto", **options)
    with pytest.raises(FileNotFoundError, match="a folder that there is not"):
        sample_posterior(conjugate, Y, checkpoint=tmp_path / "none" / "chains", **options)


def test_likelihoods_that_are_nan_are_not_cut_off_in_silence():
    def broken(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        scale = torch.where(x < 0.3, torch.nan, 1.0)
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    with pytest.raises(EvidenceError, match=r"likelihoods were NaN.*of another model"):
        sample_posterior(broken, torch.tensor(0.0), **QUIET)


def test_a_generator_is_sampled_by_its_law_and_says_so(tiny_prior):
    generator = pyro_stad.distil_one_step(tiny_prior, steps=20, pairs=200, progress=False)

    def model(y):
        theta = pyro.sample("theta", generator)
        pyro.sample("y", dist.Normal(theta[..., 1], 0.3), obs=y)

    with pytest.warns(AccuracyWarning, match="drawn by a generator of one step"):
        found = sample_posterior(model, torch.tensor(0.5), num_samples=50, **QUIET)
    assert found.form == "noise"
    assert "warning: 'theta' is drawn by a generator" in found.summary()


def test_sites_with_constant_entries_and_two_dtypes():
    """A Cholesky factor has zeros; data in double precision make a density double."""

    def correlated(y):
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(1.0)))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=y)

    found = sample_posterior(correlated, torch.tensor([1.0, 0.8]), **QUIET)
    assert found.ess["factor"].isfinite().all()
    assert found.r_hat["factor"][0, 1] == 1
    prior = pyro_stad.fit(
        torch.randn(300, 2), budget="tiny", members=0, progress=False, dtype=torch.float32
    )

    def single(y):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)

    y = torch.tensor([0.3, -0.2], dtype=torch.float64)
    for form in ("noise", "parameters"):
        found = sample_posterior(single, y, form=form, num_samples=50, **QUIET)
        assert found.draws["theta"].dtype == torch.float32
        assert (found.draws["theta"].mean((0, 1)) - y / 2).abs().max() < 0.2


def test_a_start_on_a_bound_is_left_out():
    """Of a gamma law with a tiny shape many draws are rounded to zero."""

    def tiny(y):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(0.02, dtype=torch.float32), 1.0))
        pyro.sample("y", dist.Normal(rate, 0.5), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccuracyWarning)
        found = sample_posterior(
            tiny, torch.tensor(0.5), form="parameters", num_samples=10, num_chains=16, **QUIET
        )
    assert found.draws["rate"].isfinite().all()


def test_it_goes_to_arviz_and_to_the_bridge():
    found = sample_posterior(conjugate, Y, num_samples=100, form="parameters", **QUIET)
    data = found.to_arviz()
    assert data["posterior"]["mean"].shape == (64, 100)
    smc = pyro_stad.log_evidence(conjugate, Y, method="smc", **QUIET)
    for draws in (data, found):
        bridge = pyro_stad.log_evidence(conjugate, Y, method="bridge", draws=draws, **QUIET)
        assert abs(bridge.log_z - smc.log_z) < 4 * math.hypot(bridge.log_z_err, smc.log_z_err)


def test_a_prior_that_is_no_map_of_noise_is_sampled_in_parameters():
    """A Dirichlet, whose posterior is one too; chains start from the prior's draws."""

    def counted(y):
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.0])))
        pyro.sample("y", dist.Multinomial(probs=shares), obs=y)

    y = torch.tensor([30.0, 5.0, 15.0])
    found = sample_posterior(counted, y, **QUIET)
    assert found.form == "parameters"
    known = dist.Dirichlet(torch.tensor([32.0, 8.0, 16.0]))
    draws, sd = found.draws["shares"].flatten(0, 1).double(), known.variance.sqrt()
    assert ((draws.mean(0) - known.mean) / sd * found.ess["shares"].sqrt()).abs().max() < 4.5
    assert (draws.std(0) / sd - 1).abs().max() < 0.08
    with pytest.raises(ValueError, match="`form` 'noise' is none of this model"):
        sample_posterior(counted, y, form="noise", **QUIET)


def test_it_starts_in_the_mode_that_the_data_leave():
    """Of a prior without a form in noise most draws are in the other mode, which nothing leaves."""

    class Mixture(dist.MixtureSameFamily):
        support = dist.constraints.real

    def far(y):
        weights = dist.Categorical(torch.tensor([0.95, 0.05]))
        x = pyro.sample("x", Mixture(weights, dist.Normal(torch.tensor([0.0, 50.0]), 1.0)))
        pyro.sample("y", dist.Normal(x, 10.0), obs=y)

    found = sample_posterior(far, torch.tensor(50.0), num_samples=50, **QUIET)
    assert not found.disagreeing
    assert abs(found.draws["x"].mean() - 50) < 0.2


@pytest.mark.parametrize("form", ["noise", "parameters"])
def test_a_density_that_is_infinite_at_a_bound_holds_nobody(form):
    """Gamma(1/2): at zero, to which a parameter may be rounded. By quadrature of its root."""

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(0.5), 1.0))
        pyro.sample("y", dist.Normal(rate, 1.0), obs=y)

    root = torch.linspace(0, 4, 40_001)
    weights = (-root.square() - 0.5 * (0.3 - root.square()).square()).softmax(0)
    mean = (weights * root.square()).sum()
    sd = (weights * (root.square() - mean).square()).sum().sqrt()
    for seed in range(3):
        found = sample_posterior(model, torch.tensor(0.3), form=form, seed=seed, **QUIET)
        error = sd / math.sqrt(found.worst_ess)
        assert abs(found.draws["rate"].mean() - mean) < 5 * error
        assert torch.isfinite(found.lp).all()


def apart(y):
    """Observed is how far from zero a parameter is, so that every one of them has two modes."""
    x = pyro.sample("x", dist.Normal(torch.full(y.shape, 0.5), 3.0).to_event(1))
    pyro.sample("y", dist.Normal(x.abs(), 0.1).to_event(1), obs=y)


@pytest.mark.parametrize("form", ["noise", "parameters"])
def test_modes_that_nothing_leads_between_have_their_weights(form):
    """That of the left is the prior's there over that of both, by jumps; to a tenth."""
    found = sample_posterior(apart, torch.tensor([3.0]), form=form, num_samples=200, **QUIET)
    width = dist.Normal(0.5, math.hypot(3.0, 0.1))
    sides = torch.stack([width.log_prob(torch.tensor(side)).exp() for side in (-3.0, 3.0)])
    wanted = (sides[0] / sides.sum()).item()
    assert abs((found.draws["x"] < 0).double().mean() / wanted - 1) < 0.1
    assert not found.disagreeing
    assert found.jumped > 0.2


def test_chains_that_disagree_are_told():
    """More modes than anything can lead between: chains stay where they started."""
    with pytest.warns(AccuracyWarning, match=r"chains of \['x'\] disagree: the worst R-hat is"):
        found = sample_posterior(apart, torch.full((8,), 3.0), num_samples=50, **QUIET)
    assert found.worst_r_hat > 1.1
    # They started in both.
    assert 0.2 < (found.draws["x"] > 0).double().mean() < 0.8


def test_particles_that_did_not_come_to_one_posterior_are_in_doubt():
    """Stuck, or apart by more than a nat and five standard errors."""
    runs = SimpleNamespace(
        stuck=torch.tensor([False, True, False, False, False]),
        log_z=torch.tensor([[0.0, 0.5], [0.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 0.9]]),
        variance=torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.01, 0.01], [0.1, 0.1], [0.0, 0.0]]),
    )
    doubts = Doubts.of(runs)
    assert doubts.left(torch.zeros(5)).tolist() == [False, True, True, False, False]
    # What held the particles does not hold chains that jump.
    assert doubts.left(torch.full((5,), 0.5)).tolist() == [False, False, True, False, False]


def test_slips_have_messages(tiny_prior):
    for options, message in (
        ({"num_chains": 9}, "`num_chains` must be even"),
        ({"num_samples": 0}, "`num_samples` must be an integer"),
        ({"min_ess": -1.0}, "`min_ess` must be a positive number"),
        ({"form": "whitened"}, "`form` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_posterior(conjugate, Y, **options, **QUIET)
    angle = pyro_stad.fit(
        torch.rand(300, 1), bounds=[Periodic(0.0, 1.0)], budget="tiny", members=0, progress=False
    )

    def turned(y):
        theta = pyro.sample("theta", angle)
        pyro.sample("y", dist.Normal(theta[..., 0], 0.1), obs=y)

    with pytest.raises(ValueError, match=r"which has \['noise'\]: .* where one is an angle"):
        sample_posterior(turned, torch.tensor(0.5), form="parameters", **QUIET)
    assert sample_posterior(turned, torch.tensor(0.5), num_samples=20, **QUIET).form == "noise"

    def neither(y):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
        theta = pyro.sample("theta", angle)
        pyro.sample("y", dist.Normal(theta[..., 0] + shares[..., 0], 0.1), obs=y)

    with pytest.raises(ValueError, match="Nor can the model be sampled in parameters"):
        sample_posterior(neither, torch.tensor(0.5), **QUIET)
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        sample_posterior(conjugate, Y, kernel="nuts", **QUIET)
