"""Margins: increasing maps with right derivatives, and laws that they make normal."""

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.special import betaln

from pyro_stad._random import generator
from pyro_stad.data import Margins, Periodic, Splines, fit_margins, parse_bounds, wind
from pyro_stad.data.layout import Layout

ROWS = 10_000
LOG_ROOT = 0.5 * math.log(2 * math.pi)


def some_margins(dtype=torch.float64):
    """Return maps of columns 0 and 2 of three, uneven ones."""
    source = torch.Generator().manual_seed(0)
    increments = 0.05 + torch.rand(2, 39, generator=source, dtype=torch.float64)
    increments[:, :3], increments[:, -3:] = increments[:, :1], increments[:, -1:]
    zero = torch.zeros(2, 1, dtype=torch.float64)
    coefficients = torch.cat([zero, increments.cumsum(1)], 1)
    coefficients = coefficients - coefficients.mean(1, keepdim=True)
    numbers = {"loc": [1.0, -2.0], "scale": [0.5, 3.0], "start": [-4.0, -5.0], "step": [0.2, 0.3]}
    parts = {name: torch.tensor(pair, dtype=torch.float64) for name, pair in numbers.items()}
    splines = Splines(**parts, coefficients=coefficients)
    return Margins((0, 2), splines, (("a", "b"), ("c", "d"))).to(dtype)


def points(count=200, dtype=torch.float64):
    """Return points from the middle to far beyond the last knots."""
    source = torch.Generator().manual_seed(1)
    s = 9 * torch.randn(count, 3, generator=source, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    return (scale * torch.sinh(s)).to(dtype)


def test_increases_and_leaves_other_coordinates_alone():
    margins = some_margins()
    u = points().sort(0).values
    v = margins.inv(u)
    assert (v.diff(dim=0) > 0).all()
    assert torch.equal(v[:, 1], u[:, 1])
    assert torch.equal(margins(v)[:, 1], u[:, 1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_inverse(dtype, tolerance):
    """In v, to the tolerance; u is as far off as its distance from the middle lets it."""
    margins = some_margins(dtype)
    u = points(dtype=dtype)
    v = margins.inv(u)
    v = torch.where(v.abs() < 40, v, 0.0)
    torch.testing.assert_close(margins.inv(margins(v)), v, rtol=tolerance, atol=tolerance)


def test_log_determinant_is_that_of_autograd():
    margins = some_margins()
    u = points(50)
    v, log_slope = margins.to_normal(u)
    jacobian = torch.func.vmap(torch.func.jacrev(margins.inv))(u)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_slope)
    torch.testing.assert_close(margins.log_abs_det_jacobian(v, u), -log_slope)


def test_two_derivatives_are_continuous_across_knots():
    margins = some_margins()
    splines = margins.splines
    knots = splines.start + splines.step * torch.arange(38)[:, None]

    def second(s):
        def value(row):
            u = splines.loc + splines.scale * torch.sinh(row)
            return margins.inv(torch.stack([u[0], u[0] * 0, u[1]]))[::2]

        one = torch.func.jacfwd(lambda x: torch.func.jacfwd(value)(x).diagonal())
        return torch.func.vmap(lambda x: one(x).diagonal())(s)

    step = 1e-9
    before, after = second(knots - step), second(knots + step)
    # Third derivatives are below 6 * 1.05 / step^3, some 800.
    torch.testing.assert_close(before, after, rtol=0, atol=5e-6)
    assert before.abs().max() > 1


@pytest.mark.parametrize("way", ["inverse", "forward", "slope"])
def test_gradients_twice(way):
    margins = some_margins()
    functions = {
        "inverse": margins.inv,
        "forward": margins,
        "slope": lambda u: margins.to_normal(u)[1],
    }
    start = (0.6 * points(6)).clamp(-30, 30)
    if way == "forward":
        start = margins.inv(start)
    start.requires_grad_()
    assert torch.autograd.gradcheck(functions[way], start)
    assert torch.autograd.gradgradcheck(functions[way], start)


def test_transforms_of_functions_and_batches():
    margins = some_margins()
    u = points(7)
    v, log_slope = margins.to_normal(u)
    one = torch.func.vmap(margins.to_normal)(u)
    torch.testing.assert_close(one, (v, log_slope))
    torch.testing.assert_close(torch.func.vmap(margins)(v), margins(v))
    # Independent of batch mates, to the last bit.
    assert torch.equal(torch.cat([margins.to_normal(row[None])[1] for row in u]), log_slope)
    assert torch.equal(margins(v[None, :, None])[0, :, 0], margins(v))

    def total(x):
        return margins.to_normal(x)[1].sum()

    leaf = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(u), expected)
    assert margins.inv(torch.full((1, 3), torch.nan)).isnan().all()


def broken(change):
    parts = {name: part.clone() for name, part in some_margins().splines.tensors().items()}
    change(parts)
    return Splines(**parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["coefficients"][0, 9].neg_(), "must increase"),
        (lambda p: p["coefficients"][0, -1].add_(1.0), "straight lines"),
        (lambda p: p["loc"][1].fill_(torch.nan), "`loc` of a margin map must be finite"),
        (lambda p: p["step"][1].fill_(0.0), "must be positive"),
        (lambda p: p.update(loc=torch.zeros(3)), r"`loc` must have shape \(2,\)"),
        (lambda p: p.update(coefficients=torch.arange(10_000.0).repeat(2, 1)), "K <= 4096"),
    ],
)
def test_what_is_no_map_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        broken(change)


@pytest.mark.parametrize("columns", [(0,), (2, 0), (1, 1)])
def test_columns_must_fit(columns):
    with pytest.raises(ValueError, match="2 different coordinates"):
        Margins(columns, some_margins().splines, (("a", "b"), ("c", "d")))


# Laws -------------------------------------------------------------------------------------------


class Law:
    """A law of the unbounded coordinate u, of a parameter between walls."""

    def __init__(self, law, bound=(None, None)):
        self.law, self.bound = law, bound

    def draw(self, count, seed):
        return self.law.rvs(count, random_state=np.random.default_rng(seed))

    def to_line(self, x):
        low, high = self.bound
        if low is None:
            return x
        return np.log(x) if high is None else np.log(x) - np.log1p(-x)

    def log_jacobian(self, u):
        """Return the logarithm of dx/du."""
        low, high = self.bound
        if low is None:
            return 0 * u
        return u if high is None else -np.logaddexp(0, u) - np.logaddexp(0, -u)

    def log_prob(self, u, x):
        return self.law.logpdf(x) + self.log_jacobian(u)

    def sample(self, count, seed):
        x = self.draw(count, seed)
        u = self.to_line(x)
        return u, self.log_prob(u, x)


class SteepBeta(Law):
    """Beta(a, a) in logits, which for small a are thousands: the ratio of two gammas."""

    def __init__(self, a):
        super().__init__(st.beta(a, a), (0, 1))
        self.a = a

    def sample(self, count, seed):
        source = np.random.default_rng(seed)

        def log_gamma():
            return (
                np.log(source.gamma(1 + self.a, size=count)) + np.log(source.random(count)) / self.a
            )

        u = log_gamma() - log_gamma()
        log_prob = -self.a * (np.logaddexp(0, u) + np.logaddexp(0, -u)) - betaln(self.a, self.a)
        return u, log_prob


LAWS = {
    "student": Law(st.t(3)),
    "cauchy": Law(st.cauchy()),
    "laplace": Law(st.laplace()),
    "exponential": Law(st.expon(), (0, None)),
    "half normal": Law(st.halfnorm(), (0, None)),
    "uniform": Law(st.uniform(), (0, 1)),
    "beta": SteepBeta(0.1),
    "log-uniform": Law(st.loguniform(1e-10, 1)),
}
# Nats. Fewer quantiles are taken while they cost less than 0.02; cliffs without a wall, which no
# smooth map can follow, cost as much again.
TOLERANCE = 0.02


def fitted(u, bound=(None, None), weights=None, effective=None):
    """Return the margins of one coordinate."""
    layout = Layout(("x",), (("x", ()),))
    bounds = parse_bounds([bound], layout)
    weights = None if weights is None else torch.from_numpy(weights)
    source = generator(0, "margins")
    values = torch.from_numpy(np.asarray(u))[:, None]
    return fit_margins(values, weights, bounds, effective or float(len(u)), source)


def log_prob(margins, u):
    """Return the log-density of the margin alone."""
    v, log_slope = margins.to_normal(torch.as_tensor(u)[:, None])
    return (log_slope - 0.5 * v[:, 0].square() - LOG_ROOT).numpy()


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_made_normal(name):
    law, tolerance = LAWS[name], 2 * TOLERANCE if name == "log-uniform" else TOLERANCE
    margins = fitted(law.sample(ROWS, 1)[0], law.bound)
    u, truth = law.sample(100_000, 2)
    divergence = (truth - log_prob(margins, u)).mean()
    # The standard error of this mean is some 0.07 / sqrt(100,000), and more at cliffs.
    assert -0.002 < divergence < tolerance


@pytest.mark.parametrize("name", ["uniform", "half normal", "exponential"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_density_at_a_wall(name, seed):
    """Within ten percent, from a thousandth of a standard deviation on; and in between."""
    law = LAWS[name]
    margins = fitted(law.sample(ROWS, seed)[0], law.bound)
    x = np.geomspace(1e-3, 0.1, 5) * law.law.std()
    u = law.to_line(x)
    ratio = np.exp(log_prob(margins, u) - law.log_jacobian(u)) / law.law.pdf(x)
    # The count in a tenth of the rows is known to 3 percent, and the tilt of the density to 5.
    assert (abs(ratio - 1) < 0.15).all()


@pytest.mark.parametrize("count", [100, 1000, 10_000])
def test_normal_samples_need_no_map(count):
    source = torch.Generator().manual_seed(count)
    values = torch.randn(count, 40, generator=source, dtype=torch.float64)
    bounds = parse_bounds(
        [(0, None)] * 5 + [(None, None)] * 35, Layout.of([f"x[{i}]" for i in range(40)])
    )
    margins = fit_margins(values, None, bounds, float(count), generator(0, "margins"))
    mapped = () if margins is None else margins.columns
    assert len(mapped) <= 1


def test_two_modes_need_no_map():
    """A flow learns them better than what is left of them."""
    source = np.random.default_rng(0)
    lobe = source.integers(0, 2, 5000)
    assert fitted(source.normal(4.0 * lobe, 0.6)) is None


def test_weights_count_as_repeats_do():
    """Student t samples, weighted from a Cauchy law."""
    proposal, target = st.cauchy(), st.t(3)
    u = proposal.rvs(20_000, random_state=np.random.default_rng(0))
    weights = target.pdf(u) / proposal.pdf(u)
    margins = fitted(u, weights=weights)
    assert margins is not None
    test = target.rvs(100_000, random_state=np.random.default_rng(1))
    assert (target.logpdf(test) - log_prob(margins, test)).mean() < TOLERANCE
    scaled = fitted(u, weights=1e-3 * weights)
    torch.testing.assert_close(scaled.splines.coefficients, margins.splines.coefficients)


def test_scale_and_offset_do_not_matter():
    u = LAWS["student"].sample(2000, 1)[0]
    margins, moved = fitted(u), fitted(1e6 * u + 1e7)
    torch.testing.assert_close(
        moved.inv(torch.from_numpy(1e6 * u + 1e7)[:, None]),
        margins.inv(torch.from_numpy(u)[:, None]),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip


def test_angles_and_few_values_get_no_map():
    values = 2 * math.pi * torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
    bounds = wind((Periodic(0.0, 2 * math.pi),), values, None)
    assert fit_margins(values, None, bounds, 1000.0, generator(0, "margins")) is None
    source = np.random.default_rng(0)
    assert fitted(source.integers(0, 3, 1000).astype(float)) is None


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [("student", "u^-", "u^-"), ("uniform", "wall", "wall"), ("exponential", "wall", "normal")],
)
def test_tails_are_named(name, left, right):
    law = LAWS[name]
    (tails,) = fitted(law.sample(ROWS, 1)[0], law.bound).tails
    assert tails[0].startswith(left)
    assert tails[1].startswith(right)


@pytest.mark.parametrize("law", ["cauchy", "t2"])
def test_a_heavy_tail_is_never_missed(law):
    """However far out the farthest rows are: they make a normal law so wide that nothing is far."""
    for seed in range(15):
        source = np.random.default_rng(seed)
        x = source.standard_cauchy(2000) if law == "cauchy" else source.standard_t(2, 2000)
        found = fit_margins(
            torch.from_numpy(x)[:, None], None, None, 2000.0, torch.Generator().manual_seed(seed)
        )
        assert found is not None, seed
