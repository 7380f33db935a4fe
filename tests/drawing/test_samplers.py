"""Every sampler: its law, its order, its calls, its noise, and what it refuses."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_stad.drawing import (
    DDIM,
    GRIDS,
    ODE,
    SAMPLERS,
    SSCS,
    Conjugate,
    DPMSolver,
    EDMChurn,
    EulerMaruyama,
    Grid,
    Knots,
    PhaseEulerMaruyama,
    PredictorCorrector,
    Splitting,
    grid_of,
    sampler_of,
)
from pyro_stad.drawing.phase_walk import PhaseWalk
from pyro_stad.drawing.walk import Walk
from pyro_stad.fields import ConditionalGaussianField, FreeFormField, GaussianMixtureField
from pyro_stad.fields.mixture import random_mixture
from pyro_stad.paths import PATHS, PSLD, VPCosine, VPLinear
from pyro_stad.registry import build, describe
from pyro_stad.testing.sampling import drawn_variance, true_variance
from tests.oracles import field_on

# Every sampler, every rule and every published composition.
EACH = {
    "euler": ODE(rule="euler"),
    "heun": ODE(),
    "midpoint": ODE(rule="midpoint"),
    "rk4": ODE(rule="rk4"),
    "ddim": DDIM(),
    "ddpm": DDIM(eta=1.0),
    "dpm-solver": DPMSolver(),
    "euler-maruyama": EulerMaruyama(),
    "edm": EDMChurn(),
    "predictor-corrector": PredictorCorrector(),
    "phase-euler-maruyama": PhaseEulerMaruyama(),
    "sscs": SSCS(),
    "conjugate": Conjugate(),
    "conjugate, identity": Conjugate(lam=1.0),
    "conjugate, ones": Conjugate(lam=0.5, kind="ones"),
    **{
        f"{'reduced' if reduced else 'naive'} {scheme}": Splitting(scheme=scheme, reduced=reduced)
        for scheme in ("OBA", "BAO", "OBAB", "BA", "BAB")
        for reduced in (True, False)
    },
    "OBA told the later time": Splitting(ahead=True),
    "OBA with more noise": Splitting(noise_scale=4.0),
}
NAMES = sorted(EACH)
# In what power of the step the law's variance is off, where that goes to zero.
ORDERS = {
    "euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "ddim": 1, "ddpm": 1, "dpm-solver": 2,
    "euler-maruyama": 1, "edm": 2, "phase-euler-maruyama": 1, "sscs": 1, "conjugate": 1,
    "conjugate, identity": 1, "conjugate, ones": 1, "reduced OBA": 1, "naive OBA": 1,
    "reduced BAO": 1, "naive BAO": 1, "reduced OBAB": 1, "naive OBAB": 1, "reduced BA": 1,
    "naive BA": 1, "reduced BAB": 1, "naive BAB": 1, "OBA told the later time": 1,
}  # fmt: skip


PHASE = (Splitting, SSCS, Conjugate, PhaseEulerMaruyama)


def on(sampler, grid):
    return replace(sampler, grid=grid)


def error_of_variance(sampler, variance):
    low = VPCosine().angles()[0]
    return drawn_variance(sampler, variance) - true_variance(sampler, variance, low)


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_order_of_the_error_of_the_variance(name):
    sampler = EACH[name]
    clock = sampler.path if isinstance(sampler, PHASE) else VPCosine()
    steps = {4: (16, 32), 2: (128, 256), 1: (128, 256)}[ORDERS[name]]
    if "conjugate" in name:
        steps = (512, 1024)  # fewer are not few enough yet
    errors = [abs(error_of_variance(on(sampler, Grid(n, clock=clock)), 0.25)) for n in steps]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.15)


def test_a_corrector_converges():
    """Its steps leave another law as it is, but one that nears the right one at the data end."""
    each = [PredictorCorrector(Grid(n, clock=VPCosine()), corrections=4) for n in (64, 256)]
    coarse, fine = (error_of_variance(sampler, 0.25) for sampler in each)
    assert 0 < fine < 0.5 * coarse < 0.005


def test_what_mends_few_steps_does():
    """A reduced composition is too narrow in few steps, less so told the later time, or noisier."""
    usual, told, noisier = (
        error_of_variance(Splitting(10, **options), 0.25)
        for options in ({}, {"ahead": True}, {"noise_scale": 4.0})
    )
    assert usual < -0.1
    assert usual < told - 0.01
    assert usual < noisier - 0.01


def test_noise_of_a_splitting_is_what_is_said():
    """One O over a step: its decay and its noise, by the square of what comes of unit noises."""
    path, h = PSLD(gamma=0.5), 0.1
    grid = Knots(tuple(path.polar(torch.tensor([0.4, 0.4 - h])).angle.tolist()))
    spreads = [
        drawn_variance(Splitting(grid, scheme="BAO", noise_scale=scale, path=path), 1.0)
        for scale in (1.0, 3.0)
    ]
    # O comes last, and only the noise of positions differs; draws are c z / cos.
    law = path.law(torch.tensor(0.4 - h))
    onto = (law.weights[0] / torch.cos(law.angle) ** 2).item()
    rate = path.beta * path.gamma * h
    wanted = onto**2 * (math.exp(-rate) - math.exp(-3 * rate))
    assert spreads[1] - spreads[0] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", ["identity", "ones"])
def test_a_conjugate_step_is_that_of_its_ode(kind):
    """Over a step noise is held: in the coordinates of B the ODE is linear, and solved finely."""
    path, lam, high, low = PSLD(), 0.7, 0.3, 0.2
    grid = Knots(tuple(path.polar(torch.tensor([high, low])).angle.tolist()))
    field = GaussianMixtureField(VPCosine(), *random_mixture(2))
    z = torch.randn(3, 2)
    source = torch.Generator().manual_seed(4)
    found = Conjugate(grid, lam=lam, kind=kind).draw(field, z, source)
    pair = torch.stack([z, torch.randn(3, 2, generator=torch.Generator().manual_seed(4))], 1)

    def lower(t):
        law = path.law(torch.tensor(t))
        return torch.linalg.cholesky(law.covariance - torch.outer(law.mean, law.mean))

    walk = PhaseWalk(Walk(field, None), path)
    score = torch.stack([*walk.score(high, pair)], 1)
    noise = -torch.einsum("ij,bjd->bid", lower(high).T, score)
    shift = lam * (torch.eye(2) if kind == "identity" else torch.ones(2, 2))
    linear, diffusion = shift - path.drift(), torch.diag(path.diffusion())
    steps, total = 4000, torch.zeros(2, 2)
    for index in range(steps):
        gone = (high - low) * (index + 0.5) / steps
        at = torch.matrix_exp((high - low - gone) * linear) @ diffusion
        total += 0.5 * (high - low) / steps * at @ torch.linalg.inv(lower(high - gone)).T
    kept = torch.matrix_exp((high - low) * linear) @ (torch.eye(2) - (high - low) * shift)
    end = torch.einsum("ij,bjd->bid", kept, pair) - torch.einsum("ij,bjd->bid", total, noise)
    law = path.law(torch.tensor(low))
    wanted = torch.einsum("i,bid->bd", law.weights / torch.cos(law.angle) ** 2, end)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_the_data_is_that_of_the_last_place(name):
    """Of N(0, v) it is v cos y / (v cos^2 + sin^2), whatever the sampler that led there."""
    variance, end = 0.25, 0.3
    field = GaussianMixtureField(
        VPCosine(), torch.ones(1), torch.zeros(1, 1), variance * torch.eye(1)[None]
    )
    z = torch.randn(5, 1)
    blurred, mean = (
        replace(EACH[name], grid=Knots((1.5, 1.0, end)), denoise=denoise).draw(
            field, z, torch.Generator().manual_seed(3)
        )
        for denoise in (False, True)
    )
    y = math.cos(end) * blurred
    share = variance * math.cos(end) / (variance * math.cos(end) ** 2 + math.sin(end) ** 2)
    torch.testing.assert_close(mean, share * y, rtol=1e-6, atol=1e-9)


def test_churn_is_added_where_it_is_said_and_as_much():
    """None at the places that it leaves out; inflated noise makes the law wider."""
    none = drawn_variance(EDMChurn(20, churn=0.0), 0.25)
    nowhere = drawn_variance(EDMChurn(20, churn=5.0, lowest=1e3, highest=2e3), 0.25)
    assert nowhere == none
    more, most = (drawn_variance(EDMChurn(20, churn=5.0, inflation=i), 0.25) for i in (1.0, 1.1))
    assert most > more != none


@pytest.mark.parametrize("name", NAMES)
def test_law_of_a_mixture(name):
    """Means, covariance and weights of modes within chance and the bias of 100 steps."""
    weights, means, _ = parts = random_mixture(2, components=3, seed=1)
    field, count = GaussianMixtureField(VPCosine(), *parts), 2000
    source = torch.Generator().manual_seed(0)
    z = torch.randn(count, 2, generator=source)
    with torch.no_grad():
        grid = EACH[name].usual(100) if isinstance(EACH[name], PHASE) else grid_of("quadratic", 100)
        sampler = on(EACH[name], grid)
        x = sampler.draw(field, z, source)
    # The first moments of a standardised mixture: fourth moments are at most a normal law's here.
    assert x.mean(0).abs().max() < 4 / math.sqrt(count)
    # What a variance of a quarter is off by on this grid: modes are about as narrow.
    low = VPLinear().angles()[0]
    bias = abs(drawn_variance(sampler, 0.25) - true_variance(sampler, 0.25, low)) / 0.25
    assert (x.T.cov() - torch.eye(2)).abs().max() < 4 * math.sqrt(2 / count) + bias
    shares = field_shares(parts, x)
    error = (weights * (1 - weights) / count).sqrt()
    assert ((shares - weights).abs() < 4 * error + 0.01).all()


def field_shares(parts, x):
    """Return the mean responsibilities of the components."""
    weights, means, covariances = parts
    laws = torch.distributions.MultivariateNormal(means, covariances)
    return (laws.log_prob(x[:, None]) + weights.log()).softmax(-1).mean(0)


class Counting(GaussianMixtureField):
    calls = 0

    def velocity(self, t, x):
        self.calls += 1
        return super().velocity(t, x)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_calls_are_what_is_said(name, denoise):
    field = Counting(VPCosine(), *random_mixture(2))
    sampler = replace(EACH[name], grid=7, denoise=denoise)
    sampler.draw(field, torch.randn(5, 2), torch.Generator().manual_seed(0))
    assert field.calls == sampler.sequential_calls()


@pytest.mark.parametrize("name", NAMES)
def test_noise_comes_from_the_generator_alone(name):
    sampler, field, z = on(EACH[name], 5), field_on("vp", random_mixture(2)), torch.randn(4, 2)
    before = torch.get_rng_state()
    once, again, other = (
        sampler.draw(field, z, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once, again)
    in_phase = isinstance(sampler, PHASE)
    assert torch.equal(once, other) == (not sampler.is_stochastic and not in_phase)


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_differentiable(name):
    sampler, field = on(EACH[name], 4), field_on("vp", random_mixture(2))
    z, towards = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)

    def drawn(z):
        return sampler.draw(field, z, torch.Generator().manual_seed(0))

    (gradient,) = torch.autograd.grad(drawn(z).sum(), z)
    h = 1e-5
    with torch.no_grad():
        numeric = (drawn(z + h * towards) - drawn(z - h * towards)).sum(-1) / (2 * h)
    torch.testing.assert_close((gradient * towards).sum(-1), numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_description_builds_the_same_sampler(name):
    for grid in (np.int64(7), Knots((1.5, 0.5, 0.02)), Grid(np.int64(7), np.float32(2.0))):
        sampler = replace(EACH[name], grid=grid, denoise=True)
        stored = json.loads(json.dumps(describe(sampler, "sampler")))
        assert build(stored, "sampler") == sampler


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_by_name_keeps_to_its_calls(name):
    for calls in (5, 20, 51):
        sampler = sampler_of(name, calls)
        assert calls - sampler.calls_per_step < sampler.sequential_calls() <= calls
    with pytest.raises(ValueError, match="`calls` must be"):
        sampler_of(name, 0)


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("name", NAMES)
def test_every_path_is_drawn_from(name, path):
    """In own coordinates all paths are one curve: the same noise leads to the same place."""
    parts = random_mixture(2)
    z = torch.randn(6, 2)
    grid = Knots((1.55, 1.2, 0.8, 0.4, 0.1, 0.02))
    x, reference = (
        on(EACH[name], grid).draw(field_on(each, parts), z, torch.Generator().manual_seed(0))
        for each in (path, "cosine")
    )
    torch.testing.assert_close(x, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_context_and_many_rows(name):
    """A context of each row, and more rows than a chunk has."""
    weight, bias = torch.tensor([[1.0], [-1.0]]), torch.zeros(2)
    field = ConditionalGaussianField(VPCosine(), weight, bias, 0.25 * torch.eye(2))
    context = torch.linspace(-1, 1, 2500)[:, None]
    # Not the seed of the global generator: momenta would be the positions.
    z, source = torch.randn(2500, 2), torch.Generator().manual_seed(7)
    with torch.no_grad():
        x = on(EACH[name], 60).draw(field.given(context), z, source)
    left = x - context @ weight.mT
    assert left.mean(0).abs().max() < 0.05
    # Chance, and the bias of sixty steps of the worst.
    assert left.std(0).sub(0.5).abs().max() < 0.1


def test_events_with_a_shape_are_those_of_vectors():
    parts, z = random_mixture(4), torch.randn(3, 4)
    flat = GaussianMixtureField(VPCosine(), *parts)
    shaped = GaussianMixtureField(VPCosine(), *parts, event_shape=(2, 2))
    for sampler in EACH.values():
        small = on(sampler, 3)
        x, y = (
            small.draw(field, noise, torch.Generator().manual_seed(0))
            for field, noise in ((flat, z), (shaped, z.view(3, 2, 2)))
        )
        torch.testing.assert_close(y.reshape(3, 4), x)


def test_a_free_form_field_is_drawn_from_by_its_ode_alone():
    field = FreeFormField(2, 8, 2).double()
    z = torch.randn(3, 2)
    assert ODE(4).draw(field, z).shape == (3, 2)
    with pytest.raises(TypeError, match=r"DDIM needs a field on a Gaussian path.*Use ODE"):
        DDIM(4).draw(field, z)
    with pytest.raises(TypeError, match="Splitting needs a field on a Gaussian path"):
        Splitting(4).draw(field, z)


def test_another_path_has_steps_of_its_own():
    for path in (PSLD(beta=4.0), PSLD(beta=16.0)):
        times = replace(Splitting(5), path=path).stops.times(path)
        assert times[0] == path.t_max
        assert times[-1] == pytest.approx(path.t_min)


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_grids_fall_from_noise_to_data(name):
    angles = grid_of(name, 9).angles(0.02, 1.5)
    assert len(angles) == 10
    assert angles == sorted(angles, reverse=True)
    assert angles[0] <= 1.5
    assert angles[-1] == pytest.approx(0.02, rel=1e-6)


def test_quadratic_steps_shrink_towards_the_data():
    times = Splitting(4).stops.times(PSLD())
    steps = [a - b for a, b in zip(times, times[1:])]
    assert steps == sorted(steps, reverse=True)


BAD = {
    "no steps": (lambda: DDIM(0), "`steps` must be an integer of at least 1"),
    "knots that are none": (lambda: Knots(None), "`knots` must be two angles at least"),
    "words for knots": (lambda: Knots(("a", "b")), "`knots` must be two angles at least"),
    "a grid that rises": (lambda: Knots((0.1, 0.5)), "`knots` must be .* smaller"),
    "a grid that stands": (lambda: Knots((0.5, 0.5)), "`knots` must be .* smaller"),
    "one knot": (lambda: Knots((0.5,)), "`knots` must be two angles at least"),
    "no power": (lambda: Grid(3, power=0.0), "`power` must be a positive number"),
    "an unknown grid": (lambda: grid_of("even", 3), "`grid` must be one of"),
    "an unknown sampler": (lambda: sampler_of("leapfrog", 9), "`sampler` must be one of"),
    "an unknown rule": (lambda: ODE(rule="rk5"), "`rule` must be one of"),
    "too much renewed": (lambda: DDIM(eta=1.5), "`eta` must be a finite number within"),
    "a word renewed": (lambda: DDIM(eta="1"), "`eta` must be a finite number within"),
    "a list of rules": (lambda: ODE(rule=["rk4"]), "`rule` must be one of"),
    "churn below zero": (lambda: EDMChurn(churn=-1.0), "`churn` must be a finite number from 0"),
    "churn without end": (lambda: EDMChurn(churn=math.inf), "`churn` must be a finite number"),
    "churn from above to below": (lambda: EDMChurn(lowest=2.0, highest=1.0), "`lowest` must be"),
    "calls by name": (lambda: sampler_of("ode", "5"), "`calls` must be an integer"),
    "lambda of no number": (lambda: Conjugate(lam=math.nan), "`lam` must be a finite number"),
    "noise without O": (lambda: Splitting(scheme="BA", noise_scale=2.0), "`scheme` 'BA' has none"),
    "ahead without O": (lambda: Splitting(scheme="BAB", ahead=True), "`scheme` 'BAB' has none"),
    "no position": (lambda: Splitting(scheme="OB"), "`scheme` must be a string of A, B and O"),
    "another letter": (lambda: Splitting(scheme="ABC"), "`scheme` must be a string of A, B and O"),
    "lambda below zero": (lambda: Splitting(noise_scale=-1.0), "`noise_scale` must be a positive"),
    "no rate": (lambda: PSLD(beta=0.0), "`beta` must be a positive number"),
    "a word for a rate": (lambda: PSLD(beta="8"), "`beta` must be a positive number"),
    "friction below zero": (lambda: PSLD(gamma=-1.0), "`gamma` must be a finite number from 0"),
    "hot momenta": (lambda: PSLD(momentum_variance=1.0), "`momentum_variance` must be smaller"),
}


@pytest.mark.parametrize("what", sorted(BAD))
def test_what_can_not_be_is_refused(what):
    make, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_that_does_not_fit_is_refused():
    field = field_on("vp", random_mixture(2))
    with pytest.raises(ValueError, match=r"`z` must have shape \(B, 2\)"):
        DDIM(3).draw(field, torch.randn(4, 3))
    with pytest.raises(ValueError, match="`generator` is of"):
        DDIM(3).draw(field, torch.randn(4, 2, device="meta"), torch.Generator())
    with pytest.raises(TypeError, match="`generator` must be a torch.Generator"):
        DDIM(3).draw(field, torch.randn(4, 2), 5)
    for grid in ("edm", 2.5, None):
        with pytest.raises(TypeError, match="`grid` must be a number of steps or a grid"):
            DDIM(grid)
    with pytest.raises(TypeError, match="`z` must be a tensor"):
        DDIM(3).draw(field, None)
    with pytest.raises(TypeError, match="`field` must be a field"):
        ODE(3).draw(object(), torch.randn(4, 2))
    with pytest.raises(TypeError, match="`denoise` must be True or False"):
        DDIM(3, denoise=1)
    with pytest.raises(TypeError, match="`reduced` must be True or False"):
        Splitting(3, reduced="yes")
    with pytest.raises(ValueError, match="`knots` must lie within the angles of the field"):
        DDIM(Knots((1.5, 1e-4))).draw(field, torch.randn(4, 2))
    with pytest.raises(TypeError, match="`path` must be a PSLD"):
        Splitting(path=VPCosine())
