"""Cuts that are no box: nothing outside, all of the mass inside, and no way around the cut."""

import copy
import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.infer.reparam import TransformReparam
from torch.distributions import biject_to

import pyro_stad
from pyro_stad.data import Layout, Periodic
from pyro_stad.density import FlowPrior, TruncatedPrior
from pyro_stad.divergence import Exact
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from tests.oracles import field_on, gaussian

LAYOUT = Layout(("a", "b"), (("a", ()), ("b", ())))


def below(t):
    return t["a"] + t["b"] < 0


def vector_below(t):
    return t["x"].sum(-1) < 0


@pytest.fixture(scope="module")
def normal():
    """The standard normal in two dimensions, as a flow."""
    torch.set_default_dtype(torch.float64)
    flow = FlowODE(field_on("edm", gaussian(2)), Exact(), RK4(4))
    return FlowPrior(flow, torch.zeros(2), torch.eye(2), LAYOUT)


@pytest.fixture(scope="module")
def half(normal):
    return normal.truncate(below)


@pytest.mark.parametrize("edge", [0.0, -1.0, 1.5])
def test_mass_is_that_of_the_closed_form(edge, normal):
    mass = normal.truncate(lambda t: t["a"] + t["b"] < edge).mass
    expected = dist.Normal(0.0, math.sqrt(2)).cdf(torch.tensor(edge)).item()
    assert abs(mass.value - expected) < 4 * mass.error
    assert mass.error == pytest.approx(math.sqrt(expected * (1 - expected) / 1e5), rel=0.05)
    assert mass == normal.truncate(lambda t: t["a"] + t["b"] < edge).mass


def test_density_inside_and_out(normal, half):
    value = torch.tensor([[0.5, -1.0], [0.5, 1.0], [-3.0, 2.0]], requires_grad=True)
    result = half.log_prob(value)
    assert result[1] == -math.inf
    inside = torch.tensor([0, 2])
    expected = normal.log_prob(value) - math.log(half.mass.value)
    assert torch.equal(result[inside], expected[inside])
    (slope,) = torch.autograd.grad(result[inside].sum(), value)
    assert (slope[1] == 0).all()
    torch.testing.assert_close(slope[inside], -value.detach()[inside], rtol=1e-3, atol=1e-3)
    (slope,) = torch.autograd.grad(half.log_prob(value)[1], value)
    assert (slope == 0).all()


def test_density_inside_integrates_to_one(half):
    line = torch.linspace(-6, 6, 121)
    density = half.log_prob(torch.cartesian_prod(line, line)).exp()
    # The edge runs through the grid's own diagonal, half of whose cells are inside.
    assert abs(density.sum() * 0.01 - 1) < 0.06
    shifted = torch.cartesian_prod(line, line + 0.05)
    assert abs(half.log_prob(shifted).exp().sum() * 0.01 - 1) < 0.01


def test_draws_are_inside_and_have_the_law(half):
    draws = half.sample((20_000,))
    assert (draws.sum(-1) < 0).all()
    # Half normal along the diagonal: mean -sqrt(2 / pi), variance 1 - 2 / pi; five standard errors.
    along = draws.sum(-1) / math.sqrt(2)
    error = math.sqrt((1 - 2 / math.pi) / 20_000)
    assert abs(along.mean() + math.sqrt(2 / math.pi)) < 5 * error + 1e-3
    across = (draws[:, 0] - draws[:, 1]) / math.sqrt(2)
    assert abs(across.mean()) < 5 / 20_000**0.5


def test_shapes_and_expansions(half):
    assert half.event_shape == (2,)
    assert half.batch_shape == ()
    assert not half.has_rsample
    for batch in [(), (3,), (2, 3)]:
        wide = half.expand(batch)
        assert type(wide) is TruncatedPrior
        assert wide.batch_shape == batch
        value = wide.sample((5,))
        assert value.shape == (5, *batch, 2)
        assert wide.support.check(value).all()
        torch.testing.assert_close(wide.log_prob(value), half.log_prob(value))
    assert half.sample((0,)).shape == (0, 2)
    assert half.expand((3,)).to_event(1).log_prob(half.sample((3,))).shape == ()


def test_support_knows_the_cut_and_keeps_its_bijection(half, tiny_prior):
    value = torch.tensor([[0.5, -1.0], [0.5, 1.0]])
    assert half.support.check(value).tolist() == [True, False]
    assert torch.equal(biject_to(half.support)(value), value)
    cut = tiny_prior.truncate(lambda t: t["scale"] > 0.5)
    line = torch.zeros(1, 3)
    torch.testing.assert_close(biject_to(cut.support)(line), biject_to(tiny_prior.support)(line))
    outside = torch.tensor([[-1.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.6, 0.0, 0.0]])
    assert cut.support.check(outside).tolist() == [False, False, True]
    # That of the prior without the cut is as it was.
    assert tiny_prior.support.check(outside).tolist() == [False, True, True]


DUPLICATES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    "float32": lambda p: p.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_copies_are_the_same_distribution(name, half):
    twin, value = DUPLICATES[name](half), half.sample((7,))
    torch.testing.assert_close(twin.log_prob(value), half.log_prob(value), rtol=0, atol=1e-4)
    assert twin.mass == half.mass
    assert twin.support.check(value).all()


def test_mapped_and_traced(free_prior):
    cut = free_prior.truncate(vector_below)
    value = torch.tensor([[0.5, -1.0], [0.5, 1.0]])
    expected = cut.log_prob(value)
    torch.testing.assert_close(torch.vmap(cut.log_prob)(value), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(cut.log_prob, (value[:1],))
    torch.testing.assert_close(traced(value[1:]), expected[1:])


def test_reparametrisation_refuses(half):
    """It would drop the cut: what is no transformed distribution, it can't take apart."""

    def model():
        pyro.sample("theta", half)

    with pytest.raises(AssertionError):
        pyro.poutine.reparam(model, config={"theta": TransformReparam()})()


def test_nuts_finds_the_cut_law(free_prior):
    """The mean along the cut, against quadrature, to a third of a standard deviation."""
    cut = free_prior.truncate(vector_below)

    def model():
        pyro.sample("theta", cut)

    kernel = NUTS(model, init_strategy=init_to_sample, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    along = mcmc.get_samples()["theta"].sum(-1)
    assert (along < 0).all()
    line = torch.linspace(-6, 6, 121)
    grid = torch.cartesian_prod(line, line + 0.05)
    with torch.no_grad():
        weight = torch.softmax(cut.log_prob(grid), 0)
    mean = weight @ grid.sum(-1)
    spread = (weight @ (grid.sum(-1) - mean).square()).sqrt()
    # Of 400 draws, some hundred are worth independent ones: three standard errors and more.
    assert abs(along.mean() - mean) < 0.35 * spread


def regression(prior, y):
    theta = pyro.sample("theta", prior)
    pyro.sample("y", dist.Normal(theta[..., 0], 0.5), obs=y)


@pytest.mark.parametrize("method", ["smc", "bridge"])
def test_evidence_is_that_of_the_cut_prior(method, half):
    """With y ~ N(a, 0.5), N(y; 0, 1.25) P(a + b < 0 | y) / P(a + b < 0), in closed form."""
    y = torch.tensor(0.7)
    outside = dist.Normal(0.8 * y, math.sqrt(1.2)).cdf(torch.tensor(0.0)) / 0.5
    truth = dist.Normal(0.0, math.sqrt(1.25)).log_prob(y) + outside.log()
    draws = None
    if method == "bridge":
        a = 0.8 * y + math.sqrt(0.2) * torch.randn(8_000)
        theta = torch.stack([a, torch.randn(8_000)], dim=1)
        draws = {"theta": theta[theta.sum(-1) < 0]}
    result = pyro_stad.log_evidence(
        regression, half, y, method=method, draws=draws, particles=800, progress=False
    )
    assert abs(result.log_z - truth) < 4 * result.log_z_err + 0.01
    assert (result.draws["theta"].sum(-1) < 0).all()


def test_evidence_in_plates(half):
    """Every object of a plate has its own cut."""

    def model(y):
        with pyro.plate("objects", 2):
            regression(half, y)

    y = torch.tensor([0.7, -0.4])
    outside = dist.Normal(0.8 * y, math.sqrt(1.2)).cdf(torch.tensor(0.0)) / 0.5
    truth = (dist.Normal(0.0, math.sqrt(1.25)).log_prob(y) + outside.log()).sum()
    result = pyro_stad.log_evidence(model, y, method="smc", particles=800, progress=False)
    assert abs(result.log_z - truth) < 4 * result.log_z_err + 0.01


@pytest.fixture
def saved(free_prior, tmp_path):
    cut = free_prior.truncate(vector_below)
    cut.save(tmp_path / "cut.safetensors")
    return cut, tmp_path / "cut.safetensors"


def test_file_round_trip(saved):
    cut, path = saved
    loaded, value = pyro_stad.load(path, region=vector_below), cut.sample((7,))
    assert type(loaded) is TruncatedPrior
    assert torch.equal(loaded.log_prob(value), cut.log_prob(value))
    assert loaded.mass == cut.mass
    assert loaded.summary() == cut.summary()
    assert "cut to a region that holds 0." in cut.summary()
    assert repr(loaded) == repr(cut)
    assert "TruncatedPrior(mass=0." in repr(cut)
    assert loaded.names == cut.names


BAD_REGIONS = {
    "none": (None, "is a function that no file can hold: say load"),
    "another": (lambda t: t["x"].sum(-1) < 0.1, "`region` is not the one"),
    "its complement": (lambda t: t["x"].sum(-1) >= 0, "differ at [0-9,]+ of 1000 points"),
}


@pytest.mark.parametrize("name", BAD_REGIONS)
def test_files_refuse_another_region(name, saved):
    region, message = BAD_REGIONS[name]
    with pytest.raises(ValueError, match=message):
        pyro_stad.load(saved[1], region=region)


def test_files_without_a_cut_take_no_region(free_prior, tmp_path):
    free_prior.save(tmp_path / "free.safetensors")
    with pytest.raises(ValueError, match="`region` is not for .*free.safetensors, a prior without"):
        pyro_stad.load(tmp_path / "free.safetensors", region=vector_below)


def test_a_fit_is_cut():
    values = dist.Normal(0.0, 1.0).sample((1_200, 2))
    values = values[values.sum(-1) < 0]
    options = {"budget": "tiny", "progress": False, "dtype": torch.float64}
    cut = pyro_stad.fit(values, **options).truncate(vector_below)
    assert type(cut) is TruncatedPrior
    assert 0.5 < cut.mass.value <= 1
    assert (cut.sample((500,)).sum(-1) < 0).all()
    error = cut.surrogate_error(torch.tensor([[-1.0, 0.0], [1.0, 1.0]]))
    assert torch.isfinite(error[0])
    assert error[1] == math.inf
    assert cut.tail_probability(values).shape == (len(values),)
    assert cut.unpack(values)["x"].shape == values.shape
    assert cut.calibration is cut.prior.calibration


WRONG = {
    "no function": (3, TypeError, "`region` must be a function of named tensors; got 3"),
    "no tensor": (lambda t: True, TypeError, "must return a bool tensor.*got bool"),
    "numbers": (lambda t: t["a"], TypeError, "got torch.float64"),
    "nothing inside": (lambda t: t["a"] > 1e6, ValueError, "none of 100,000 draws"),
    "unknown name": (lambda t: t["q"] > 0, ValueError, "asks for 'q'; the variables are \\['a'"),
    "too many": (lambda t: torch.stack([t["a"] > 0] * 2, -1), ValueError, "one truth value for e"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_regions_are_named(name, normal):
    region, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        normal.truncate(region)


def test_a_region_that_changes_its_mind_is_found_out(normal):
    state = {"edge": 10.0}
    cut = normal.truncate(lambda t: t["a"] < state["edge"])
    state["edge"] = -20.0
    with pytest.raises(ValueError, match="0 of [0-9,]+ draws of the prior were inside `region`"):
        cut.sample((3,))


def test_a_region_sees_angles_where_draws_are(normal):
    bounds = (Periodic(0.0, 10.0), (-math.inf, math.inf))
    flow = FlowPrior(normal.likelihood, torch.zeros(2), torch.eye(2), LAYOUT, bounds)
    cut = flow.truncate(lambda t: t["a"] > 5)
    assert abs(cut.mass.value - 0.5) < 4 * cut.mass.error
    value = torch.tensor([[-1.0, 0.0], [9.0, 0.0], [1.0, 0.0], [-9.0, 0.0]])
    assert cut.contains(value).tolist() == [True, True, False, False]
    torch.testing.assert_close(cut.log_prob(value[:1]), cut.log_prob(value[1:2]))


def test_draws_and_their_tails_go_to_arviz(half):
    draws = {"theta": half.sample((40,))}
    data = pyro_stad.to_arviz(draws, model=regression, args=(half, torch.tensor(0.0)))
    tails = torch.as_tensor(data["sample_stats"]["tail_probability"].values)
    torch.testing.assert_close(tails[0], half.tail_probability(draws["theta"]))
    assert list(data["posterior"]["theta_name"].values) == ["a", "b"]
