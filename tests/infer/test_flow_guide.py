"""Flows as guides and proposals: one solve for a draw and its density, and training by SVI."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal

import pyro_stad
from pyro_stad import AccuracyWarning, FlowGuide, correct
from pyro_stad.data import Periodic
from pyro_stad.density import OneSolve
from pyro_stad.fields.base import AbstractTrunkField
from tests.oracles import mixture_sample


def bent():
    """A banana: normal numbers of which one is seen next to the other's square."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    law = dist.Normal(x[..., 1] - x[..., 0] ** 2, 0.3)
    pyro.sample("y", law, obs=torch.tensor(-1.0))


def subsampled():
    with pyro.plate("data", 12, subsample_size=4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(4))


def log_evidence_of_bent():
    grid = torch.linspace(-6, 6, 1201)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    normal = dist.Normal(0.0, 1.0)
    joint = normal.log_prob(x) + normal.log_prob(y)
    joint = joint + dist.Normal(y - x**2, 0.3).log_prob(torch.tensor(-1.0))
    return (joint.flatten().logsumexp(0) + 2 * (grid[1] - grid[0]).log()).item()


QUICK = {"budget": "tiny", "progress": False, "dtype": torch.float64}


@pytest.fixture(scope="module")
def given_flow():
    source = torch.Generator().manual_seed(1)
    context = torch.randn(600, 1, generator=source, dtype=torch.float64)
    return pyro_stad.fit(
        context + mixture_sample(600, 2, seed=1), context=context, bounds=[(-30, 30), None], **QUICK
    )


@pytest.fixture(scope="module")
def laws(tiny_prior, given_flow):
    """Every kind of learned law that has draws with densities."""
    source = torch.Generator().manual_seed(0)
    angle = pyro_stad.fit(
        2 * math.pi * torch.rand(600, 1, generator=source, dtype=torch.float64),
        bounds=[Periodic(0, 2 * math.pi)],
        **QUICK,
    )
    tail = pyro_stad.fit(mixture_sample(600, 2, seed=2) ** 3, **QUICK)
    return {
        "distilled": tiny_prior,
        "exact": tiny_prior.exact(),
        "expanded": tiny_prior.exact().expand((4,)),
        "margins": tail.exact(),
        "angle": angle,
        "given": given_flow.exact()(torch.zeros(4, 1, dtype=torch.float64)),
    }


KINDS = ["distilled", "exact", "expanded", "margins", "angle", "given"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_comes_with_its_density(laws, kind):
    law = laws[kind]
    value, log_prob = law.rsample_and_log_prob((6,))
    assert value.shape == (6, *law.batch_shape, *law.event_shape)
    assert log_prob.shape == (6, *law.batch_shape)
    # Solved there and back on one grid: apart by what the grid is off.
    assert torch.allclose(log_prob, law.log_prob(value), atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_proposal_weighs_itself_to_one(laws, kind):
    law = OneSolve(laws[kind])
    law = law if law.batch_shape else law.expand((5,))
    value = law.rsample((3,))
    assert torch.equal(law.log_prob(value), law._last[1])
    again = law.log_prob(value.clone())
    assert torch.allclose(again, law.law.log_prob(value))


def test_half_the_calls(laws, monkeypatch):
    calls = []
    plain = AbstractTrunkField.jacobian_products

    def counted(self, t, x, tangents):
        calls.append(len(x))
        return plain(self, t, x, tangents)

    monkeypatch.setattr(AbstractTrunkField, "jacobian_products", counted)
    law = OneSolve(laws["exact"])
    law.log_prob(law.rsample((3,)))
    once = len(calls)
    laws["exact"].log_prob(laws["exact"].sample((3,)))
    assert once > 0
    assert len(calls) == 2 * once  # and the draws' own solve, which knows no divergence, besides


def test_gradients_go_to_the_context(given_flow):
    context = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value, log_prob = given_flow.exact()(context).rsample_and_log_prob((3,))
    for part in (value, log_prob):
        (gradient,) = torch.autograd.grad(part.sum(), context, retain_graph=True)
        assert torch.isfinite(gradient).all()
    (gradient,) = torch.autograd.grad(value.sum(), context)
    assert gradient.abs() > 1.0  # three draws of two numbers move with their context


class TestFlowGuide:
    def test_untrained_it_is_a_diagonal_normal(self):
        guide = FlowGuide(bent, init_scale=0.5, width=8, depth=2)
        plain = AutoDiagonalNormal(bent, init_scale=0.5)
        guide()
        plain()
        law = guide.get_posterior()
        with torch.no_grad():
            plain.loc.copy_(guide.loc)
        value = torch.randn(9, 2)
        assert torch.allclose(law.log_prob(value), plain.get_posterior().log_prob(value), atol=1e-9)

    @pytest.mark.parametrize("elbo", [Trace_ELBO, JitTrace_ELBO])
    def test_every_parameter_is_trained(self, elbo):
        guide = FlowGuide(bent, width=8, depth=2)
        options = {"ignore_jit_warnings": True} if elbo is JitTrace_ELBO else {}
        svi = SVI(bent, guide, pyro.optim.Adam({"lr": 1e-2}), elbo(**options))
        svi.step()
        before = {name: value.detach().clone() for name, value in guide.named_parameters()}
        for _ in range(3):
            svi.step()
        moved = {n: not torch.equal(v, before[n]) for n, v in guide.named_parameters()}
        assert moved
        assert all(moved.values()), moved

    def test_it_bends_and_becomes_a_prior(self, tmp_path):
        guide = FlowGuide(bent, width=32, depth=2, init_scale=0.5)
        elbo = Trace_ELBO(num_particles=16, vectorize_particles=True)
        svi = SVI(bent, guide, pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.992}), elbo)
        losses = [svi.step() for _ in range(300)]
        bound, evidence = -sum(losses[-50:]) / 50, log_evidence_of_bent()
        # The best normal law is one nat away. Above it is no bound: chance, of 800 draws.
        assert evidence - 0.3 < bound < evidence + 0.03
        prior = guide.prior()
        value = prior.sample((50,))
        assert torch.allclose(
            prior.log_prob(value), guide.get_posterior().log_prob(value), atol=0.1
        )
        prior.save(tmp_path / "posterior.pt")
        again = pyro_stad.load(tmp_path / "posterior.pt")
        assert torch.allclose(again.log_prob(value), prior.log_prob(value))
        assert again.names == ("x[0]", "x[1]")
        found = correct(guide, bent, draws=500)
        assert found.is_reliable
        assert abs(found.log_z - evidence) < 5 * found.log_z_err + 0.01
        predicted = Predictive(bent, guide=guide, num_samples=5)()
        assert predicted["x"].shape == (5, 2)

    def test_the_determinant_is_that_of_the_steps(self):
        """Against autograd's Jacobian of the whole solve, for steps far too coarse for the flow."""
        guide = FlowGuide(bent, width=8, depth=2, steps=2)
        guide()
        for parameter in guide.flow.parameters():
            parameter.data.normal_(std=0.5)
        z = torch.randn(5, 2)
        x, sign, log_det = guide.flow.push_and_slogdet(z)
        assert torch.allclose(x, guide.flow.push(z))
        for row, one, log in zip(z, sign, log_det):
            whole = torch.autograd.functional.jacobian(lambda y: guide.flow.push(y[None])[0], row)
            expected = torch.linalg.slogdet(whole)
            assert one == expected.sign
            assert torch.allclose(log, expected.logabsdet)

    def test_steps_that_are_too_coarse_are_told(self):
        guide = FlowGuide(bent, width=8, depth=2, steps=1)
        guide()
        for parameter in guide.flow.parameters():
            parameter.data.normal_()
        with pytest.warns(AccuracyWarning, match="1 steps are too coarse"):
            guide.prior()

    def test_errors(self):
        with pytest.raises(TypeError, match="`model` must be a Pyro model"):
            FlowGuide(3)
        with pytest.raises(ValueError, match="`width`"):
            FlowGuide(bent, width=0)
        with pytest.raises(ValueError, match="train it by SVI first"):
            FlowGuide(bent).prior()
        with pytest.raises(ValueError, match="Take AmortizedGuide"):
            FlowGuide(subsampled)()
        guide = FlowGuide(bent)
        guide()
        with pytest.raises(NotImplementedError, match="take those of draws"):
            guide.median()
        with pytest.raises(TypeError, match="rsample_and_log_prob"):
            OneSolve(dist.Normal(0.0, 1.0))


def test_a_learned_posterior_is_a_proposal_for_the_evidence():
    """Closed form: a normal prior and a normal likelihood."""
    data = torch.tensor([0.5, -0.3])

    def model():
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=data)

    source = torch.Generator().manual_seed(0)
    posterior = 0.8 * data + math.sqrt(0.2) * torch.randn(1500, 2, generator=source)
    learned = pyro_stad.fit(posterior, budget="tiny", progress=False, dtype=torch.float64)
    found = correct(lambda: pyro.sample("theta", OneSolve(learned)), model, draws=1000)
    expected = dist.Normal(0.0, math.sqrt(1.25)).log_prob(data).sum()
    assert found.is_reliable
    assert abs(found.log_z - expected) < 5 * found.log_z_err
