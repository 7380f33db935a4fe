"""Chains of other samplers: every format gives back what was written, and weighs as it should."""

import json
import math
import warnings

import numpy as np
import pandas
import pytest
import torch

import pyro_stad
from pyro_stad.data import Periodic
from tests.data import chain_files as files

NAMED = ("a", "b", "c")
ARRAY = ("x[0]", "x[1]", "x[2]")
VECTOR = ("a", "v[0]", "v[1]")
LABELLED = ("a", "v[b]", "v[c]")
# What makes the files; the names that come back; whether weights do; how many chains.
FORMATS = {
    "getdist": (files.write_getdist, NAMED, True, 2),
    "cobaya": (files.write_cobaya, NAMED, True, 2),
    "polychord": (files.write_polychord, NAMED, True, None),
    "multinest": (files.write_multinest, NAMED, True, None),
    "ultranest": (files.write_ultranest, NAMED, True, None),
    "ultranest, short header": (files.write_ultranest_short_header, NAMED, True, None),
    "stan": (files.write_stan, NAMED, False, 2),
    "emcee": (files.write_emcee, ARRAY, False, 4),
    "netcdf": (files.write_netcdf, LABELLED, False, 2),
    "flat netcdf": (files.write_flat_netcdf, LABELLED, False, 2),
    "zarr": (files.write_zarr, LABELLED, False, 2),
    "bilby": (files.write_bilby, NAMED, False, None),
    "csv": (files.write_csv, NAMED, True, None),
    "dat": (files.write_dat, NAMED, False, None),
    "parquet": (files.write_parquet, NAMED, True, None),
    "fits": (files.write_fits, NAMED, False, None),
    "npy": (files.write_npy, ARRAY, False, None),
    "npz": (files.write_npz, VECTOR, True, None),
    "anesthetic": (files.write_anesthetic, NAMED, True, None),
}


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(400, 3)) @ np.diag([1e-3, 1.0, 30.0])


@pytest.fixture
def weights():
    return np.random.default_rng(1).gamma(2.0, size=400)


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_comes_back(name, values, weights, tmp_path):
    write, names, weighted, chains = FORMATS[name]
    path = write(tmp_path, values, weights)
    # Files of text and readers of ours; what h5py or pyarrow warn of is not for the user.
    chain = pyro_stad.read_chain(path)
    assert chain.names == names
    assert chain.values.dtype == torch.float64
    # 16 digits are written at least, which is a relative error of 1e-15.
    np.testing.assert_allclose(chain.values.numpy(), values, rtol=2e-15)
    assert (chain.weights is not None) == weighted
    if weighted:
        given = chain.weights.numpy()
        np.testing.assert_allclose(given / given.sum(), weights / weights.sum(), rtol=1e-12)
    if chains is None:
        assert chain.chains is None
    else:
        assert chain.chains.tolist() == np.repeat(range(chains), 400 // chains).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_column_is_the_only_one(name, values, weights, tmp_path):
    write, names, _, _ = FORMATS[name]
    path = write(tmp_path, values, weights)
    chain = pyro_stad.read_chain(path, var_names=[names[2], names[0]])
    assert chain.names == (names[2], names[0])
    np.testing.assert_allclose(chain.values.numpy(), values[:, [2, 0]], rtol=2e-15)
    assert chain.left_out[names[1]] == "not named"


LEFT_OUT = {
    "getdist": {"sum": "derived parameter"},
    "cobaya": {"sum": "derived parameter", "chi2__one": "log-density of the sampler"},
    "stan": {"lp__": "the sampler's own", "accept_stat__": "the sampler's own"},
    "bilby": {
        "sum": "derived or fixed parameter",
        "z": "no real numbers",
        "name": "no real numbers",
    },
    "csv": {"Unnamed: 0": "index of the rows"},
    "parquet": {"__index_level_0__": "index of the rows"},
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_parameter_stays_out_and_is_said(name, values, weights, tmp_path):
    chain = pyro_stad.read_chain(FORMATS[name][0](tmp_path, values, weights))
    for column, reason in LEFT_OUT[name].items():
        assert chain.left_out[column] == reason
        assert column in repr(chain)
        assert reason in repr(chain)


def test_derived_parameters_come_if_they_are_named(values, weights, tmp_path):
    chain = pyro_stad.read_chain(files.write_getdist(tmp_path, values, weights), var_names=["sum"])
    np.testing.assert_allclose(chain.values[:, 0].numpy(), values.sum(1), rtol=1e-13, atol=1e-13)


BOUNDS = {
    "getdist": {"a": (-50.0, None), "b": Periodic(-7.0, 7.0)},
    # yaml takes 1e3 for text.
    "cobaya": {"a": (-50.0, 1000.0), "c": (-600.0, 700.0)},
    "bilby": {"a": (-50.0, 60.0), "b": Periodic(-7.0, 7.0)},
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_the_file_are_believed(name, values, weights, tmp_path):
    chain = pyro_stad.read_chain(FORMATS[name][0](tmp_path, values, weights))
    assert chain.bounds == BOUNDS[name]
    assert all(type(chain.bounds[key]) is type(pair) for key, pair in BOUNDS[name].items())


COBAYA_PRIORS = {
    "{dist: uniform, loc: 1, scale: 2}": (1.0, 3.0),
    "{dist: halfnorm, loc: 0, scale: 2}": (0.0, None),
    "{dist: loguniform, a: 1e-3, b: 10}": (1e-3, 10.0),
    "{min: 0, max: 6.28, periodic: true}": Periodic(0.0, 6.28),
    "{max: 2}": (None, 2.0),
    "{dist: norm, loc: 1, scale: 2}": None,
    "'lambda x: x'": None,
}


@pytest.mark.parametrize("prior", COBAYA_PRIORS)
def test_priors_of_cobaya_have_bounds(prior, values, weights, tmp_path):
    root = files.write_cobaya(tmp_path, values, weights)
    (tmp_path / "root.updated.yaml").write_text(f"params:\n  b: {{prior: {prior}}}\n")
    assert pyro_stad.read_chain(root).bounds.get("b") == COBAYA_PRIORS[prior]


def test_labels(values, weights, tmp_path):
    chain = pyro_stad.read_chain(files.write_getdist(tmp_path, values, weights))
    assert chain.labels == {"a": "\\alpha", "c": "\\gamma"}


def moments(chain):
    """Return the weighted mean and covariance, as the libraries define them."""
    weights = chain.weights.numpy() / chain.weights.sum().item()
    mean = weights @ chain.values.numpy()
    centred = chain.values.numpy() - mean
    return mean, (centred * weights[:, None]).T @ centred


@pytest.mark.parametrize("name", ["getdist", "cobaya", "polychord"])
@pytest.mark.parametrize("burn_in", [0, 0.3, 7])
def test_moments_are_those_of_getdist(name, burn_in, values, weights, tmp_path):
    getdist = pytest.importorskip("getdist")
    root = FORMATS[name][0](tmp_path, values, weights)
    # GetDist counts lines when it skips a number of rows, Cobaya's header among them.
    skipped = burn_in + 1 if name == "cobaya" and burn_in >= 1 else burn_in
    theirs = getdist.loadMCSamples(str(root), settings={"ignore_rows": skipped}, no_cache=True)
    chain = pyro_stad.read_chain(root, burn_in=burn_in)
    mean, covariance = moments(chain)
    columns = [theirs.index[key] for key in NAMED]
    # To 1e-10 of the scales, which differ by 30,000 here.
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(mean / scale, theirs.getMeans(columns) / scale, atol=1e-10)
    np.testing.assert_allclose(
        covariance / np.outer(scale, scale),
        theirs.getCov(pars=columns) / np.outer(scale, scale),
        atol=1e-10,
    )


@pytest.mark.parametrize("name", ["getdist", "cobaya"])
def test_moments_are_those_of_anesthetic(name, values, weights, tmp_path):
    anesthetic = pytest.importorskip("anesthetic")
    root = FORMATS[name][0](tmp_path, values, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = anesthetic.read_chains(str(root))[list(NAMED)]
        expected = np.asarray(theirs.mean()), np.asarray(theirs.cov(ddof=0))
    mean, covariance = moments(pyro_stad.read_chain(root))
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(mean / scale, expected[0] / scale, atol=1e-10)
    shape = np.outer(scale, scale)
    np.testing.assert_allclose(covariance / shape, expected[1] / shape, atol=1e-10)


def test_one_chain_of_a_root(values, weights, tmp_path):
    files.write_getdist(tmp_path, values, weights)
    for path in (tmp_path / "root_2.txt", str(tmp_path / "root_2.txt")):
        chain = pyro_stad.read_chain(path)
        np.testing.assert_allclose(chain.values.numpy(), values[200:])
    whole = pyro_stad.read_chain(tmp_path / "root.paramnames")
    assert len(whole.values) == 400
    assert {f.name for f in whole.files} == {
        "root_1.txt", "root_2.txt", "root.paramnames", "root.ranges"
    }  # fmt: skip


def test_warmup_of_stan_is_left_out_and_counted(values, tmp_path):
    # 10 warm-up iterations thinned by 3 are the iterations 1, 4, 7, 10.
    root = files.write_stan(tmp_path, values)
    chain = pyro_stad.read_chain(root)
    assert chain.burn_in == 8
    assert "8 rows of burn-in left out" in repr(chain)
    again = pyro_stad.read_chain([f"{root}_1.csv", f"{root}_2.csv"], burn_in=0.5)
    assert again.burn_in == 8 + 200
    np.testing.assert_allclose(again.values.numpy(), np.r_[values[100:200], values[300:]])
    assert len(pyro_stad.read_chain(f"{root}_*.csv").values) == 400
    unsaved = files.write_stan(tmp_path, values, save="false")
    assert pyro_stad.read_chain(unsaved).burn_in == 0


def test_arrays_of_stan_are_read_row_by_row(tmp_path):
    names = [f"m.{i}.{j}" for j in (1, 2, 3) for i in (1, 2)]
    drawn = np.random.default_rng(0).normal(size=(200, 6))
    rows = [",".join(map(repr, row)) for row in drawn.tolist()]
    text = "\n".join(["# method = sample", ",".join(names), *rows])
    (tmp_path / "out.csv").write_text(text)
    chain = pyro_stad.read_chain(tmp_path / "out.csv")
    assert chain.names == ("m[0, 0]", "m[0, 1]", "m[0, 2]", "m[1, 0]", "m[1, 1]", "m[1, 2]")
    expected = drawn.reshape(200, 3, 2).swapaxes(1, 2).reshape(200, 6)
    np.testing.assert_array_equal(chain.values.numpy(), expected)
    prior = pyro_stad.fit(chain, budget="tiny", progress=False)
    assert prior.unpack(prior.sample((5,)))["m"].shape == (5, 2, 3)


def test_the_first_row_of_a_variational_fit_is_no_draw(tmp_path):
    (tmp_path / "vi.csv").write_text("# method = variational\nlp__,a\n0,99\n0,1\n0,2\n")
    assert pyro_stad.read_chain(tmp_path / "vi.csv").values.tolist() == [[1.0], [2.0]]


def test_multinest_of_equal_weights(values, tmp_path):
    file = tmp_path / "1-post_equal_weights.dat"
    np.savetxt(file, np.column_stack([values, np.zeros(400)]))
    assert pyro_stad.read_chain(file).names == ARRAY
    (tmp_path / "1-params.json").write_text(json.dumps(list(NAMED)))
    chain = pyro_stad.read_chain(file)
    assert chain.names == NAMED
    np.testing.assert_allclose(chain.values.numpy(), values)


def test_results_of_dynesty_in_memory():
    dynesty = pytest.importorskip("dynesty")
    sampler = dynesty.NestedSampler(
        lambda x: -0.5 * float(x @ x), lambda u: 20 * u - 10, 2, nlive=100,
        rstate=np.random.default_rng(0),
    )  # fmt: skip
    sampler.run_nested(print_progress=False)
    chain = pyro_stad.read_chain(sampler.results, names=["p", "q"])
    assert chain.names == ("p", "q")
    expected = sampler.results.importance_weights()
    weights = chain.weights.numpy()
    np.testing.assert_allclose(weights / weights.sum(), expected / expected.sum(), rtol=1e-10)
    torch.testing.assert_close(pyro_stad.read_chain(sampler).weights, chain.weights)


def test_a_sampler_of_nautilus_in_memory():
    nautilus = pytest.importorskip("nautilus")
    prior = nautilus.Prior()
    for key in ("p", "q"):
        prior.add_parameter(key, (-4, 4))
    sampler = nautilus.Sampler(
        prior, lambda x: -0.5 * (x["p"] ** 2 + x["q"] ** 2), n_live=200, n_networks=0, seed=1
    )
    sampler.run(n_eff=100, verbose=False)
    chain = pyro_stad.read_chain(sampler)
    points, log_weights, _ = sampler.posterior()
    assert chain.names == ("p", "q")
    np.testing.assert_array_equal(chain.values.numpy(), points)
    np.testing.assert_allclose(chain.weights.log().numpy(), log_weights - log_weights.max())


def test_other_results_in_memory(values, weights):
    chain = pyro_stad.read_chain(
        {"weighted_samples": {"points": values, "weights": weights}, "paramnames": NAMED}
    )
    np.testing.assert_allclose(chain.weights.numpy(), weights / weights.max())
    getdist = pytest.importorskip("getdist")
    samples = getdist.MCSamples(samples=values, weights=weights, names=["a", "b", "c*"])
    assert pyro_stad.read_chain(samples).names == ("a", "b")
    ranges = {"a": [-60.0, None], "b": [-7.0, 7.0, True]}
    several = getdist.MCSamples(
        samples=[values[:150], values[150:]], names=["a", "b", "c*"], ranges=ranges
    )
    chain = pyro_stad.read_chain(several)
    assert chain.bounds == {"a": (-60.0, None), "b": Periodic(-7.0, 7.0)}
    assert torch.bincount(chain.chains).tolist() == [150, len(values) - 150]
    anesthetic = pytest.importorskip("anesthetic")
    frame = anesthetic.MCMCSamples(data=values, columns=NAMED, weights=weights)
    np.testing.assert_array_equal(pyro_stad.read_chain(frame).weights.numpy(), weights)


def test_fit_takes_a_chain_with_its_weights_and_bounds(values, weights, tmp_path):
    chain = pyro_stad.read_chain(files.write_cobaya(tmp_path, values, weights))
    prior = pyro_stad.fit(chain, budget="tiny", progress=False, dtype=torch.float64)
    assert prior.names == NAMED
    assert prior.bounds[0] == (-50.0, 1000.0)
    assert prior.bounds[1] == (-float("inf"), float("inf"))
    free = pyro_stad.fit(chain, bounds={}, budget="tiny", progress=False, dtype=torch.float64)
    assert free.bounds is None


@pytest.mark.parametrize("index", [True, False])
def test_columns_that_pandas_has_counted_are_a_header(values, tmp_path, index):
    pandas.DataFrame(values).to_csv(tmp_path / "t.csv", index=index)
    chain = pyro_stad.read_chain(tmp_path / "t.csv")
    assert chain.names == ("0", "1", "2")
    np.testing.assert_array_equal(chain.values.numpy(), values)


def test_a_first_row_of_integers_like_the_others_is_a_row(tmp_path):
    (tmp_path / "t.csv").write_text("0,1\n1,1\n2,0\n")
    assert pyro_stad.read_chain(tmp_path / "t.csv").values.shape == (3, 2)


def test_ranges_without_a_range_are_none(values, weights, tmp_path):
    files.write_getdist(tmp_path, values, weights)
    (tmp_path / "root.ranges").write_text("")
    assert pyro_stad.read_chain(tmp_path / "root").bounds == {}
    (tmp_path / "root.ranges").write_text("# a remark\n\n  b  -7.0  7.0  # and another\n")
    assert pyro_stad.read_chain(tmp_path / "root").bounds == {"b": (-7.0, 7.0)}


def test_warmup_as_rstan_writes_it_is_left_out(tmp_path):
    head = "# stan_version_major=2\n# warmup=3\n# save_warmup=1\n# thin=1\nlp__,a\n"
    (tmp_path / "r.csv").write_text(head + "".join(f"0,{i}\n" for i in range(8)))
    chain = pyro_stad.read_chain(tmp_path / "r.csv")
    assert chain.burn_in == 3
    assert chain.values[:, 0].tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]


def test_bounds_given_for_one_parameter_leave_those_of_the_others(values, tmp_path):
    files.write_getdist(tmp_path, values, np.ones(len(values)))
    chain = pyro_stad.read_chain(tmp_path / "root")
    high = float(values[:, 0].max()) + 1
    for given, first in (
        ({"a": (-60.0, high)}, (-60.0, high)),
        ({"a": None}, (-math.inf, math.inf)),
    ):
        prior = pyro_stad.fit(chain, bounds=given, budget="tiny", progress=False)
        assert prior.bounds[0] == first
        assert (prior.bounds[1].low, prior.bounds[1].high) == (-7.0, 7.0)
