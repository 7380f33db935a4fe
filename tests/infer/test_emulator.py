"""Emulated posteriors: against closed forms, by ranks, and by weights; and what has none."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_stad
from pyro_stad.data import Periodic
from pyro_stad.errors import AccuracyWarning, OutOfDistributionWarning
from pyro_stad.fitting import one_step_run
from pyro_stad.infer import PosteriorEmulator, Ranks
from pyro_stad.learn import loop
from pyro_stad.model.predictive import predictive

OPTIONS = {"simulations": 4000, "budget": "tiny", "steps": 300, "progress": False}


def model(y):
    """Three data about one mean, whose posterior has a closed form."""
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(x, 0.8), obs=y)


@pytest.fixture(scope="module")
def emulator():
    torch.set_default_dtype(torch.float64)
    return pyro_stad.distil_posterior(model, torch.zeros(3), **OPTIONS)


def closed_form(y):
    precision = 1 + 3 / 0.8**2
    mean = (y.sum() / 0.8**2 / precision).item()
    law = dist.MultivariateNormal(torch.zeros(3), 0.8**2 * torch.eye(3) + 1.0)
    return mean, precision**-0.5, law.log_prob(y).item()


@pytest.mark.parametrize("y", [(0.0, 0.3, -0.2), (1.5, 0.2, 1.0)])
def test_draws_and_weights_are_of_the_posterior(emulator, y):
    y = torch.tensor(y)
    mean, sd, log_z = closed_form(y)
    draws = emulator.sample(y, num_samples=4000)["x"]
    assert draws.shape == (4000,)
    # The network's own error, a tenth of a standard deviation, above that of the draws.
    assert abs(draws.mean() - mean) < sd * (0.1 + 4 / math.sqrt(4000))
    assert abs(draws.std() / sd - 1) < 0.12
    found = emulator.importance(y)
    assert found.is_reliable
    assert "corrected to the model's own law" in found.summary()
    assert abs(found.log_z - log_z) < 5 * found.log_z_err + 1e-3
    assert abs(found.mean()["x"] - mean) < 4 * sd / math.sqrt(found.ess)
    again = emulator.sample(y, num_samples=4000)["x"]
    assert torch.equal(draws, again)
    assert not torch.equal(draws, emulator.sample(y, num_samples=4000, seed=1)["x"])


def test_ranks_tell_a_right_emulator_from_a_wrong_one(emulator):
    found = emulator.ranks(400, 49, progress=False)
    assert found.ranks.shape == (400, 1)
    assert found.is_uniform
    assert "within the 99 % band" in found.summary()

    class Narrow(type(emulator.generator.transport)):
        def draw(self, z, context=None):
            return 0.5 * super().draw(z, context)

    made = emulator.generator
    narrow = Narrow(made.transport.field, made.transport.angle)
    wrong = PosteriorEmulator(
        model, torch.zeros(3), generator=type(made)(made.flow, narrow, made.distilled)
    )
    assert not wrong.ranks(400, 49, progress=False).is_uniform
    assert "OUTSIDE" in wrong.ranks(400, 49, progress=False).summary()


def test_the_band_is_passed_by_chance_alone():
    """Of uniform ranks no more than one percent are outside; of any shift of them, nearly all."""
    source = torch.Generator().manual_seed(0)
    found = [
        Ranks(torch.randint(100, (200, 2), generator=source), 99, ("a", "b")) for _ in range(300)
    ]
    assert sum(not each.is_uniform for each in found) <= 9  # three, and four deviations more
    exact = Ranks(torch.arange(100)[:, None], 99, ("a",))
    assert exact.deviations().item() < 1e-12


def test_it_is_made_again_from_its_file(emulator, tmp_path):
    emulator.generator.save(tmp_path / "emulator.safetensors")
    back = PosteriorEmulator(
        model, torch.zeros(3), generator=pyro_stad.load(tmp_path / "emulator.safetensors")
    )
    y = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(back.sample(y)["x"], emulator.sample(y)["x"])
    assert "PosteriorEmulator(x" in back.summary()


def test_a_learned_prior_and_a_bounded_parameter(tiny_prior):
    """Sites of any support, of a model that does not broadcast over draws."""

    def loops(y):
        theta = pyro.sample("theta", tiny_prior)
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.3))
        pyro.sample("y", dist.Normal(theta[1], float(scale)), obs=y)

    with pytest.warns(UserWarning, match="does not broadcast"):
        found = pyro_stad.distil_posterior(
            loops, torch.tensor(0.0), **{**OPTIONS, "simulations": 300, "steps": 30}
        )
    draws = found.sample(torch.tensor(0.4), num_samples=20)
    assert draws["theta"].shape == (20, 3)
    assert draws["scale"].min() > 0


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """Killed in its last training, it learns no conditional flow again, and ends the same."""
    options = {**OPTIONS, "simulations": 300, "steps": 30}
    y = torch.zeros(3)
    whole = pyro_stad.distil_posterior(model, y, **options)

    taken = []
    advance = loop._Run.advance

    def counted(run, loss):
        taken.append(run)
        return advance(run, loss)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "advance", counted)
    with monkeypatch.context() as patch:
        patch.setattr(one_step_run, "pairs_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            pyro_stad.distil_posterior(model, y, resume=tmp_path, **options)
    assert len(taken) > options["steps"]
    taken.clear()
    again = pyro_stad.distil_posterior(model, y, resume=tmp_path, **options)
    assert len(taken) == options["steps"]
    assert torch.equal(whole.sample(y)["x"], again.sample(y)["x"])


def test_an_emulator_of_another_model_is_told(emulator):
    """Of the same names and shapes, so that its weights alone can tell."""

    def sharper(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(x, 0.02), obs=y)

    wrong = PosteriorEmulator(sharper, torch.zeros(3), generator=emulator.generator)
    with pytest.warns(AccuracyWarning, match="not learned the posterior of this datum"):
        assert not wrong.importance(torch.tensor([0.3, 0.31, 0.29])).is_reliable


def test_several_sites_counts_plates_and_a_simplex():
    """Ranks of a model with all of them; a site that is constrained has its own coordinates."""

    def counts(n, seen):
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(3.0), 1.0))
        pyro.sample("n", dist.Poisson(rate), obs=n)
        with pyro.plate("rows", 2):
            pyro.sample("seen", dist.Normal(shares, 0.1).to_event(1), obs=seen)

    made = pyro_stad.distil_posterior(
        counts, torch.tensor(2.0), torch.zeros(2, 3), **{**OPTIONS, "simulations": 2000}
    )
    assert made.generator.names == ("shares[0]", "shares[1]", "rate")
    assert made.generator.context_names == ("n", *(f"seen[{index}]" for index in range(6)))
    seen = torch.tensor([0.2, 0.5, 0.3])
    few, many = (
        made.sample(torch.tensor(n), seen.expand(2, 3), num_samples=500) for n in (1.0, 6.0)
    )
    assert many["shares"].shape == (500, 3)
    torch.testing.assert_close(many["shares"].sum(-1), torch.ones(500))
    # Of a network of sixteen units; each datum goes to its own variable.
    torch.testing.assert_close(many["shares"].mean(0), seen, rtol=0, atol=0.1)
    # Gamma(3 + n, 2): 2 and 4.5.
    torch.testing.assert_close(few["rate"].mean(), torch.tensor(2.0), rtol=0, atol=0.5)
    torch.testing.assert_close(many["rate"].mean(), torch.tensor(4.5), rtol=0, atol=0.7)
    assert made.ranks(300, 49, progress=False).deviations().max() < 0.25


def test_what_draws_do_not_show_is_refused():
    """A mask or a scale is in the density alone, and a covariate is no datum."""
    y = torch.zeros(2)

    def masked(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        keep = torch.tensor([True, False])
        pyro.sample("y", dist.Normal(x, 0.5).expand([2]).mask(keep).to_event(1), obs=y)

    def scaled(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 2), pyro.poutine.scale(scale=10.0):
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    def with_mask(y):
        with pyro.poutine.mask(mask=torch.tensor(False)):
            x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 2):
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    def wider(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)

    for broken, message in (
        (masked, "'y' is masked"),
        (scaled, "'y' is scaled"),
        (with_mask, "'x' is masked"),
        (wider, r"'y' has shape \(2,\), and its law draws \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pyro_stad.distil_posterior(broken, y, **OPTIONS)

    def shifted(c, y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x + c, 0.5), obs=y)

    made = pyro_stad.distil_posterior(
        shifted, 0.0, torch.tensor(0.0), **{**OPTIONS, "simulations": 300, "steps": 5}
    )
    made.sample(0.0, torch.tensor(1.0))
    with pytest.raises(ValueError, match="an argument that is no data has changed"):
        made.sample(5.0, torch.tensor(5.0))
    with pytest.raises(ValueError, match="'y' observes nan"):
        made.sample(0.0, torch.tensor(torch.nan))


def test_a_datum_that_can_not_be_is_refused():
    def bounded(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Uniform(x - 1, x + 1), obs=y)

    made = pyro_stad.distil_posterior(
        bounded, torch.tensor(0.0), **{**OPTIONS, "simulations": 300, "steps": 5}
    )
    with pytest.raises(ValueError, match="none of 1000 draws is possible"):
        made.importance(torch.tensor(1e6))


def test_ranks_are_of_data_that_no_training_has_seen(emulator):
    read = emulator.density.model
    drawn = [
        predictive(read, 100, 0, purpose, progress=False)[1] for purpose in ("training", "ranks")
    ]
    assert not torch.isin(*drawn).any()


def test_a_datum_far_from_the_simulations_is_told(emulator):
    """Of a hundred data of the model hardly one is."""
    with pytest.warns(OutOfDistributionWarning, match="it extrapolates"):
        emulator.sample(torch.tensor([60.0, -60.0, 30.0]))
    _, rows = predictive(emulator.density.model, 100, 0, "ranks", progress=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for row in rows:
            emulator.sample(row, num_samples=1)
    assert len(told) <= 3


def test_slips_have_messages(emulator, tiny_prior):
    def with_factor(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.factor("cut", -x.abs())
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y = torch.tensor(0.0)
    with pytest.raises(ValueError, match="'cut' is a factor"):
        pyro_stad.distil_posterior(with_factor, y, **OPTIONS)
    with pytest.raises(ValueError, match=r"'y' observes shape \(2,\), expected shape \(3,\)"):
        emulator.sample(torch.zeros(2))
    with pytest.raises(ValueError, match="`simulations` must be an integer"):
        pyro_stad.distil_posterior(model, torch.zeros(3), simulations=3)
    with pytest.raises(TypeError, match="`generator` must be a ConditionalGenerator"):
        PosteriorEmulator(model, torch.zeros(3), generator=tiny_prior)
    with pytest.raises(ValueError, match="it is of another model"):
        PosteriorEmulator(scalar(tiny_prior), y, generator=emulator.generator)
    generator = pyro_stad.distil_one_step(tiny_prior, steps=1, pairs=100, progress=False)
    with pytest.raises(ValueError, match=r"generators of one step.*generator.prior"):
        pyro_stad.distil_posterior(scalar(generator), y, **OPTIONS)
    angle = pyro_stad.fit(
        torch.rand(300, 1), bounds=[Periodic(0.0, 1.0)], budget="tiny", members=0, progress=False
    )
    with pytest.raises(ValueError, match=r"\['theta'\] are angles"):
        pyro_stad.distil_posterior(scalar(angle), y, **OPTIONS)


def scalar(prior):
    def of_last(y):
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta[..., -1], 1.0), obs=y)

    return of_last
