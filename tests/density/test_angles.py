"""Angles: densities that are periodic, whole, and continuous where a period ends."""

import copy
import math
import pickle
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_value
from pyro.infer.reparam import TransformReparam
from torch.distributions import VonMises, biject_to, constraints

import pyro_stad
from pyro_stad.data import Angle, Layout, Periodic, Wrap, parse_bounds
from pyro_stad.density import FlowPrior
from pyro_stad.divergence import Exact
from pyro_stad.fitting import BUDGETS
from pyro_stad.learn import TrainingSettings
from pyro_stad.likelihood import FlowODE
from pyro_stad.ode import RK4
from tests.oracles import field_on

LAYOUT = Layout(("phi", "x"), (("phi", ()), ("x", ())))
PERIOD, CENTRE, SPREAD = 360.0, 100.0, 60.0


def mixture_on_the_line():
    """Return weights, means and covariances, standardised together, of two broad lobes."""
    weights = torch.tensor([0.6, 0.4])
    means = torch.tensor([[-0.6, 0.3], [0.9, -0.45]])
    total = torch.eye(2) - torch.einsum("k,ki,kj->ij", weights, means, means)
    return weights, means, total.expand(2, 2, 2)


@pytest.fixture(scope="module")
def oracle():
    """A prior whose law on the line is known, with a sixth of a period for its spread."""
    torch.set_default_dtype(torch.float64)
    flow = FlowODE(field_on("edm", mixture_on_the_line()), Exact(), RK4(12))
    return FlowPrior(
        flow,
        torch.tensor([CENTRE, 0.0]),
        torch.tensor([[SPREAD, 0.0], [0.5, 1.0]]),
        LAYOUT,
        (Angle(-180.0, 180.0, CENTRE, 0.25 * PERIOD), (-math.inf, math.inf)),
    )


@pytest.fixture(scope="module")
def fitted():
    """A tiny fit of an angle that has samples at every place, and of what goes with it."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    phi = VonMises(torch.tensor(3.0), torch.tensor(0.5)).sample((600,))
    samples = {"phi": phi, "x": (phi.sin() + 0.5 * torch.randn(600)).exp()}
    return pyro_stad.fit(
        samples,
        bounds={"phi": "periodic", "x": (0, None)},
        budget="tiny",
        progress=False,
        dtype=torch.float64,
    )


def wrapped_log_density(value):
    """Return the log-density on the circle of the oracle's law, in closed form."""
    weights, means, covariances = mixture_on_the_line()
    tril = torch.tensor([[SPREAD, 0.0], [0.5, 1.0]])
    means = torch.tensor([CENTRE, 0.0]) + means @ tril.mT
    law = dist.MultivariateNormal(means, tril @ covariances @ tril.mT)
    turns = torch.tensor([PERIOD, 0.0]) * torch.arange(-3, 4)[:, None]
    images = (value[..., None, :] + turns)[..., None, :]
    return (law.log_prob(images) + weights.log()).logsumexp((-1, -2))


def test_density_is_that_of_the_wrapped_law(oracle):
    value = torch.cartesian_prod(torch.linspace(-500, 500, 41), torch.linspace(-2, 2, 5))
    # The flow's data have noise of a five hundredth of a standard deviation.
    difference = oracle.log_prob(value) - wrapped_log_density(value)
    assert difference.abs().max() < 2e-3


def test_mass_of_one_period_is_one(oracle):
    phi, x = torch.arange(-180.0, 180.0, 6.0), torch.linspace(-6, 6, 61)
    density = oracle.log_prob(torch.cartesian_prod(phi, x)).exp()
    assert abs(density.sum() * 6.0 * (x[1] - x[0]) - 1) < 1e-3


@pytest.mark.parametrize("place", [CENTRE - 180, CENTRE, CENTRE + 90, -180.0, 180.0, 540.0])
@pytest.mark.parametrize("kind", ["oracle", "fitted"])
def test_value_and_slope_are_continuous(kind, place, request):
    """At the seam, at the centre, where the gate opens, and where the period ends."""
    prior = request.getfixturevalue(kind)
    if kind == "fitted":
        angle = prior.bounds[0]
        place = angle.centre + (place - CENTRE) * angle.period / PERIOD
    step = 1e-7
    sides = torch.tensor([[place - step, 0.7], [place + step, 0.7]], requires_grad=True)
    values = prior.log_prob(sides)
    (slopes,) = torch.autograd.grad(values.sum(), sides)
    # A step of 1e-7 moves a slope below 100, and a curvature, by 1e-5 at the most.
    assert abs(values[1] - values[0]) < 1e-5
    assert (slopes[1] - slopes[0]).abs().max() < 1e-5
    assert slopes.abs().max() < 100
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("kind", ["oracle", "fitted"])
def test_density_is_periodic_and_the_support_is_the_line(kind, request):
    prior = request.getfixturevalue(kind)
    value = prior.sample((20,))
    turned = value.clone()
    turned[:, 0] += 3 * prior.bounds[0].period
    torch.testing.assert_close(prior.log_prob(turned), prior.log_prob(value))
    torch.testing.assert_close(prior.tail_probability(turned), prior.tail_probability(value))
    torch.testing.assert_close(prior.wrap(turned), value)
    assert prior.support.check(turned).all()
    assert biject_to(prior.support).inv(turned).shape == value.shape
    assert (prior.support is constraints.real_vector) == (kind == "oracle")


def test_draws_have_the_density(oracle):
    """Trigonometric moments of draws against those of the wrapped law, five standard errors."""
    torch.manual_seed(1)
    draws = oracle.sample((20_000,))
    phi, x = draws[:, 0], draws[:, 1]
    assert ((phi >= -180) & (phi < 180)).all()
    grid = torch.cartesian_prod(torch.arange(-180.0, 180.0, 2.0), torch.linspace(-6, 6, 121))
    weight = wrapped_log_density(grid).exp()
    weight = weight / weight.sum()
    for order in (1, 2, 3):
        for wave in (torch.cos, torch.sin):

            def moment(p, x, order=order, wave=wave):
                return wave(order * p * math.pi / 180) * (1 + x)

            expected = weight @ moment(*grid.T)
            found = moment(phi, x)
            assert abs(found.mean() - expected) < 5 * found.std() / 20_000**0.5 + 1e-3


def test_gradient_matches_differences(fitted):
    value = fitted.sample((6,)).requires_grad_()
    assert torch.autograd.gradcheck(fitted.log_prob, (value,), rtol=1e-4)


def test_same_value_in_every_context(fitted):
    value = fitted.sample((8,))
    expected = fitted.log_prob(value)
    alone = torch.cat([fitted.log_prob(row[None]) for row in value])
    assert torch.equal(alone, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(fitted.log_prob, (value,))
    for found in (torch.vmap(fitted.log_prob)(value), traced(value)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    slopes = torch.func.vmap(torch.func.grad(lambda v: fitted.log_prob(v)))(value)
    leaf = value.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fitted.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(slopes, slope, rtol=0, atol=1e-7)


DUPLICATES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    "expand": lambda p: p.expand((8,)),
    "with_likelihood": lambda p: p.with_likelihood(p.likelihood),
    "to": lambda p: p.to(torch.float32).to(torch.float64),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_copies_are_the_same_distribution(name, fitted):
    twin, value = DUPLICATES[name](fitted), fitted.sample((8,))
    tolerance = 1e-3 if name == "to" else 1e-12
    torch.testing.assert_close(twin.log_prob(value), fitted.log_prob(value), rtol=0, atol=tolerance)
    assert twin.bounds == fitted.bounds
    assert twin.is_periodic


def test_file_round_trip(fitted, tmp_path):
    fitted.save(tmp_path / "prior.safetensors")
    loaded, value = pyro_stad.load(tmp_path / "prior.safetensors"), fitted.sample((8,))
    assert torch.equal(loaded.log_prob(value), fitted.log_prob(value))
    assert loaded.bounds == fitted.bounds
    assert isinstance(loaded.bounds[0], Angle)
    assert "'phi': 'periodic in [-3.14159, 3.14159)'" in loaded.summary()
    assert "accuracies are those of the law on the line" in loaded.summary()


def test_calibration_and_its_bound(fitted):
    assert fitted.calibration.audit.sd < 0.5
    value = fitted.sample((50,))
    again = fitted.calibrate(value, tolerance=0.5)
    bound = again.surrogate_error(value)
    turned = value + torch.tensor([2 * math.pi, 0.0])
    assert (torch.isfinite(bound) & (bound > 0)).all()
    torch.testing.assert_close(again.surrogate_error(turned), bound, rtol=1e-4, atol=1e-4)


def test_single_precision_draws_stay_in_the_period(fitted):
    draws = fitted.to(torch.float32).sample((5_000,))
    angle = fitted.bounds[0]
    low, high = (torch.tensor(side, dtype=torch.float32) for side in (angle.low, angle.high))
    assert ((draws[:, 0] >= low) & (draws[:, 0] < high)).all()


def test_wrap_by_rounding_and_its_right_inverse():
    angle = Angle(0.0, 360.0, 100.0, 90.0)
    wrap = Wrap((angle, None), torch.zeros(1))
    line = torch.tensor([[-1e-20, -1e-20], [360.0, 5.0], [-90.0, 0.0], [1e5, 1e5], [359.9, 1.0]])
    circle = wrap(line)
    assert ((circle[:, 0] >= 0) & (circle[:, 0] < 360)).all()
    assert torch.equal(circle[:, 1], line[:, 1])
    assert circle[4, 0] == 359.9
    back = wrap.inv(circle)
    assert ((back[:, 0] - 100).abs() <= 180).all()
    torch.testing.assert_close(wrap(back), circle)


def test_unrolled_samples_wrap_back_and_have_the_window_for_a_law():
    """Of a uniform angle, 5/64 of a whole window of overlap h = P/4 lies beyond half a period."""
    torch.manual_seed(0)
    wrap = Wrap((Angle(0.0, 1.0, 0.2, 0.25),), torch.zeros(1))
    principal = wrap.inv(torch.rand(40_000, 1))
    line = wrap.unroll(principal, torch.Generator().manual_seed(0))
    torch.testing.assert_close(wrap.inv(wrap(line)), principal)
    beyond = ((line - 0.2).abs() > 0.5).double().mean()
    assert abs(beyond - 5 / 64) < 5 * (5 / 64 / 40_000) ** 0.5
    assert ((line - 0.2).abs() <= 0.75).all()


def test_equal_rows_go_to_the_same_image():
    wrap = Wrap((Angle(0.0, 1.0, 0.5, 0.25),), torch.zeros(1))
    line = wrap.unroll(torch.full((200, 1), 0.97), torch.Generator().manual_seed(1))
    assert len(line.unique()) == 1


def test_seam_lies_where_samples_are_fewest():
    torch.manual_seed(0)
    lobe = VonMises(torch.tensor(3.0), torch.tensor(20.0)).sample((2_000,))
    known = Angle.of_samples(Periodic(-math.pi, math.pi), lobe, None)
    assert abs(math.remainder(known.centre - 3.0, 2 * math.pi)) < 0.3
    assert known.overlap < 1e-6
    crowded = Angle.of_samples(Periodic(0.0, 1.0), torch.rand(2_000), None)
    assert crowded.overlap == 0.25
    # Weights count, too.
    two = torch.cat([lobe, lobe + 1.5])
    weights = torch.cat([torch.ones(2_000), torch.zeros(2_000)])
    assert Angle.of_samples(Periodic(-math.pi, math.pi), two, weights) == known


PLACES = {
    "periodic, no negative": ("periodic", 0.1, Periodic(0.0, 2 * math.pi)),
    "periodic, negative": ("periodic", -0.1, Periodic(-math.pi, math.pi)),
    "a period": (360, 0.0, Periodic(0.0, 360.0)),
    "a period, negative": (360.0, -1.0, Periodic(-180.0, 180.0)),
    "ends": (Periodic(-90.0, 270.0), -500.0, Periodic(-90.0, 270.0)),
}


@pytest.mark.parametrize("name", PLACES)
def test_where_angles_are_reported(name):
    given, least, expected = PLACES[name]
    values = torch.tensor([[least, -1.0], [least + 1, 1.0]])
    for bounds in ({"phi": given}, [given, None]):
        parsed = parse_bounds(bounds, LAYOUT, values)
        assert parsed == (expected, (-math.inf, math.inf))
        assert isinstance(parsed[0], Periodic)


def test_several_angles_at_once():
    """Two angles have four images; the density is that of independent wrapped normals."""
    normal = (torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    flow = FlowODE(field_on("edm", normal), Exact(), RK4(12))
    layout = Layout(("a", "b"), (("a", ()), ("b", ())))
    angles = Angle(-3.0, 3.0, 0.0, 1.5), Angle(0.0, 6.0, 0.0, 1.5)
    prior = FlowPrior(flow, torch.zeros(2), torch.eye(2), layout, angles)
    value = torch.cartesian_prod(torch.linspace(-3, 3, 13), torch.linspace(0, 6, 13))
    turns = 6.0 * torch.arange(-3, 4)
    one = dist.Normal(0.0, 1.0).log_prob(value[..., None] + turns).logsumexp(-1)
    torch.testing.assert_close(prior.log_prob(value), one.sum(-1), rtol=0, atol=2e-3)


def model(prior, y=None):
    theta = pyro.sample("theta", prior)
    pyro.sample("y", dist.Normal(theta[..., 1], 0.5), obs=y)
    return theta


def test_reparametrised_with_an_initial_value(oracle):
    """The value comes back from the noise that it was given, by its principal image."""
    value = torch.tensor([-170.0, 0.4])
    with poutine.trace() as tracer, poutine.reparam(config={"theta": TransformReparam()}):
        with InitMessenger(init_to_value(values={"theta": value})):
            model(oracle)
    sites = tracer.trace.nodes
    torch.testing.assert_close(sites["theta"]["value"], value, rtol=0, atol=1e-6)
    noise = sites["theta_base"]["value"]
    for transform in oracle.transforms:
        noise = transform(noise)
    torch.testing.assert_close(noise, value, rtol=0, atol=1e-4)


def towards(prior, y):
    """A model whose data know the angle near the end of its period."""
    theta = pyro.sample("theta", prior)
    turn = theta[..., 0] * math.pi / 180
    pyro.sample("y", dist.Normal(turn.cos(), 0.3), obs=y)


@pytest.fixture(scope="module")
def draws():
    return {"theta": torch.randn(2, 100, 2, dtype=torch.float64)}


def test_evidence_of_an_angle(oracle, draws):
    """By noise, against quadrature; the bridge, which needs a density on the line, is refused."""
    y = torch.tensor(-1.0)
    result = pyro_stad.log_evidence(towards, oracle, y, particles=400, draws=draws, progress=False)
    grid = torch.cartesian_prod(torch.arange(-180.0, 180.0, 3.0), torch.linspace(-6, 6, 61))
    fit = dist.Normal((grid[:, 0] * math.pi / 180).cos(), 0.3).log_prob(y)
    density = (wrapped_log_density(grid) + fit).exp()
    truth = (density.sum() * 3.0 * 0.2).log()
    assert abs(result.log_z - truth) < 4 * result.log_z_err + 0.01
    assert any("the bridge can't take the angles in ['theta']" in text for text in result.warnings)
    with pytest.raises(ValueError, match="the angles in .'theta'.*use method='smc'"):
        pyro_stad.log_evidence(towards, oracle, y, method="bridge", draws=draws, progress=False)


LAWS = {
    "uniform": [(1.0, 0.0, 0.0)],
    "0.5": [(1.0, 2.5, 0.5)],
    "2": [(1.0, 2.5, 2.0)],
    "10": [(1.0, 2.5, 10.0)],
    "50": [(1.0, 2.5, 50.0)],
    "two lobes": [(0.6, 0.3, 10.0), (0.4, 2.3, 10.0)],
    "a lobe over the seam": [(0.7, 3.1, 20.0), (0.3, 0.5, 5.0)],
}


def lobes(parts, count, seed):
    """Draw angles of von Mises lobes, and a real number that goes with them; and its log-law."""
    torch.manual_seed(seed)
    sizes = [round(share * count) for share, _, _ in parts]
    laws = [VonMises(torch.tensor(m), torch.tensor(max(k, 1e-6))) for _, m, k in parts]
    phi = torch.cat([law.sample((size,)) for law, size in zip(laws, sizes)])
    # Mixed: lobe after lobe would look like a chain that drifts.
    phi = phi[torch.randperm(len(phi))]
    x = 0.5 * phi.sin() + 0.3 * torch.randn(len(phi))
    terms = [math.log(part[0]) + law.log_prob(phi) for part, law in zip(parts, laws)]
    truth = torch.stack(terms).logsumexp(0) + dist.Normal(0.5 * phi.sin(), 0.3).log_prob(x)
    return torch.stack([phi, x], dim=1), truth


def fit_lobes(name, budget, count):
    samples, _ = lobes(LAWS[name], count, 0)
    prior = pyro_stad.fit(
        samples, names=["phi", "x"], bounds={"phi": "periodic"}, budget=budget,
        progress=False, dtype=torch.float64,
    )  # fmt: skip
    fresh, truth = lobes(LAWS[name], 2_000, 1)
    grid = torch.cartesian_prod(
        torch.linspace(-math.pi, math.pi, 91)[:-1], torch.linspace(-2, 2, 81)
    )
    mass = prior.log_prob(grid).exp().sum() * (2 * math.pi / 90) * 0.05
    return (truth - prior.log_prob(fresh)).mean().item(), mass.item()


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_von_mises_laws_are_learned(name):
    """Kullback-Leibler divergence from the truth, in nats, and the mass of one period."""
    divergence, mass = fit_lobes(name, "quick", 4_000)
    assert -0.01 < divergence < 0.08
    assert abs(mass - 1) < 0.02


def test_a_short_fit_loses_nothing_at_the_seam():
    """Taken for a real number, the same law costs the same fit ten times the divergence."""
    tiny = BUDGETS["tiny"]
    teacher = TrainingSettings(400, batch_size=128, learning_rate=1e-2, warmup=20)
    budget = replace(tiny, width=32, teacher=teacher, stein=teacher, polish=teacher)
    divergence, mass = fit_lobes("a lobe over the seam", budget, 2_000)
    assert divergence < 0.1
    assert abs(mass - 1) < 0.03
