"""Rules of reading chains: what is a weight, what a name, what stays out; and what is refused."""

import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import pyro_stad
from pyro_stad.data.layout import Layout
from tests.data import chain_files as files

ROWS = ["0.5,1.5", "1.5,-2.5", "2.5,0.25"]
PLAIN = [[0.5, 1.5], [1.5, -2.5], [2.5, 0.25]]


def lines(*texts):
    return "\n".join(texts) + "\n"


SPACED = [row.replace(",", "  ") for row in ROWS]
# The text of a table, and the names that it must have; the values are the same in all.
TABLES = {
    "comma": (lines("a,b", *ROWS), ("a", "b")),
    "comma and space": (lines("a, b", *(row.replace(",", ", ") for row in ROWS)), ("a", "b")),
    "tab": (lines("a\tb", *(row.replace(",", "\t") for row in ROWS)), ("a", "b")),
    "bar": (lines("a|b", *(row.replace(",", "|") for row in ROWS)), ("a", "b")),
    "semicolon": (lines("a;b", *(row.replace(",", ";") for row in ROWS)), ("a", "b")),
    "decimal comma": (
        lines("a;b", *(row.replace(",", ";").replace(".", ",") for row in ROWS)), ("a", "b")
    ),
    "spaces": (lines("a b", *SPACED), ("a", "b")),
    "indented": (lines("   a  b", *("  " + row for row in SPACED)), ("a", "b")),
    "header in a comment": (lines("# made by hand", "#  a b", *SPACED), ("a", "b")),
    "comments below": (lines("a b", SPACED[0], "# stop", *SPACED[1:], "# end"), ("a", "b")),
    "no header": (lines(*ROWS), ("x[0]", "x[1]")),
    "no header, spaces": (lines(*SPACED), ("x[0]", "x[1]")),
    "comment that is no header": (lines("# three rows in here", *SPACED), ("x[0]", "x[1]")),
    "byte-order mark": ("\ufeff" + lines("a,b", *ROWS), ("a", "b")),
    "windows": (lines("a,b", *ROWS).replace("\n", "\r\n"), ("a", "b")),
    "quoted names": (lines('"a","m[0, 1]"', *ROWS), ("a", "m[0, 1]")),
    "index of pandas": (
        lines(",a,b", *(f"{i},{row}" for i, row in enumerate(ROWS))), ("a", "b")
    ),
    "index with a name": (
        lines("index,a,b", *(f"{i},{row}" for i, row in enumerate(ROWS))), ("a", "b")
    ),
    "index of R": (lines("a b", *(f'"{i}" {row}' for i, row in enumerate(SPACED, 1))), ("a", "b")),
    "text beside": (lines("a,star,b", *(r.replace(",", ",M31,") for r in ROWS)), ("a", "b")),
    "constant beside": (lines("a,k,b", *(r.replace(",", ",3,") for r in ROWS)), ("a", "b")),
    "Fortran": (lines("a b", *(row.replace("5", "5D+00", 1) for row in SPACED)), ("a", "b")),
    "sampler's columns": (
        lines("lp__,a,b,iteration,chi2_CMB,log_likelihood,accept_stat__,Draw",
              *(f"{i}.5,{row},{i},{i}.5,-{i},0.{i},{i}" for i, row in enumerate(ROWS))),
        ("a", "b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_make(name, tmp_path):
    text, names = TABLES[name]
    file = tmp_path / "table.txt"
    file.write_bytes(text.encode())
    chain = pyro_stad.read_chain(file)
    assert chain.names == names
    assert chain.values.tolist() == PLAIN


def test_utf16_and_gzip(tmp_path):
    import gzip

    text = lines("a,b", *ROWS)
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16"))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(text.encode()))
    for file in tmp_path.iterdir():
        assert pyro_stad.read_chain(file).values.tolist() == PLAIN


@pytest.mark.parametrize("header", ["x", "H0", "rate", "my parameter", "inf_rate"])
def test_a_single_column(header, tmp_path):
    (tmp_path / "one.csv").write_text(lines(header, "1.5", "2.5"))
    chain = pyro_stad.read_chain(tmp_path / "one.csv")
    assert chain.names == (header,)
    assert chain.values.tolist() == [[1.5], [2.5]]


def test_chains_are_counted_from_their_column(tmp_path):
    (tmp_path / "t.csv").write_text(lines("chain,a", "2,1.0", "2,2.0", "5,3.0", "5,4.0"))
    chain = pyro_stad.read_chain(tmp_path / "t.csv", burn_in=1)
    assert chain.chains.tolist() == [0, 1]
    assert chain.values.tolist() == [[2.0], [4.0]]
    assert chain.burn_in == 2


E3 = f"{math.exp(-3.0):.17g}"
# Header, options, and the weights of the rows 1, 2, 3 that must come back, largest one.
WEIGHTS = {
    "weights": ("a,weights", ["1", "2", "4"], {}, [0.25, 0.5, 1.0]),
    "weight, named": ("weight,a", ["1", "2", "4"], {"weights": "weight"}, [0.25, 0.5, 1.0]),
    "weight beside logl": ("a,weight,logl", ["1", "2", "4"], {}, [0.25, 0.5, 1.0]),
    "named": ("a,mass", ["1", "2", "4"], {"weights": "mass"}, [0.25, 0.5, 1.0]),
    "log_weight": ("a,log_weight", ["-800", "-803", "-inf"], {}, [1.0, math.exp(-3.0), 0.0]),
    "named logarithms": (
        "a,u", ["800", "797", "800"], {"log_weights": "u"}, [1.0, math.exp(-3.0), 1.0]
    ),
    "none wanted": ("a,weights", ["1", "2", "4"], {"weights": False}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_tables(name, tmp_path):
    header, column, options, expected = WEIGHTS[name]
    cells = {"a": ["1.5", "2.5", "4.5"], "logl": ["-1", "-2", "-3"]}
    rows = (",".join(cells.get(key, column)[i] for key in header.split(",")) for i in range(3))
    (tmp_path / "t.csv").write_text(lines(header, *rows))
    chain = pyro_stad.read_chain(tmp_path / "t.csv", **options)
    assert chain.names == ("a",)
    if expected is None:
        assert chain.weights is None
    else:
        np.testing.assert_allclose(chain.weights / chain.weights.max(), expected, rtol=1e-14)


@pytest.mark.parametrize("table", ["height,weight\n1.8,80\n1.7,60.5", "weight,height\n80,2\n60,1"])
def test_a_weight_may_be_in_kilograms(table, tmp_path):
    (tmp_path / "t.csv").write_text(table + "\n")
    with pytest.raises(ValueError, match="may hold weights of the samples or a parameter"):
        pyro_stad.read_chain(tmp_path / "t.csv")
    assert pyro_stad.read_chain(tmp_path / "t.csv", weights="weight").names == ("height",)
    people = pyro_stad.read_chain(tmp_path / "t.csv", weights=False)
    assert set(people.names) == {"height", "weight"}
    assert pyro_stad.read_chain(tmp_path / "t.csv", var_names=people.names).weights is None


def test_names_are_for_files_without(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    chain = pyro_stad.read_chain(tmp_path / "x.npy", names=["p", "q", "r"])
    assert chain.names == ("p", "q", "r")
    with pytest.raises(ValueError, match="has 3 columns without names, and `names` are 2"):
        pyro_stad.read_chain(tmp_path / "x.npy", names=["p", "q"])
    (tmp_path / "t.csv").write_text(TABLES["comma"][0])
    assert pyro_stad.read_chain(tmp_path / "t.csv", names=["p", "q"]).names == ("a", "b")


LAYOUTS = {
    ("a", "b[0]", "b[1]"): (("a", ()), ("b", (2,))),
    ("m[0, 0]", "m[0, 1]", "m[1, 0]", "m[1, 1]"): (("m", (2, 2)),),
    ("v[x]", "v[y]", "w[x]"): (("v", (2,)), ("w", (1,))),
    # Not all elements, or not in their order: each is a variable of its own.
    ("m[0, 0]", "m[1, 1]"): (("m[0, 0]", ()), ("m[1, 1]", ())),
    ("m[0, 0]", "m[1, 0]", "m[0, 1]", "m[1, 1]"): tuple(
        (name, ()) for name in ("m[0, 0]", "m[1, 0]", "m[0, 1]", "m[1, 1]")
    ),
    ("b[0]", "a", "b[1]"): (("b[0]", ()), ("a", ()), ("b[1]", ())),
}


@pytest.mark.parametrize("names", LAYOUTS)
def test_elements_make_up_variables(names):
    assert Layout.of(names).variables == LAYOUTS[names]


def foreign_hdf5(folder):
    import h5py

    with h5py.File(folder / "f.h5", "w") as file:
        file.create_dataset("mcmc/chain", data=np.zeros((5, 4, 2)))
    return folder / "f.h5"


def unfilled_emcee(folder):
    pytest.importorskip("emcee").backends.HDFBackend(str(folder / "run.h5")).reset(4, 2)
    return folder / "run.h5"


def prior_only(folder):
    import xarray

    values = xarray.Dataset({"a": (("chain", "draw"), np.zeros((1, 9)))})
    values.to_netcdf(folder / "p.nc", group="prior", engine="h5netcdf")
    return folder / "p.nc"


def cut_short(write, count=1000):
    def make(folder):
        values = np.random.default_rng(0).normal(size=(400, 3))
        path = write(folder, values, np.ones(400))
        path.write_bytes(path.read_bytes()[:count])
        return path

    return make


def with_text(text, name="t.csv"):
    def make(folder):
        (folder / name).write_text(text)
        return folder / name

    return make


def pickled(name):
    def make(folder):
        (folder / name).write_bytes(pickle.dumps(np.zeros(3)))
        return folder / name

    return make


def object_array(folder):
    np.save(folder / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    return folder / "o.npy"


def without_chain(folder):
    (folder / "root.paramnames").write_text("a\n")
    return folder / "root"


def dead_points(folder):
    return files.write_polychord(folder, np.ones((4, 3)), np.ones(4)).with_name(
        "run_dead-birth.txt"
    )


def hot(folder):
    root = files.write_cobaya(folder, np.ones((4, 3)), np.ones(4))
    (folder / "root.updated.yaml").write_text(
        "params: {a: {prior: [0, 1]}}\nsampler: {mcmc: {temperature: 2}}\n"
    )
    return root


def dangerous_yaml(folder):
    root = files.write_cobaya(folder, np.ones((4, 3)), np.ones(4))
    (folder / "root.updated.yaml").write_text("params: !!python/object/apply:os.abort []\n")
    return root


REFUSED = {
    "nothing there": (lambda folder: folder / "none", "no such file"),
    "a folder": (lambda folder: folder, "is a folder"),
    "this folder": (lambda folder: Path("."), "is a folder"),
    "empty": (with_text(""), "is empty"),
    "blank": (with_text("\n \n"), "is empty"),
    "header alone": (with_text("a,b\n"), "has no rows"),
    "cut short": (with_text("a,b\n1,2\n3,4\n0.1"), "ends in a row of 1 where the others have 2"),
    "cut short, in white space": (with_text("1 2\n3 4\n5\n"), "was it cut short?"),
    "ragged": (with_text("a,b\n1,2\n3,4,5\n"), "is not a table"),
    "two names alike": (with_text("a,a\n1,2\n"), "several columns with the names"),
    "a word among numbers": (with_text("a\n1\nx\n"), "has 'x' in row 1 of 'a'"),
    "all words": (with_text("a,b\nx,y\nz,w\n"), "has no samples"),
    "sampler's columns alone": (with_text("lp__\n1\n2\n"), "has no parameters; left out lp__"),
    "bytes": (lambda folder: _bytes(folder / "b.bin"), "no chain that can be read; known are"),
    "pickle": (pickled("results.pkl"), "is a pickle, which is never loaded"),
    "pickle by another name": (pickled("results.csv"), "is a pickle, which is never loaded"),
    "objects in npy": (object_array, "allow_pickle=False"),
    "ragged arrays": (
        lambda f: np.savez(f / "x.npz", a=np.zeros(3), b=np.zeros(4)) or f / "x.npz",
        "different numbers of rows",
    ),
    "single values": (lambda f: np.savez(f / "x.npz", a=1.0) or f / "x.npz", "has no samples"),
    "three dimensions": (
        lambda f: np.save(f / "x.npy", np.zeros((2, 3, 4))) or f / "x.npy", "draws of all chains"
    ),
    "foreign HDF5": (foreign_hdf5, "holds no posterior"),
    "no step yet": (unfilled_emcee, "holds no step yet"),
    "no posterior": (prior_only, "holds no posterior"),
    "cut netCDF": (cut_short(files.write_netcdf), "can't be read"),
    "cut parquet": (cut_short(files.write_parquet), "can't be read"),
    "cut npz": (cut_short(files.write_npz), "can't be read"),
    "cut JSON": (cut_short(files.write_bilby), "can't be read"),
    "other JSON": (with_text("[1, 2]", "x.json"), "holds no posterior"),
    "no chain of a root": (without_chain, "there is none"),
    "dead points": (dead_points, "are no posterior"),
    "a hot chain": (hot, "temperature 2"),
    "yaml with code": (dangerous_yaml, "can't be read"),
    "Stan without draws": (with_text("# method = sample\nlp__,a\n"), "did the run end"),
    "Stan, optimum": (with_text("# method = optimize\nlp__,a\n0,1\n"), "draws no posterior"),
}  # fmt: skip


def _bytes(path):
    path.write_bytes(bytes(range(256)))
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_chain_is_refused_in_one_line(name, tmp_path):
    make, message = REFUSED[name]
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        pyro_stad.read_chain(path)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert path.name in text


OPTIONS = {
    "no such column": ({"var_names": ["q"]}, ValueError, "has no column 'q'; its parameters are"),
    "a string": ({"var_names": "a"}, TypeError, "`var_names` must be a list of names"),
    "weights": ({"weights": "q"}, ValueError, "'q' are not among"),
    "both weights": ({"weights": "a", "log_weights": "b"}, ValueError, "exclude each other"),
    "negative burn-in": ({"burn_in": -1}, ValueError, "`burn_in` must be a fraction"),
    "broken burn-in": ({"burn_in": 1.5}, ValueError, "`burn_in` must be a fraction"),
    "burn-in of a bool": ({"burn_in": True}, ValueError, "`burn_in` must be a fraction"),
    "all burnt": ({"burn_in": 3}, ValueError, "leaves nothing of 3 rows"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_are_named(name, tmp_path):
    options, error, message = OPTIONS[name]
    (tmp_path / "t.csv").write_text(TABLES["comma"][0])
    with pytest.raises(error, match=message):
        pyro_stad.read_chain(tmp_path / "t.csv", **options)


def test_weights_of_a_chain_are_not_named_again(tmp_path):
    root = files.write_getdist(tmp_path, np.eye(3).repeat(2, 0), np.ones(6))
    with pytest.raises(ValueError, match="brings weights of its own"):
        pyro_stad.read_chain(root, weights="a")


def test_an_object_of_no_kind():
    with pytest.raises(TypeError, match="must be a path, a list of paths, or a result of"):
        pyro_stad.read_chain(3)


@pytest.mark.parametrize(
    ("module", "write"),
    [
        ("yaml", files.write_cobaya),
        ("h5py", files.write_netcdf),
        ("pyarrow.parquet", files.write_parquet),
        ("astropy.io.fits", files.write_fits),
        ("zarr", files.write_zarr),
    ],
)
def test_a_missing_package_is_named_with_its_extra(module, write, tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(400, 3))
    path = write(tmp_path, values, np.ones(400))
    # None in place of a module is how Python notes that there is none.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-stad\[chains\]'"):
        pyro_stad.read_chain(path)
