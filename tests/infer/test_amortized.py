"""Recognition guides: what they read off models, and what they say, against closed forms."""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_stad import AccuracyWarning, AmortizedGuide, FlowReparam
from pyro_stad.infer.amortized.posteriors import POSTERIORS, FlowPosterior, LowRank

LOADINGS = torch.tensor([[1.0, 0.8], [0.0, 0.5], [0.3, -1.0]], dtype=torch.float64)
NOISE = 0.5


def factors(x):
    """Two factors behind each row of three numbers; its posterior and evidence are normal."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=x)


def truth(x):
    """Return mean, covariance and log-evidence of each row, in closed form."""
    loadings = LOADINGS
    precision = torch.eye(2) + loadings.T @ loadings / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean = x @ loadings @ covariance / NOISE**2
    marginal = loadings @ loadings.T + NOISE**2 * torch.eye(3)
    evidence = dist.MultivariateNormal(torch.zeros(3), marginal).log_prob(x)
    return mean, covariance, evidence


def drawn(count, seed=0):
    source = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=source, dtype=torch.float64)
    return z @ LOADINGS.T + NOISE * torch.randn(count, 3, generator=source, dtype=torch.float64)


def nested(x):
    """Groups of items under a global mean and a scale."""
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", x.shape[0], dim=-2):
        group = pyro.sample("group", dist.Normal(mean, scale))
        with pyro.plate("items", x.shape[1], dim=-1):
            item = pyro.sample("item", dist.LogNormal(group, 0.5))
            pyro.sample("x", dist.Normal(item, 0.3), obs=x)


def trained(model, guide, *args, steps=600, rate=5e-3, elbo=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    optim = pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, optim, elbo or TraceMeanField_ELBO())
    return [svi.step(*args) for _ in range(steps)]


@pytest.fixture(scope="module")
def low_rank():
    torch.set_default_dtype(torch.float64)
    guide = AmortizedGuide(factors, posterior=LowRank(2), width=64)
    trained(factors, guide, drawn(400))
    params = pyro.get_param_store().get_state()
    return guide, params


class TestReading:
    def test_nested_plates_are_read_off(self):
        guide = AmortizedGuide(nested)
        guide(torch.rand(4, 3))
        group, item = guide.local
        assert (group.name, group.plates, group.upstream) == (
            "group",
            ("groups",),
            ("mean", "scale"),
        )
        assert [(r.name, r.plates) for r in group.rows] == [("x", ("groups", "items"))]
        assert (item.name, item.plates, item.upstream) == ("item", ("groups", "items"), ("group",))

    def test_covariates_are_data_and_designs_are_not(self):
        design = torch.randn(2, 5)

        def model(u, batch, knots):
            with pyro.plate("data", len(u)):
                z = pyro.sample("z", dist.Normal(u[:, None] * torch.ones(2), 1.0).to_event(1))
                pyro.sample("y", dist.Normal(z @ knots, 1.0).to_event(1), obs=batch["y"])

        guide = AmortizedGuide(model)
        guide(torch.randn(6), {"y": torch.randn(6, 5)}, design)
        assert {r.name: r.shape for r in guide.local[0].rows} == {"u": (), "batch['y']": (5,)}

    def test_a_plate_without_data_is_global(self):
        def model(x, y):
            with pyro.plate("weights", 3):
                w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                e = pyro.sample("e", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal((x * w).sum(-1) + e, 1.0), obs=y)

        guide = AmortizedGuide(model)
        values = guide(torch.randn(5, 3), torch.randn(5))
        assert [site.name for site in guide.local] == ["e"]
        assert values["w"].shape == (3,)
        # All three weights are seen by each datum's network, beside its two arguments.
        assert guide.local[0].upstream == ("w",)
        assert guide.recognisers[0].encoder.trunk[0].in_features == 2 * 128 + 3

    def test_a_learned_prior_is_recognised_in_noise(self, tiny_prior):
        def model(x):
            with pyro.plate("data", len(x)):
                theta = pyro.sample("theta", tiny_prior)
                pyro.sample("x", dist.Normal(theta, 0.5).to_event(1), obs=x)

        noise = FlowReparam()(model)
        guide = AmortizedGuide(noise)
        x, points = tiny_prior.sample((30,)), tiny_prior.counts.points
        losses = trained(noise, guide, x, steps=60)
        assert guide.local[0].name == "theta_base"
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
        assert tiny_prior.counts.points == points  # no density was asked for

    def test_rows_of_a_function_stand_in_for_arguments(self):
        index = torch.tensor([0, 0, 1, 2, 2, 2])

        def means(y):
            return torch.stack([y[index == g].mean() for g in range(3)])[:, None]

        def model(y):
            with pyro.plate("groups", 3):
                g = pyro.sample("g", dist.Normal(0.0, 1.0))
            with pyro.plate("items", len(y)):
                pyro.sample("y", dist.Normal(g[index], 1.0), obs=y)

        assert AmortizedGuide(model, features={"groups": means})(torch.randn(6))["g"].shape == (3,)
        with pytest.raises(ValueError, match="AutoNormal is a guide for it"):
            AmortizedGuide(model)(torch.randn(6))


class TestPosteriors:
    @pytest.mark.parametrize("name", POSTERIORS)
    def test_before_training_it_is_the_prior(self, name):
        torch.manual_seed(0)
        family = POSTERIORS[name].build(2, 16)
        loc, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
        law = family.law(torch.randn(7, 16), loc, scale)
        assert (law.batch_shape, law.event_shape) == ((7,), (2,))
        with torch.no_grad():
            draws = law.sample((4000,)).reshape(-1, 2)
        # Splines start with random knots, which bend N(0, 1) by a fifth or so.
        allowed = 0.5 if name == "flow" else 0.05
        assert torch.allclose((draws.mean(0) - loc) / scale, torch.zeros(2), atol=allowed)
        assert torch.allclose(draws.std(0) / scale, torch.ones(2), atol=allowed)

    @pytest.mark.parametrize("name", POSTERIORS)
    @pytest.mark.parametrize("features", [1, 3])
    def test_a_density_integrates_to_one(self, name, features):
        """Against a wide normal law, by importance: the mean of p / q is one."""
        torch.manual_seed(1)
        family = POSTERIORS[name].build(features, 8)
        for parameter in family.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        zeros, ones = torch.zeros(features), torch.ones(features)
        law = family.law(torch.randn(8), zeros, ones)
        wide = dist.Normal(zeros, 2.0).to_event(1)
        with torch.no_grad():
            draws = law.sample((20_000,))
            ratio = (wide.log_prob(draws) - law.log_prob(draws)).exp()
        # E_law[wide / law] = 1 where law covers wide; its tails are normal, the middle half is.
        inside = (draws.abs() < 2).all(-1)
        expected = math.erf(1 / math.sqrt(2)) ** features
        found = (ratio * inside).mean()
        assert abs(found - expected) < 5 * (ratio * inside).std() / math.sqrt(len(draws))

    def test_divergence_of_low_rank_is_that_of_the_full_covariance(self):
        torch.manual_seed(0)
        family = LowRank(2).build(4, 8)
        family.factor.weight.data.normal_()
        family.head.weight.data.normal_(std=0.3)
        zeros, ones = torch.zeros(4), torch.ones(4)
        law = family.law(torch.randn(5, 8), zeros, 2 * ones)
        prior = dist.Normal(0.3 * ones, 1.5 * ones).expand([5, 4]).to_event(1)
        full = [
            dist.MultivariateNormal(law.loc, law.covariance_matrix),
            dist.MultivariateNormal(0.3 * ones, torch.diag(1.5**2 * ones)),
        ]
        expected = torch.distributions.kl_divergence(*full)
        found = torch.distributions.kl_divergence(law, prior)
        assert torch.allclose(found, expected, rtol=1e-10)
        with pytest.raises(NotImplementedError):
            torch.distributions.kl_divergence(law, dist.Laplace(zeros, ones).to_event(1))

    def test_wrong_options(self):
        with pytest.raises(ValueError, match="`rank`"):
            LowRank(0)
        with pytest.raises(ValueError, match="`bins`"):
            FlowPosterior(bins=0)
        with pytest.raises(ValueError, match="`posterior` must be one of"):
            AmortizedGuide(factors, posterior="normal")
        with pytest.raises(TypeError, match="`model` must be a Pyro model"):
            AmortizedGuide(3)


class TestEstimators:
    @pytest.mark.parametrize("name", POSTERIORS)
    def test_all_estimate_one_bound(self, name):
        """Closed and sampled divergences agree; Renyi's bound lies between it and the evidence."""
        x = drawn(1)
        pyro.set_rng_seed(0)
        guide = AmortizedGuide(factors, posterior=name, width=32)
        guide(x)
        many = {"num_particles": 400, "vectorize_particles": True}
        sampled = -Trace_ELBO(**many).loss(factors, guide, x)
        closed = -TraceMeanField_ELBO(**many).loss(factors, guide, x)
        renyi = -RenyiELBO(alpha=0.0, **many).loss(factors, guide, x)
        # One draw in twenty-five counts before training: a quarter of a nat, three times over.
        assert abs(sampled - closed) < 0.1 * abs(sampled)
        assert sampled < renyi
        assert abs(renyi - truth(x)[2].sum()) < 0.75

    @pytest.mark.parametrize(
        ("name", "shape"),
        [("mean_field", ()), ("mean_field", (2,)), ("mean_field", (2, 3)), ("low_rank", (2,)),
         ("low_rank", ())],
    )  # fmt: skip
    def test_the_divergence_is_taken_in_closed_form(self, name, shape):
        def model(x):
            with pyro.plate("data", len(x)):
                law = dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))
                z = pyro.sample("z", law)
                mean = z.reshape(len(x), -1).sum(-1)
                pyro.sample("x", dist.Normal(mean, 100.0), obs=x)

        x = torch.randn(6)
        guide = AmortizedGuide(model, posterior=name, width=8)
        guide(x)
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, q)).get_trace(x)
        found = torch.distributions.kl_divergence(q.nodes["z"]["fn"], p.nodes["z"]["fn"])
        assert found.shape == (6,)
        # With data that say next to nothing, chance comes from the divergence, where it is drawn.
        for parameter in guide.recognisers.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        spread = {
            elbo: torch.tensor([elbo().loss(model, guide, x) for _ in range(30)]).std()
            for elbo in (Trace_ELBO, TraceMeanField_ELBO)
        }
        assert spread[TraceMeanField_ELBO] < 0.2 * spread[Trace_ELBO]

    @pytest.mark.parametrize("name", ["mean_field", "low_rank"])
    def test_a_compiled_step_is_the_same_step(self, name):
        x = drawn(30)
        losses = []
        for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                guide = AmortizedGuide(factors, posterior=name, width=32)
                losses.append(trained(factors, guide, x, steps=40, elbo=elbo)[-10:])
        # The streams of random numbers differ: what is compared is where training has come to.
        assert sum(losses[0]) == pytest.approx(sum(losses[1]), rel=0.15)

    def test_splines_refuse_to_be_traced(self):
        guide = AmortizedGuide(factors, posterior="flow", width=16)
        with pytest.raises(RuntimeError, match="Trace_ELBO in place of"):
            trained(factors, guide, drawn(5), steps=2, elbo=JitTrace_ELBO(ignore_jit_warnings=True))

    @pytest.mark.parametrize("name", POSTERIORS)
    def test_constrained_and_nested_sites_train(self, name):
        x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) + 1
        guide = AmortizedGuide(
            nested, posterior=name, width=32, global_guide=AutoMultivariateNormal
        )
        losses = trained(nested, guide, x, steps=80, rate=1e-2)
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
        values = guide(x[:2])
        assert values["group"].shape == (2, 1)
        assert values["item"].shape == (2, 3)
        assert (values["item"] > 0).all()


class TestAnswers:
    def test_new_data_get_the_posterior_of_the_closed_form(self, low_rank):
        guide, params = low_rank
        pyro.get_param_store().set_state(params)
        x = drawn(50, seed=5)
        mean, covariance, evidence = truth(x)
        found = guide.importance(x, draws=500, progress=False)
        sds = covariance.diagonal().sqrt()
        # 500 weighted draws: a twentieth of an sd each, and the largest of a hundred means.
        assert (found.mean()["z"] - mean).abs().max() < 0.2 * sds.max()
        assert (found.sd()["z"] / sds - 1).abs().max() < 0.25
        assert (found.log_z - evidence).abs().max() < 5 * found.log_z_err.max()
        assert found.is_reliable.all()
        assert found.log_z_err.max() < 0.1
        assert guide.median(x)["z"].sub(mean).abs().max() < 0.35
        assert "50 data of plate 'data'" in found.summary()

    def test_evidence_given_globals_that_are_conditioned_on(self):
        def model(x):
            noise = pyro.sample("noise", dist.HalfNormal(1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, noise), obs=x)

        given = pyro.condition(model, data={"noise": torch.tensor(0.7)})
        x = torch.tensor([-1.0, 0.2, 2.0])
        guide = AmortizedGuide(given, width=16)
        guide(x)
        found = guide.importance(x, draws=2000, progress=False)
        expected = dist.Normal(0.0, math.sqrt(1 + 0.7**2)).log_prob(x)
        assert (found.log_z - expected).abs().max() < 5 * found.log_z_err.max()

    def test_evidence_counts_what_else_is_seen_of_a_datum(self):
        def model(x, u):
            with pyro.plate("data", len(x)):
                pyro.sample("u", dist.Normal(0.0, 1.0), obs=u)
                z = pyro.sample("z", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        x, u = torch.randn(4), torch.randn(4)
        guide = AmortizedGuide(model, width=16)
        guide(x, u)
        found = guide.importance(x, u, draws=2000, progress=False)
        law = dist.Normal(u, math.sqrt(1.25)).log_prob(x)
        expected = law + dist.Normal(0.0, 1.0).log_prob(u)
        assert (found.log_z - expected).abs().max() < 5 * found.log_z_err.max()

    def test_a_guide_is_copied_and_loaded(self):
        x, new = drawn(30), drawn(5, seed=3)
        guide = AmortizedGuide(factors, width=16)
        trained(factors, guide, x, steps=5)
        expected = guide.median(new)["z"]
        assert torch.equal(copy.deepcopy(guide).median(new)["z"], expected)
        other = AmortizedGuide(factors, width=16)
        with pytest.raises(ValueError, match="call it once, with data"):
            other.load_state_dict(guide.state_dict())
        other(drawn(8, seed=9))
        other.load_state_dict(guide.state_dict())
        assert torch.allclose(other.median(new)["z"], expected)

    def test_bounds_that_all_members_share_serve_any_number(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), 2 * torch.ones(len(x))))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        guide = AmortizedGuide(model, width=8)
        guide(torch.rand(6))
        values = guide(torch.rand(9))["z"]
        assert values.shape == (9,)
        assert ((values > 0) & (values < 2)).all()

    def test_resampled_draws_have_equal_weight(self, low_rank):
        guide, params = low_rank
        pyro.get_param_store().set_state(params)
        x = drawn(20, seed=6)
        found = guide.importance(x, draws=500, progress=False)
        draws = found.resampled(seed=1)["z"]
        assert draws.shape == (500, 20, 2)
        assert torch.allclose(draws.mean(0), found.mean()["z"], atol=0.12)

    def test_data_far_from_all_that_it_has_seen_are_told(self, low_rank):
        guide, params = low_rank
        pyro.get_param_store().set_state(params)
        near, far = drawn(3, seed=8), 30 * torch.ones(1, 3)
        with pytest.warns(AccuracyWarning, match="of 4 data have a Pareto shape"):
            found = guide.importance(torch.cat([near, far]), draws=500, progress=False)
        assert found.is_reliable.tolist() == [True, True, True, False]

    def test_a_datum_does_not_see_the_others(self, low_rank):
        guide, params = low_rank
        pyro.get_param_store().set_state(params)
        x = drawn(20, seed=7)
        together, alone = guide.median(x)["z"], guide.median(x[3:4])["z"]
        assert torch.allclose(together[3:4], alone, atol=1e-5)

    def test_predictive_on_new_data(self, low_rank):
        guide, params = low_rank
        pyro.get_param_store().set_state(params)
        x = drawn(8, seed=8)
        for parallel in (False, True):
            draws = Predictive(factors, guide=guide, num_samples=200, parallel=parallel)(x)
            mean = draws["z"].mean(0)
            assert mean.shape == (8, 2)
            assert (mean - truth(x)[0]).abs().max() < 0.5

    def test_members_of_an_inner_plate_may_come_in_any_order(self):
        pyro.set_rng_seed(0)
        guide = AmortizedGuide(nested, width=16)
        x = torch.rand(4, 5)
        guide(x)
        for parameter in guide.recognisers.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        medians = [guide.median(value)["group"] for value in (x, x.flip(1))]
        assert torch.allclose(*medians, atol=1e-6)
        assert not torch.allclose(medians[0], guide.median(2 * x)["group"], atol=1e-3)

    def test_subsamples_and_minibatches(self):
        def model(x, size, batch):
            with pyro.plate("data", size, subsample_size=batch) as index:
                rows = x[index] if len(x) == size else x
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ LOADINGS.T, NOISE).to_event(1), obs=rows)

        x = drawn(100)
        for data in (x, x[:10]):
            pyro.set_rng_seed(0)
            guide = AmortizedGuide(model, width=32)
            trace = poutine.trace(guide).get_trace(data, 100, 10)
            assert trace.nodes["z"]["value"].shape == (10, 2)
            assert trace.nodes["z"]["scale"] == 10
            replayed = poutine.trace(poutine.replay(model, trace)).get_trace(data, 100, 10)
            assert (replayed.nodes["data"]["value"] == trace.nodes["data"]["value"]).all()
        with pytest.raises(ValueError, match="takes a subsample"):
            guide.importance(x, 100, 10, draws=100, progress=False)
        with pytest.raises(ValueError, match="has 11 rows along plate 'data'"):
            guide(x[:11], 100, 10)


class TestErrors:
    def test_weights_of_each_datum_need_a_plate_around_all(self):
        guide = AmortizedGuide(nested, width=16)
        guide(torch.rand(3, 2))
        with pytest.raises(ValueError, match=r"\['mean', 'scale'\] are outside"):
            guide.importance(torch.rand(3, 2), draws=100, progress=False)

    def test_an_untrained_guide_has_no_weights_and_a_bad_one_says_so(self):
        x = drawn(10)
        with pytest.raises(ValueError, match="train it by SVI first"):
            AmortizedGuide(factors).importance(x)
        guide = AmortizedGuide(factors)
        guide(x)
        guide.recognisers[0].posterior.head.bias.data[2:] = -8.0  # far too narrow
        with pytest.warns(AccuracyWarning, match="of 10 data have a Pareto shape"):
            found = guide.importance(x, draws=100, progress=False)
        assert not found.is_reliable.all()

    def test_data_that_can_not_be_read(self):
        x = drawn(10)
        hole = x.clone()
        hole[4, 1] = math.nan

        def masked(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                law = dist.Normal(z[:, None].expand(x.shape), 1.0).mask(x == x)
                pyro.sample("x", law.to_event(1), obs=x.nan_to_num())

        with pytest.raises(ValueError, match=r"argument 'x' is nan at row 4"):
            AmortizedGuide(masked)(hole)
        later = AmortizedGuide(masked, width=8)
        later(x)
        with pytest.raises(ValueError, match=r"argument 'x' is nan at row 4"):
            later(hole)
        with pytest.raises(ValueError, match="pass the data as arguments"):
            AmortizedGuide(lambda: factors(x))()
        with pytest.raises(ValueError, match=r"\['other'\], which are no plates"):
            AmortizedGuide(factors, features={"other": lambda x: x})(x)
        with pytest.raises(ValueError, match=r"of shape \(10, ...\); got \(3,\)"):
            AmortizedGuide(factors, features={"data": lambda x: x.mean(0)})(x)

    def test_masked_latents_are_refused(self):
        mask = torch.tensor([True, False, True])

        def latent(x):
            with pyro.plate("data", len(x)), poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def partly(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=mask)

        for model in (latent, partly):
            with pytest.raises(ValueError, match="is masked"):
                AmortizedGuide(model)(torch.randn(3))

    def test_a_subsample_of_the_callers_needs_its_plate(self):
        def model(x, index):
            with pyro.plate("data", len(x), subsample=index):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

        x, index = torch.arange(6.0), torch.tensor([4, 1])
        with pytest.raises(ValueError, match="chosen by the caller"):
            AmortizedGuide(model)(x, index)
        guide = AmortizedGuide(
            model, width=8,
            create_plates=lambda x, index: pyro.plate("data", len(x), subsample=index),
        )  # fmt: skip
        trace = poutine.trace(guide).get_trace(x, index)
        assert torch.equal(trace.nodes["data"]["value"], index)

    def test_supports_that_move_are_refused(self):
        def by_argument(x, high):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(0.0, high))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def by_latent(x):
            high = pyro.sample("high", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(torch.zeros(()), high))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        with pytest.raises(ValueError, match="depends on"):
            AmortizedGuide(by_argument)(torch.rand(3), torch.tensor(1.0))
        with pytest.raises(ValueError, match="changes from run to run"):
            AmortizedGuide(by_latent)(torch.rand(3))

    def test_plates_that_can_not_be_told_apart(self):
        def model(u, x):
            with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 4, dim=-1):
                z = pyro.sample("z", dist.Normal(u, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        with pytest.raises(ValueError, match="may be along the plates"):
            AmortizedGuide(model)(torch.randn(4), torch.randn(4, 4))

    def test_arguments_are_told_apart_and_missed(self):
        def model(count, *rest, y):
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(z + rest[1], 1.0), obs=y)

        guide = AmortizedGuide(model, width=8)
        guide(3, torch.randn(5), torch.randn(5), y=torch.randn(5))
        assert [rows.name for rows in guide.local[0].rows] == ["rest[1]", "y"]
        with pytest.raises(ValueError, match=r"reads the arguments \['y'\]"):
            guide(3, torch.randn(5), torch.randn(5), y=None)

    def test_discrete_sites_are_named(self):
        def model(x):
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(0.5))
                z = pyro.sample("z", dist.Normal(k, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        with pytest.raises(ValueError, match="latent site 'k' is discrete"):
            AmortizedGuide(model)(torch.randn(4))
