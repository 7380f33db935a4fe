"""Offsets, scales and bounds: what a dtype can't hold is refused by name, and the rest is kept."""

import math

import pytest
import torch

import pyro_stad
from pyro_stad.data import as_samples, whitening
from pyro_stad.data.edges import off_the_edges
from pyro_stad.data.scale import check_scale, check_whitening
from pyro_stad.data.standardise import spread_of
from tests.oracles import mixture_sample

NAMES = ("t", "x")


def columns(offset, scale):
    return mixture_sample(400, 2) * torch.tensor([scale, 1.0]) + torch.tensor([offset, 0.0])


def check(values, dtype):
    check_scale(values, None, NAMES, dtype)
    check_whitening(*whitening(values, None, NAMES), NAMES, dtype)


SINGLE, DOUBLE = torch.float32, torch.float64
# Offset, scale, dtype, and what is wrong with it.
RANGES = {
    "plain": (0.0, 1.0, SINGLE, None),
    "a year": (2015.0, 0.05, SINGLE, None),
    "Julian date": (2459000.0, 0.01, SINGLE, "t lies around 2459000.* or pass dtype=torch.float64"),
    "Julian date, double": (2459000.0, 0.01, DOUBLE, None),
    "Julian date, wide": (2459000.0, 100.0, SINGLE, None),
    "GPS time": (1126259462.4, 0.01, SINGLE, "steps of 128 there"),
    "GPS time, double": (1126259462.4, 0.01, DOUBLE, None),
    "GPS time, nanoseconds": (1126259462.4, 1e-6, DOUBLE, "subtract a constant from it$"),
    "negative offset": (-1e6, 0.01, SINGLE, "t lies around -1000000"),
    "1e200": (0.0, 1e200, SINGLE, "t is too large for torch.float32"),
    "1e200, double": (0.0, 1e200, DOUBLE, None),
    "1e306, double": (0.0, 1e306, DOUBLE, "t is too large for torch.float64"),
    "1e-200": (0.0, 1e-200, SINGLE, "t is too small for torch.float32"),
    "1e-200, double": (0.0, 1e-200, DOUBLE, None),
    "1e-40": (0.0, 1e-40, SINGLE, "t is too small"),
    "1e-30": (0.0, 1e-30, SINGLE, None),
    "1e30": (0.0, 1e30, SINGLE, None),
    "1e-307, double": (0.0, 1e-307, DOUBLE, "t is too small"),
}


@pytest.mark.parametrize("name", RANGES)
def test_what_a_dtype_does_not_hold_is_refused(name):
    offset, scale, dtype, message = RANGES[name]
    values = columns(offset, scale)
    if message is None:
        check(values, dtype)
        return
    with pytest.raises(ValueError, match=message):
        check(values, dtype)


@pytest.mark.parametrize("name", [name for name in RANGES if RANGES[name][3] is None])
def test_draws_have_the_spread_of_the_samples(name):
    """Loose: a tiny fit is off by a tenth, a column that has collapsed by a hundred percent."""
    offset, scale, dtype, _ = RANGES[name]
    values = columns(offset, scale)
    prior = pyro_stad.fit(values, budget="tiny", progress=False, dtype=dtype)
    drawn = prior.sample((1000,)).double()
    spread = spread_of(drawn, None)[1] / spread_of(values, None)[1]
    assert (spread - 1).abs().max() < 0.25
    assert torch.isfinite(prior.log_prob(values.to(dtype))).all()


def test_what_other_columns_leave_of_a_spread_has_to_be_resolved_too():
    x = mixture_sample(400, 2)
    values = torch.stack([1e4 + x[:, 0], 1e4 + x[:, 0] + 1e-2 * x[:, 1]], 1)
    check(values, DOUBLE)
    with pytest.raises(ValueError, match="varies by 0.00985 on its own, but torch.float32"):
        check(values, SINGLE)


def test_spread_does_not_overflow_vanish_or_cancel():
    x = mixture_sample(400, 1)
    for offset, scale in ((0.0, 1e300), (0.0, 1e-300), (2.0**30, 2.0**-8)):
        loc, spread = spread_of(offset + scale * x, None)
        # Numbers near the offset are 2^-22 apart: 400 roundings by half of that, in units of the
        # scale, move mean and spread by less than 2^-15.
        assert abs(spread / scale - x.std(0, correction=0)) < 2.0**-15
        assert abs((loc - offset) / scale - x.mean(0)) < 2.0**-15


def test_a_constant_among_rows_without_a_weight_is_named():
    x = columns(0.0, 1.0)
    x[:200, 0] = 3.0
    weights = (torch.arange(400) < 200).double()
    with pytest.raises(ValueError, match="t is constant .* in the rows that have a weight"):
        pyro_stad.fit(x, names=NAMES, weights=weights, progress=False)


def test_a_column_that_was_rounded_away_says_so():
    rounded = torch.stack([2459000 + 0.001 * torch.randn(200), torch.randn(200)], 1).float()
    with pytest.raises(ValueError, match="constant .* keep the samples in float64"):
        as_samples(rounded)


def test_dependence_is_seen_through_bounds():
    parts = torch.distributions.Dirichlet(torch.ones(3)).sample((400,))
    with pytest.raises(ValueError, match="linearly dependent"):
        pyro_stad.fit(parts, bounds=[(0, 1)] * 3, progress=False)
    with pytest.warns(pyro_stad.SampleWarning, match="linearly dependent but for .* drop one"):
        whitening((parts * 1e4).round() / 1e4, None, ("a", "b", "c"))


def on_edges(low_rows, high_rows, rows=1000):
    values = torch.rand(rows, 2)
    values[:low_rows, 0] = 0.0
    values[rows - high_rows :, 0] = 1.0
    return values


BOX = ((0.0, 1.0), (-math.inf, math.inf))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (1, 0), (0, 1), (4, 3), (10, 10)])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_rows_on_a_bound_move_less_than_to_their_neighbour(low, high, dtype):
    values = on_edges(low, high)
    inside = values[low : 1000 - high, 0]
    moved, count = off_the_edges(values, None, BOX, NAMES, dtype)
    assert count == low + high
    assert torch.equal(moved[low : 1000 - high], values[low : 1000 - high])
    first = moved[:low, 0]
    last = moved[1000 - high :, 0]
    assert ((first > 0) & (first < inside.min())).all()
    assert ((last < 1) & (last > inside.max())).all()
    assert len(first.unique()) == low
    narrow = moved.to(dtype)[:, 0]
    assert ((narrow > 0) & (narrow < 1)).all()


def test_rows_that_rounding_puts_on_a_bound_are_moved_too():
    values = on_edges(0, 0)
    values[5, 0] = 1 - 1e-9
    assert off_the_edges(values, None, BOX, NAMES, SINGLE)[1] == 1
    assert off_the_edges(values, None, BOX, NAMES, DOUBLE)[1] == 0


def test_many_rows_on_a_bound_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="of t are .* 11 samples lie on them, and a density has"):
        off_the_edges(on_edges(11, 0), None, BOX, NAMES, DOUBLE)
    near = on_edges(0, 0)
    near[:20, 0] = 1 - 1e-9 * torch.arange(1, 21)
    with pytest.raises(ValueError, match="20 samples lie on them, in torch.float32; pass dtype"):
        off_the_edges(near, None, BOX, NAMES, SINGLE)


def test_a_fit_counts_the_rows_on_a_bound():
    values = on_edges(2, 1)
    prior = pyro_stad.fit(values, bounds=[(0, 1), None], budget="tiny", progress=False)
    assert prior.report.moved == 3
    assert "3 samples on a bound were moved inside" in prior.summary()
    assert torch.isfinite(prior.log_prob(values[2:-1].float())).all()
    values[0, 0] = -1e-12
    with pytest.raises(ValueError, match="are not inside"):
        pyro_stad.fit(values, bounds=[(0, 1), None], progress=False)
