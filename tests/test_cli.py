"""The command line: every command, every format, exit codes, and errors on one line."""

import json

import arviz
import numpy as np
import pandas
import pytest

import pyro_stad
from pyro_stad.cli.main import _run
from tests.oracles import mixture_sample

NAMES = ["a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples in every format, and a prior fitted by the command line itself."""
    folder = tmp_path_factory.mktemp("cli")
    values = mixture_sample(300, 2).numpy()
    table = pandas.DataFrame(values, columns=NAMES)
    table.to_csv(folder / "samples.csv", index=False)
    table.assign(w=1.0).to_csv(folder / "weighted.csv", index=False)
    table.to_csv(folder / "semicolons.csv", index=False, sep=";")
    np.save(folder / "samples.npy", values)
    np.savez(folder / "samples.npz", a=values[:, 0], b=values[:, 1])
    posterior = {"a": values[None, :, 0], "b": values[None, :, 1]}
    arviz.from_dict(posterior=posterior).to_netcdf(str(folder / "samples.nc"))
    code = _run(
        ["fit", str(folder / "samples.csv"), "--out", str(folder / "prior.safetensors")]
        + ["--budget", "tiny", "--no-progress", "--bounds", "a=-50,", "--seed", "3"]
    )
    assert code == 0
    return folder


def call(capsys, *arguments):
    code = _run([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "name", ["samples.npy", "samples.npz", "samples.nc", "semicolons.csv", "weighted.csv"]
)
def test_fit_reads_every_format(name, folder, capsys, tmp_path):
    out = tmp_path / "prior.safetensors"
    extra = ["--weights", "w"] if name == "weighted.csv" else []
    code, text, _ = call(
        capsys, "fit", folder / name, "--out", out, "--budget", "tiny", "--no-progress", "--json",
        *extra,
    )  # fmt: skip
    assert code == 0
    report = json.loads(text)
    assert report["names"] == (["x[0]", "x[1]"] if name.endswith("npy") else NAMES)
    assert pyro_stad.load(out).report.rows == 300


def test_fit_kept_bounds_and_seed(folder):
    prior = pyro_stad.load(folder / "prior.safetensors")
    assert prior.bounds == ((-50.0, float("inf")), (-float("inf"), float("inf")))
    assert prior.report.seed == 3


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_sample_and_log_prob(ending, folder, capsys):
    out = folder / f"draws.{ending}"
    prior = folder / "prior.safetensors"
    assert call(capsys, "sample", prior, "--out", out, "-n", 12)[0] == 0
    code, text, _ = call(capsys, "log-prob", prior, out, "--json")
    assert code == 0
    assert len(json.loads(text)) == 12
    lines = call(capsys, "log-prob", prior, out)[1].split()
    np.testing.assert_allclose([float(v) for v in lines], json.loads(text), atol=1e-6)


def test_check(folder, capsys):
    picture = folder / "check.png"
    arguments = ["check", folder / "prior.safetensors", "--samples", folder / "samples.nc"]
    code, text, _ = call(capsys, *arguments, "--json", "--figure", picture)
    assert code == 0
    audit = json.loads(text)
    assert audit["points"] == 300
    assert len(audit["stein"]) == 9
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "normaliser" in call(capsys, *arguments, "--most", 50)[1]


BAD = {
    "no file": (["fit", "none.csv", "--out", "p"], 1, "no such file: none.csv"),
    "no folder": (["fit", "samples.csv", "--out", "no/where/p"], 1, "no such folder"),
    "ending": (["fit", "prior.safetensors", "--out", "p"], 1, "expected .csv, .npy, .npz or .nc"),
    "no out": (["fit", "samples.csv"], 2, "Missing option '--out'"),
    "option": (["fit", "samples.csv", "--out", "p", "--nonsense"], 2, "No such option"),
    "command": (["nonsense"], 2, "No such command"),
    "bounds": (["fit", "samples.csv", "--out", "p", "--bounds", "a=x"], 2, "must be NAME=LOW,HIGH"),
    "bounds name": (
        ["fit", "samples.csv", "--out", "p", "--bounds", "q=0,1"],
        1,
        "no parameter 'q'",
    ),
    "path": (["fit", "samples.csv", "--out", "p", "--path", "cubic"], 1, "`path` must be one of"),
    "weights": (["fit", "samples.csv", "--out", "p", "--weights", "q"], 2, "'q' is not among"),
    "not a prior": (["log-prob", "samples.npy", "samples.csv"], 1, "not a checkpoint"),
    "lacks columns": (
        ["log-prob", "prior.safetensors", "other.csv"],
        1,
        "lacks the columns ['a', 'b']",
    ),
    "wrong width": (["log-prob", "prior.safetensors", "wide.npy"], 1, "shape (..., 2)"),
    "count": (
        ["sample", "prior.safetensors", "--out", "d.csv", "-n", "0"],
        2,
        "Invalid value for '--count'",
    ),
    "draws ending": (["sample", "prior.safetensors", "--out", "d.txt"], 1, "expected .csv or .npy"),
    "too few to check": (
        ["check", "prior.safetensors", "--samples", "one.npy"],
        1,
        "at least two samples",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_line_with_the_right_code(name, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    pandas.DataFrame({"c": [1.0], "d": [2.0]}).to_csv("other.csv", index=False)
    np.save("wide.npy", np.ones((2, 3)))
    np.save("one.npy", np.ones((1, 2)))
    arguments, expected, message = BAD[name]
    code, out, err = call(capsys, *arguments)
    assert code == expected
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("pyro-stad: ")
    assert out == ""


def test_help_names_every_command(capsys):
    code, text, _ = call(capsys, "--help")
    assert code == 0
    for command in ("fit", "sample", "log-prob", "check", "demo"):
        assert command in text
