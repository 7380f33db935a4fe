"""Containers of samples: what came in by name goes out by name, and what is wrong is named."""

import math
import re

import arviz
import numpy as np
import pandas
import pytest
import torch

import pyro_stad
from pyro_stad._arviz import from_dict
from pyro_stad.data import (
    Periodic,
    as_samples,
    check_inside,
    parse_bounds,
    support_of,
    whitening,
)
from pyro_stad.data.batches import Batches, balanced_noise, split, stratified
from tests.oracles import mixture_sample


def matrix(rows=200, columns=3):
    return mixture_sample(rows, columns)


CONTAINERS = {
    "tensor": lambda x: x,
    "float32 tensor": lambda x: x.float(),
    "numpy": lambda x: x.numpy(),
    "numpy, fortran order": lambda x: np.asfortranarray(x.numpy()),
    "numpy, read-only": lambda x: _frozen(x.numpy().copy()),
    "data frame": lambda x: pandas.DataFrame(x.numpy(), columns=["a", "b", "c"]),
    "mapping": lambda x: {"a": x[:, 0], "b": x[:, 1:].numpy()},
    "inference data": lambda x: _posterior(x),
    "posterior group": lambda x: _dataset(_posterior(x)),
    "extracted": lambda x: arviz.extract(_posterior(x)),
    "one chain": lambda x: _dataset(_posterior(x, chains=1)).isel(chain=0),
    "data array": lambda x: _dataset(from_dict({"posterior": {"a": x.reshape(4, 50, 3).numpy()}}))[
        "a"
    ],
    "big-endian": lambda x: x.numpy().astype(">f8"),
    "big-endian columns": lambda x: {name: x.numpy()[:, i].astype(">f8") for i, name in ABC},
    "long double": lambda x: x.numpy().astype(np.longdouble),
    "records": lambda x: np.rec.fromarrays([*x.numpy().T], names="a,b,c"),
    "mask that hides nothing": lambda x: np.ma.masked_invalid(x.numpy()),
    "nullable columns": lambda x: pandas.DataFrame(x.numpy(), columns=["a", "b", "c"]).astype(
        "Float64"
    ),
    "columns of a frame": lambda x: {name: pandas.Series(x[:, i].numpy()) for i, name in ABC},
    "frame with labels": lambda x: pandas.DataFrame(
        x.numpy(), columns=pandas.MultiIndex.from_tuples(LABELS, names=[None, "labels"])
    ),
}
BOX = [(-100.0, 100.0)] * 3
ABC = list(enumerate("abc"))
LABELS = [("a", "$a$"), ("b", "$b$"), ("c", "$c$")]


def _posterior(x, chains=4):
    a, b = x[:, 0].reshape(chains, -1), x[:, 1:].reshape(chains, -1, 2)
    return from_dict({"posterior": {"a": a.numpy(), "b": b.numpy()}})


def _dataset(posterior):
    group = posterior["posterior"]
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_matrix(name):
    x = matrix()
    read = as_samples(CONTAINERS[name](x))
    torch.testing.assert_close(read.values, x, rtol=1e-6, atol=1e-6)
    assert read.values.dtype == torch.float64
    assert len(read.layout.names) == 3


CHAINS = {"inference data": 4, "posterior group": 4, "extracted": 4, "one chain": 1}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_of_each_row_is_kept(name):
    chains = as_samples(CONTAINERS[name](matrix())).chains
    assert chains.tolist() == [row * CHAINS[name] // 200 for row in range(200)]


def test_data_tree_of_arviz_one():
    base = pytest.importorskip("arviz_base")
    x = matrix()
    tree = base.from_dict({"posterior": {"a": x.reshape(4, 50, 3).numpy()}})
    torch.testing.assert_close(as_samples(tree).values, x)


def test_names_go_out_as_they_came():
    x = matrix()
    mapping = as_samples({"a": x[:, 0], "b": x[:, 1:]}).layout
    assert mapping.names == ("a", "b[0]", "b[1]")
    parts = mapping.unpack(torch.arange(6.0).reshape(2, 3))
    assert parts["a"].shape == (2,)
    assert parts["b"].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    labelled = from_dict(
        {"posterior": {"b": x.reshape(4, 50, 3).numpy()}},
        coords={"kind": ["u", "v", "w"]},
        dims={"b": ["kind"]},
    )
    assert as_samples(labelled).layout.names == ("b[u]", "b[v]", "b[w]")
    assert as_samples(x, names=["p", "q", "r"]).layout.names == ("p", "q", "r")
    assert list(mapping.indices("b")) == [1, 2]


def test_var_names_choose_and_order():
    x = matrix()
    chosen = as_samples({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]}, var_names=["c", "a"])
    torch.testing.assert_close(chosen.values, x[:, [2, 0]])


def broken(change):
    x = matrix()
    change(x)
    return x


def _masked(rows):
    values = matrix().numpy()
    mask = np.zeros_like(values, dtype=bool)
    mask[:rows, 0] = True
    return np.ma.masked_array(values, mask)


BAD_DATA = {
    "masked": (lambda: _masked(7), ValueError, "`samples` has 7 masked cells"),
    "masked column": (
        lambda: {"a": _masked(7)[:, 0], "b": matrix()[:, 1]}, ValueError, "'a' of `samples` has 7"
    ),
    "missing, nullable": (
        lambda: pandas.DataFrame({"a": pandas.array([1, 2, None] * 80)}),
        ValueError, "'a' of `samples` has 80 missing cells",
    ),
    "missing, objects": (
        lambda: pandas.DataFrame({"a": [1.0, pandas.NA] * 80}), ValueError, "has 80 missing cells"
    ),
    "repeated columns": (
        lambda: pandas.DataFrame(matrix(), columns=["a", "b", "a"]), ValueError, "['a'] are repeat"
    ),
    "beyond float64": (
        lambda: np.array([[10], [1]] * 100, dtype=np.longdouble) ** 2000,
        ValueError, "too large for float64",
    ),
    "sparse": (lambda: matrix().to_sparse(), TypeError, "must be a dense tensor"),
    "steps and walkers": (lambda: torch.randn(100, 8, 2), ValueError, "must be flat"),
    "few chains": (lambda: {"mu": torch.randn(4, 500)}, ValueError, "4 chains of 500 draws"),
    "many chains": (
        lambda: {"mu": torch.randn(128, 20), "x": torch.randn(128, 20, 3)},
        ValueError, "128 chains of 20 draws in ['mu', 'x']",
    ),
    "no chains": (
        lambda: _dataset(_posterior(matrix())).rename(chain="c", draw="d"),
        ValueError, "must have dimensions chain and draw, or sample; got ['c', 'd'",
    ),
    "fewer rows than columns": (
        lambda: torch.randn(150, 200), ValueError, "more distinct rows than columns; got 150"
    ),
    "list": (lambda: [[1.0, 2.0]], TypeError, "got list. Wrap lists in numpy.array"),
    "path": (lambda: "c.csv", TypeError, "Read it first: read_chain('c.csv')"),
    "strings": (lambda: np.array([["a", "b"]] * 200), TypeError, "must be numbers"),
    "objects": (lambda: np.array([[None, 1.0]] * 200), TypeError, "dtype object"),
    "complex": (lambda: torch.zeros(200, 2, dtype=torch.complex64), TypeError, "must be real"),
    "one dimension": (lambda: torch.randn(200), ValueError, r"shape \(N, D\); got \(200,\)"),
    "three dimensions": (lambda: torch.randn(200, 2, 2), ValueError, "got (200, 2, 2)"),
    "no columns": (lambda: torch.zeros(200, 0), ValueError, "no columns"),
    "no rows": (lambda: torch.zeros(0, 2), ValueError, "at least 100 distinct rows; got 0"),
    "too few": (lambda: matrix(99), ValueError, "at least 100 distinct rows; got 99"),
    "duplicates": (lambda: matrix(99).repeat(20, 1), ValueError, "got 99 of 1980"),
    "nan": (lambda: broken(lambda x: x[7].fill_(math.nan)), ValueError, r"row 7 with x\[0\] = nan"),
    "infinity": (
        lambda: broken(lambda x: x[9, 2].fill_(math.inf)), ValueError, r"row 9 with x\[2\] = inf"
    ),
    "constant": (
        lambda: broken(lambda x: x[:, 1].fill_(3.0)), ValueError, r"x\[1\] is constant \(3.0\)"
    ),
    "empty mapping": (dict, ValueError, "`var_names` must be among"),
    "ragged mapping": (
        lambda: {"a": torch.randn(200), "b": torch.randn(199)}, ValueError, "as many rows"
    ),
    "scalar in mapping": (lambda: {"a": torch.tensor(1.0)}, ValueError, "got a scalar"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_named(name):
    make, error, message = BAD_DATA[name]
    pattern = message if "\\" in message else re.escape(message)
    with pytest.raises(error, match=pattern):
        as_samples(make())


BAD_OPTIONS = {
    "names, too few": ({"names": ["a"]}, "`names` must be 3 different names"),
    "names, repeated": ({"names": ["a", "a", "b"]}, "3 different names"),
    "var_names of an array": ({"var_names": ["a"]}, "an array has none"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_named(name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        as_samples(matrix(), **options)


VECTORS = {
    "vector of a long chain": {"beta": torch.randn(5000, 20)},
    "means apart": {"beta": torch.randn(300, 20) + torch.arange(20.0)},
    "spreads apart": {"beta": torch.randn(300, 20) * torch.arange(1, 21)},
    "a scalar beside": {"mu": torch.randn(300), "beta": torch.randn(300, 20)},
    "short vector": {"beta": torch.randn(300, 3)},
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_are_not_taken_for_chains(name):
    read = as_samples(VECTORS[name])
    assert len(read.values) == len(VECTORS[name]["beta"])


def test_linearly_dependent_columns_are_named():
    x = matrix()
    values = torch.cat([x, x[:, :1] - 2 * x[:, 2:3]], dim=1)
    with pytest.raises(ValueError, match=r"\['a', 'c', 'd'\] are linearly dependent"):
        whitening(values, None, ("a", "b", "c", "d"))


def test_whitening_handles_any_scale_and_weights():
    x = matrix(4000) * torch.tensor([1e9, 1e-6, 1.0]) + torch.tensor([1e9, 0.0, 5.0])
    weights = torch.rand(4000)
    loc, scale_tril = whitening(x, weights, ("a", "b", "c"))
    white = torch.linalg.solve_triangular(scale_tril, (x - loc).mT, upper=False).mT
    share = weights / weights.sum()
    torch.testing.assert_close(share @ white, torch.zeros(3), rtol=0, atol=1e-8)
    torch.testing.assert_close(white.mT @ (share[:, None] * white), torch.eye(3), rtol=0, atol=1e-8)


LAYOUT = as_samples(mixture_sample(200, 4), names=["a", "b", "c", "d"]).layout


def test_bounds_by_name_or_in_order():
    inf = math.inf
    expected = ((0.0, inf), (-inf, inf), (-1.0, 1.0), (-inf, 5.0))
    by_name = {"a": (0, None), "c": (-1, 1), "d": (None, 5)}
    assert parse_bounds(by_name, LAYOUT) == expected
    assert parse_bounds([(0, inf), None, (-1, 1), (None, 5)], LAYOUT) == expected
    assert parse_bounds(None, LAYOUT) is None
    assert parse_bounds({"a": (None, None)}, LAYOUT) is None
    support = support_of(expected, torch.zeros(1))
    inside = torch.tensor([[1.0, -9.0, 0.5, 4.0], [-1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 6.0]])
    assert support.check(inside).tolist() == [True, False, False]


BAD_BOUNDS = {
    "unknown name": ({"z": (0, 1)}, "there is no parameter 'z'"),
    "decreasing": ({"a": (1, 0)}, "`bounds` of a must increase"),
    "nan": ({"a": (math.nan, 1)}, "`bounds` of a must increase"),
    "not a pair": (
        {"a": "low"},
        r"a must be a pair \(low, high\), 'periodic' or a period; got 'low'",
    ),
    "no period": ({"a": 0}, "`bounds` of a must have a finite, positive period; got 0"),
    "endless period": ({"a": math.inf}, "a finite, positive period; got inf"),
    "backward period": ({"a": Periodic(1, 0)}, "`bounds` of a must increase"),
    "a truth value": ({"a": True}, "must be a pair"),
    "text": ({"a": ("x", 1)}, "must be a pair"),
    "wrong count": ([(0, 1)], "or 4 pairs"),
}


@pytest.mark.parametrize("name", BAD_BOUNDS)
def test_bad_bounds_are_named(name):
    bounds, message = BAD_BOUNDS[name]
    with pytest.raises(ValueError, match=message):
        parse_bounds(bounds, LAYOUT)


def test_samples_outside_their_bounds_are_named():
    bounds = parse_bounds({"b": (0, None)}, LAYOUT)
    values = torch.ones(5, 4)
    values[3, 1] = -2.0
    with pytest.raises(ValueError, match=r"`bounds` of b .* row 3: -2.0"):
        check_inside(values, bounds, LAYOUT.names)


def test_weighted_draws_follow_the_weights():
    """Binomial counts of 20,000 draws: 4.5 standard errors."""
    values = torch.arange(3.0)[:, None]
    drawn = Batches(values, torch.tensor([1.0, 0.0, 3.0])).draw(20_000, torch.Generator())
    counts = torch.bincount(drawn[:, 0].long(), minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] - 15_000) < 4.5 * math.sqrt(20_000 * 0.75 * 0.25)


def test_split_keeps_every_row_once():
    values, generator = torch.arange(10.0)[:, None], torch.Generator().manual_seed(0)
    kept, held = split(values, torch.arange(10.0) + 1, 0.3, generator)
    assert len(held) == 3
    assert sorted(torch.cat([kept.values, held.values])[:, 0].tolist()) == list(range(10))


def test_stratified_numbers_fill_their_cells():
    numbers = stratified(50, torch.Generator(), torch.zeros(()))
    assert ((numbers * 50).long() == torch.arange(50)).all()


def test_balanced_noise_is_normal_orthogonal_and_antithetic():
    noise = balanced_noise(20_000, 3, 4, torch.Generator().manual_seed(0), torch.zeros(()))
    assert noise.shape == (2, 20_000, 3, 4)
    assert torch.equal(noise[0], -noise[1])
    gram = noise[0] @ noise[0].mT
    assert (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-10
    lengths = noise[0].square().sum(-1)  # chi-squared with 4 degrees of freedom
    assert (lengths.mean(0) - 4).abs().max() < 5 * math.sqrt(8 / 20_000)
    assert (lengths.var(0) - 8).abs().max() < 5 * math.sqrt(8**2 * 5 / 20_000)
    covariance = torch.einsum("nfi,nfj->fij", noise[0], noise[0]) / 20_000
    assert (covariance - torch.eye(4)).abs().max() < 5 * math.sqrt(2 / 20_000)


def test_rows_without_weight_have_no_part():
    x = matrix()
    far = torch.tensor([[math.nan, 0.0, 0.0], [-1e9, 0.0, 0.0]])
    weights = torch.cat([torch.ones(len(x)), torch.zeros(2)])
    read = as_samples(torch.cat([x, far]), weights=weights)
    assert read.weights is None
    assert torch.equal(read.values, x)
    logs = weights.log()
    check_inside(as_samples(torch.cat([x, far]), log_weights=logs).values, BOX, ("a", "b", "c"))


SAMPLERS_OWN = {
    "Stan": ["lp__", "chain__", "a", "b"],
    "emcee": ["a", "b", "log_prob"],
    "anesthetic": ["a", "b", "logL", "logL_birth", "nlive"],
}


@pytest.mark.parametrize("sampler", SAMPLERS_OWN)
@pytest.mark.parametrize("make", [dict, pandas.DataFrame])
def test_sampler_columns_in_memory_are_warned_of(sampler, make, recwarn):
    x = torch.randn(200, 5).numpy()
    table = make({name: x[:, i] for i, name in enumerate(SAMPLERS_OWN[sampler])})
    with pytest.warns(pyro_stad.SampleWarning, match=r"var_names=\['a', 'b'\]") as caught:
        assert as_samples(table).layout.names == tuple(SAMPLERS_OWN[sampler])
    own = [name for name in SAMPLERS_OWN[sampler] if name not in "ab"]
    assert all(name in str(caught[0].message) for name in own)
    recwarn.clear()
    as_samples(table, var_names=["a", "b"])
    as_samples(table, var_names=SAMPLERS_OWN[sampler])
    assert not recwarn.list


def test_ordinary_names_are_not_a_samplers(recwarn):
    x = matrix()
    as_samples({"weights": x, "step": x[:, 0], "like": x[:, :2]})
    as_samples(pandas.DataFrame(x.numpy(), columns=["step", "draw", "post_mean"]))
    assert not recwarn.list
