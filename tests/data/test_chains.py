"""Chains: what they are worth, repeats as weights, and a split whose neighbours are apart."""

import math
import warnings

import arviz
import pytest
import torch

from pyro_stad.data import Batches, Layout, split, take_in
from pyro_stad.data.effective import correlation_time, effective_rows, ess, warn_if_few
from pyro_stad.data.repeats import merge_repeats
from pyro_stad.data.samples import Samples
from pyro_stad.data.walkers import part_walkers
from pyro_stad.errors import SampleWarning


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def samples(values, weights=None, chains=None):
    names = tuple(f"x{i}" for i in range(values.shape[1]))
    return Samples(values, weights, Layout(names, tuple((n, ()) for n in names)), chains)


def autoregression(rows, features, rho, seed=0):
    """A stationary chain of unit variance; its autocorrelation time is (1 + rho) / (1 - rho)."""
    noise = math.sqrt(1 - rho**2) * torch.randn(rows, features, generator=source(seed))
    noise[0] /= math.sqrt(1 - rho**2)
    for row in range(1, rows):
        noise[row] += rho * noise[row - 1]
    return noise


@pytest.mark.parametrize("draws", [2, 3, 4, 5])
def test_chains_of_a_few_draws_are_taken_for_independent(draws):
    """As of hundreds of chains that were thinned: nothing tells how they hang together."""
    assert ess(torch.randn(30, draws, dtype=torch.float64)) == 30 * draws


@pytest.mark.parametrize(("chains", "draws"), [(1, 100), (1, 1000), (4, 50), (4, 500)])
@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.7])
@pytest.mark.parametrize("digits", [1, 15])
def test_effective_size_is_that_of_arviz(chains, draws, rho, digits):
    """Ties among rounded draws have equal ranks in both."""
    x = autoregression(draws, chains, rho).mT.round(decimals=digits)
    assert ess(x) == pytest.approx(float(arviz.ess(x.numpy())), rel=1e-9)


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("chains", [None, 4])
def test_correlation_time_of_an_autoregression(rho, chains):
    """The estimate scatters by about sqrt(10 tau / N); four of that, of the worst of two."""
    values = torch.cat([autoregression(5000, 2, rho, seed) for seed in range(4)])
    numbers = chains and torch.arange(4).repeat_interleave(5000)
    found, truth = correlation_time(samples(values, chains=numbers)), (1 + rho) / (1 - rho)
    assert abs(found / truth - 1) < 4 * math.sqrt(10 * truth / len(values))


WITHOUT_ORDER = {
    "shuffled": lambda x: samples(x[torch.randperm(len(x), generator=source())]),
    "sorted": lambda x: samples(x[x[:, 1].argsort()]),
    "weighted": lambda x: samples(x, weights=torch.linspace(0.5, 1, len(x))),
    "short chains": lambda x: samples(
        x[torch.randperm(len(x), generator=source())], chains=torch.arange(len(x)) // 5
    ),
}


@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_rows_without_an_order_are_independent(name):
    assert correlation_time(WITHOUT_ORDER[name](autoregression(2000, 3, 0.95))) == 1


@pytest.mark.parametrize("rows", [100, 200, 1000, 5000])
def test_shuffled_rows_are_worth_themselves(rows):
    """One in forty sets of rows looks like a chain by chance: of 20, four or less, but for 1e-4."""
    times = [
        correlation_time(samples(torch.randn(rows, 5, generator=source(seed))))
        for seed in range(20)
    ]
    assert sum(time > 1 for time in times) <= 4


def test_chains_that_disagree_are_worth_little():
    values = torch.randn(2000, 1, generator=source())
    numbers = torch.arange(4).repeat_interleave(500)
    values[numbers == 0] += 3
    assert correlation_time(samples(values, chains=numbers)) > 100


def test_chains_of_unequal_length_and_mixed_rows():
    long, short = autoregression(3000, 1, 0.9, seed=1), autoregression(2000, 1, 0.9, seed=2)
    values = torch.cat([torch.stack([long[:2000], short], 1).flatten(0, 1), long[2000:]])
    numbers = torch.cat([torch.arange(2).repeat(2000), torch.zeros(1000, dtype=torch.long)])
    assert abs(correlation_time(samples(values, chains=numbers)) / 19 - 1) < 0.6


def taking_turns(walkers, rho, steps=2000):
    """Rows of a flattened ensemble, step by step."""
    chains = torch.stack([autoregression(steps, 2, rho, seed) for seed in range(walkers)], 1)
    return chains.flatten(0, 1)


@pytest.mark.parametrize("walkers", [4, 7, 32])
@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_walkers_that_take_turns_are_told_apart(walkers, rho):
    given = samples(taking_turns(walkers, rho))
    parted = part_walkers(given)
    assert torch.equal(parted.chains, torch.arange(2000 * walkers) % walkers)
    truth = (1 + rho) / (1 - rho)
    # Of 8,000 rows and more; as above, with M = 5 tau + 10, two thirds at the most.
    assert 0.6 < correlation_time(parted) / truth < 1.67
    assert 0.6 < take_in(given, None, torch.float64).effective * truth / len(given.values) < 1.67


ONE_CHAIN = {
    "independent": lambda: torch.randn(4000, 3, generator=source()),
    "slow": lambda: autoregression(4000, 3, 0.95),
    "alternating": lambda: autoregression(4000, 3, -0.8),
    "one after the other": lambda: torch.cat([autoregression(500, 2, 0.9, s) for s in range(8)]),
    "repeats": lambda: autoregression(1000, 2, 0.5).repeat_interleave(4, 0),
    "a table, five times": lambda: torch.randn(200, 2, generator=source()).repeat(5, 1),
    "few": lambda: torch.randn(60, 2, generator=source()),
    "sorted": lambda: torch.randn(4000, 1, generator=source()).sort(0).values,
}


@pytest.mark.parametrize("name", ONE_CHAIN)
def test_one_chain_is_not_taken_apart(name):
    assert part_walkers(samples(ONE_CHAIN[name]())).chains is None


def effective(given):
    return effective_rows(given, merge_repeats(given), correlation_time(given))


def test_effective_rows():
    distinct = torch.randn(200, 5, generator=source())
    assert effective(samples(distinct)) == 200
    assert effective(samples(distinct.repeat(50, 1))) == 200
    resampled = distinct[torch.randint(200, (10_000,), generator=source(1))]
    # Counts are Poisson with mean 50: the weights have a relative variance of 1/50.
    assert effective(samples(resampled)) == pytest.approx(200 / 1.02, rel=0.01)
    weights = torch.tensor([1.0, 0.5]).repeat(100)
    assert effective(samples(distinct, weights=weights)) == pytest.approx(180)
    chain = autoregression(10_000, 2, 0.9)
    assert effective(samples(chain)) == pytest.approx(10_000 / 19, rel=0.4)


@pytest.mark.parametrize(
    ("rows", "features", "warned"),
    [(100, 5, False), (99, 1, True), (700, 16, True), (800, 16, False)],
)
def test_few_rows_are_warned_of(rows, features, warned):
    """A normal law in 16 dimensions, 152 parameters, is off by a tenth of a nat at 760 rows."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_if_few(rows, features)
    assert [w.category for w in seen] == [SampleWarning] * warned


def test_repeats_become_weights_in_the_order_of_the_chain():
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    chains = torch.tensor([0, 0, 0, 1, 1, 1])
    merged = merge_repeats(samples(x, chains=chains))
    assert merged.values[:, 0].tolist() == [3, 1, 2]
    assert merged.weights.tolist() == pytest.approx([1, 1 / 3, 2 / 3])
    assert merged.chains.tolist() == [0, 0, 1]
    weighted = merge_repeats(samples(x, weights=torch.tensor([0.1, 1, 0.15, 0.25, 0.25, 0.25])))
    assert weighted.values[:, 0].tolist() == [3, 1, 2]
    assert weighted.weights.tolist() == [0.5, 1, 0.5]
    assert merge_repeats(samples(x[[0, 1, 0, 1]])).weights is None


def test_no_row_is_on_both_sides_of_a_split():
    distinct = torch.randn(200, 2, generator=source())
    taken = take_in(samples(distinct.repeat(50, 1)), None, torch.float64)
    kept, held = split(taken.samples.values, None, 0.1, source())
    assert (taken.rows, len(kept), len(held)) == (10_000, 180, 20)
    assert len(torch.cat([kept.values, held.values]).unique(dim=0)) == 200


@pytest.mark.parametrize("chains", [None, 4])
@pytest.mark.parametrize("time", [1.5, 10.0, 80.0, 1e4])
def test_neighbours_in_a_chain_are_not_split(chains, time):
    """Held-out rows lie in stretches; between them and the training rows is a gap."""
    rows = 4000
    values = torch.arange(rows, dtype=torch.float64)[:, None]
    numbers = chains and torch.arange(rows) % 4  # rows of the chains take turns
    place = values[:, 0].long()
    if chains:
        place = (place % 4) * 1000 + place // 4
    kept, held = split(values, None, 0.1, source(), chains=numbers, time=time)
    here = torch.zeros(rows, dtype=torch.bool)
    here[place[held.values[:, 0].long()]] = True
    assert here.sum() == 400
    trained = place[kept.values[:, 0].long()].sort().values
    edges = here.nonzero()[:, 0]
    apart = (trained[:, None] - edges).abs().amin(1)
    stretches = max(1, min(50, int(400 / (5 * time))))
    gap = min(math.ceil(time), 400 // (2 * stretches))
    assert apart.min() == gap + 1
    assert (edges.diff() > 1).sum() + 1 <= stretches
    assert len(trained) >= rows - 400 - 2 * gap * stretches
    assert len(trained) >= 0.8 * rows


def test_what_is_held_out_of_a_slow_chain_is_news():
    """The nearest training row in time, on average over the held-out ones, tells little."""
    chain = autoregression(4000, 1, 0.9)
    index = torch.arange(4000, dtype=torch.float64)[:, None]
    for time, least in ((1.0, 1.0), (19.0, 20.0)):
        kept, held = split(index, None, 0.1, source(), time=time)
        apart = (held.values - kept.values.mT).abs().amin(1)
        assert apart.min() >= least
        # What a neighbour at lag k says: the correlation 0.9 ** k.
        assert (0.9 ** apart.mean() < 0.1) == (time > 1)
    assert len(chain) == 4000


def test_a_subset_follows_the_weights_and_repeats_no_equal_row():
    values = torch.arange(100.0)[:, None]
    weights = torch.ones(100)
    weights[7] = 5
    drawn = Batches(values, weights).subset(100, source())[:, 0].long()
    counts = torch.bincount(drawn, minlength=100)
    # A comb of 100 teeth over a weight of 104: each row gets its share, to the next integer.
    assert counts[7] in (4, 5)
    assert counts.sum() == 100
    assert (counts[torch.arange(100) != 7] <= 1).all()
    assert len(Batches(values, weights).subset(30, source())) == 30
