"""The command line: every command, every format, exit codes, and errors on one line."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch

import pyro_stad
from pyro_stad.cli.files import check_out, even_rows, write_table
from pyro_stad.cli.picture import most_different
from pyro_stad.cli.run import _run
from pyro_stad.data import Chain
from tests.data import chain_files as files
from tests.oracles import mixture_sample

NAMES = ["a", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples in several formats, and a prior fitted by the command line itself."""
    folder = tmp_path_factory.mktemp("cli")
    values = mixture_sample(300, 2).numpy()
    table = pandas.DataFrame(values, columns=NAMES)
    table.to_csv(folder / "samples.csv", index=False)
    table.assign(w=1.0).to_csv(folder / "weighted.csv", index=False)
    table.assign(lw=0.0).to_csv(folder / "log_weighted.csv", index=False)
    table.assign(weight=1.0).to_csv(folder / "ambiguous.csv", index=False)
    table.assign(lp__=1.0 + table["a"]).to_csv(folder / "sampler.csv")
    np.save(folder / "samples.npy", values)
    three = np.column_stack([values, values[:, 0] * values[:, 1]])
    files.write_flat_netcdf(folder, three)
    files.write_getdist(folder, three, np.ones(300))
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


FITS = {
    "samples.npy": ([], ["x[0]", "x[1]"]),
    "weighted.csv": (["--weights", "w"], NAMES),
    "log_weighted.csv": (["--log-weights", "lw"], NAMES),
    "ambiguous.csv": (["--no-weights", "--columns", "b", "--columns", "a"], ["b", "a"]),
    "sampler.csv": ([], NAMES),
    "flat.nc": (["--columns", "v[c],a"], ["v[c]", "a"]),
    "root": (["--burn-in", "10", "--columns", "a,c", "--dtype", "float64"], ["a", "c"]),
}


@pytest.mark.parametrize("name", FITS)
def test_fit_reads_chains(name, folder, capsys, tmp_path):
    out = tmp_path / "prior.safetensors"
    extra, names = FITS[name]
    code, text, err = call(
        capsys, "fit", folder / name, "--out", out, "--budget", "tiny", "--no-progress", "--json",
        *extra,
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(text)
    assert report["names"] == names
    prior = pyro_stad.load(out)
    # Ten rows of each of the two chains are burn-in.
    assert prior.report.rows == (280 if name == "root" else 300)
    assert report["burn_in"] == (20 if name == "root" else 0)
    assert prior.sample().dtype == (torch.float64 if name == "root" else torch.float32)
    if name == "sampler.csv":
        assert set(report["left_out"]) == {"lp__", "Unnamed: 0"}


def test_bounds_of_angles():
    from pyro_stad.cli.arguments import parse_bounds as _parse_bounds

    entries = ["a=periodic", "b=360", "c=0,", "d=-1,1"]
    expected = {"a": "periodic", "b": 360.0, "c": (0.0, None), "d": (-1.0, 1.0)}
    assert _parse_bounds(entries) == expected


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
    values = json.loads(text)["log_prob"]
    learned = pyro_stad.load(prior)
    draws = pyro_stad.read_chain(out, names=NAMES).values
    np.testing.assert_allclose(values, learned.log_prob(draws.float()), atol=1e-5)
    header, *lines = call(capsys, "log-prob", prior, out)[1].split()
    assert header == "log_prob"
    np.testing.assert_allclose([float(v) for v in lines], values, atol=1e-6)


def test_log_prob_as_a_table(folder, capsys, tmp_path):
    prior, points = folder / "prior.safetensors", tmp_path / "points.csv"
    # By name, whatever the order; the last point is outside the bounds.
    points.write_text("b,a\n0.1,0.2\n0.3,0.4\n0.0,-60\n")
    out = tmp_path / "densities.csv"
    arguments = ["log-prob", prior, points, "--error", "--tail"]
    assert call(capsys, *arguments, "--out", out)[0] == 0
    table = pandas.read_csv(out)
    assert list(table) == [
        "log_prob", "surrogate_error", "learning_error", "tail_probability", "density_level",
    ]  # fmt: skip
    learned = pyro_stad.load(prior)
    x = torch.tensor([[0.2, 0.1], [0.4, 0.3]], dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(table["log_prob"][:2], learned.log_prob(x), rtol=1e-5)
        tail = learned.tail_probability(x)
    np.testing.assert_allclose(table["tail_probability"][:2], tail, rtol=1e-5)
    assert table["log_prob"][2] == -float("inf")
    report = json.loads(call(capsys, *arguments, "--json")[1])
    assert report["log_prob"][2] is None
    assert call(capsys, *arguments)[1].startswith(
        "log_prob,surrogate_error,learning_error,tail_probability,density_level\n"
    )


def test_a_conditional_flow_is_asked_at_a_context(tmp_path, capsys):
    context = torch.randn(300, 1)
    flow = pyro_stad.fit(
        context + torch.randn(300, 2), context=context, context_names=["age"], budget="tiny",
        progress=False,
    )  # fmt: skip
    file, out = tmp_path / "flow.safetensors", tmp_path / "draws.csv"
    flow.save(file)
    code, text, _ = call(capsys, "sample", file, "--given", "age=0.5", "--out", out, "-n", 50)
    assert code == 0
    assert "wrote 50 draws" in text
    code, text, _ = call(capsys, "log-prob", file, out, "--given", "age=0.5", "--tail")
    assert code == 0
    lines = text.splitlines()
    assert lines[0] == "log_prob,tail_probability,density_level"
    points = torch.from_numpy(np.loadtxt(out, delimiter=",", skiprows=1)).float()
    known = flow(torch.tensor([0.5])).log_prob(points)
    found = torch.tensor([float(line.split(",")[0]) for line in lines[1:]])
    torch.testing.assert_close(found.to(known), known, rtol=0, atol=1e-4)
    one = tmp_path / "generator.safetensors"
    code, text, _ = call(capsys, "one-step", file, "--out", one, "--steps", 5, "--no-progress")
    assert code == 0
    code, text, _ = call(capsys, "sample", one, "--given", "age=0.5", "--out", out, "-n", 50)
    assert "wrote 50 draws" in text
    for arguments, message in (
        (("sample", one, "--out", out), "say --given age=..."),
        (("sample", file, "--out", out), "say --given age=..."),
        (("sample", file, "--given", "age=x", "--out", out), "must be name=number"),
        (("check", file, "--samples", out), "this command is for priors"),
    ):
        code, _, error = call(capsys, *arguments)
        assert code == 1
        assert message in error


def test_a_prior_becomes_a_generator(folder, capsys, tmp_path):
    out = tmp_path / "generator.safetensors"
    code, printed, _ = call(
        capsys, "one-step", folder / "prior.safetensors", "--out", out, "--steps", 20,
        "--no-progress", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(printed)["method"] == "regression"
    code, _, _ = call(capsys, "sample", out, "--out", tmp_path / "draws.csv", "-n", 7)
    assert code == 0
    draws = pandas.read_csv(tmp_path / "draws.csv")
    assert list(draws.columns) == NAMES
    assert len(draws) == 7
    code, _, error = call(capsys, "log-prob", out, folder / "samples.csv")
    assert code == 1
    assert "generator of one step, which has no density" in error
    code, _, error = call(capsys, "one-step", out, "--out", tmp_path / "again.safetensors")
    assert code == 1
    assert "generator of one step, which has no density" in error


def test_check(folder, capsys):
    picture = folder / "check.png"
    arguments = ["check", folder / "prior.safetensors", "--samples", folder / "samples.csv"]
    code, text, _ = call(capsys, *arguments, "--json", "--figure", picture)
    assert code == 0
    audit = json.loads(text)
    assert audit["points"] == 300
    assert len(audit["stein"]) == 9
    assert audit["goodness"]["rows"] == 300
    assert audit["goodness"]["over_mixture"] is None
    assert picture.read_bytes()[:4] == b"\x89PNG"
    text = call(capsys, *arguments, "--most", 50)[1]
    assert "normaliser" in text
    assert "fit: held-out log-density" in text
    assert "WARNING" not in text


def test_check_finds_out_a_wrong_prior(folder, capsys, tmp_path):
    """Samples of another law: a ring, far outside of which the prior has most of its draws."""
    angle = 2 * torch.pi * torch.rand(500)
    table = pandas.DataFrame(torch.stack([angle.cos(), angle.sin()], 1).numpy(), columns=NAMES)
    table.to_csv(tmp_path / "ring.csv", index=False)
    arguments = ["check", folder / "prior.safetensors", "--samples", tmp_path / "ring.csv"]
    text = call(capsys, *arguments)[1]
    assert "can be told apart" in text
    assert "WARNING: draws of the prior can be told from held-out samples" in text


def test_a_picture_of_many_columns_begins_with_the_worst():
    first, second = torch.randn(400, 9), torch.randn(300, 9)
    second[:, 7] += 1.0
    second[:, 2] *= 4.0
    chosen = most_different(first, second)
    assert set(chosen[:2]) == {7, 2}
    assert len(chosen) == 6
    assert most_different(first[:, :4], second[:, :4]) == [0, 1, 2, 3]


def test_even_rows_follow_the_weights():
    values = torch.arange(100.0, dtype=torch.float64)[:, None]
    assert torch.equal(even_rows(Chain(values, ("a",)), 1000), values)
    assert even_rows(Chain(values, ("a",)), 10)[:, 0].tolist() == [*range(4, 100, 10)]
    # A quarter of the weight on the first row and the rest on the last.
    weights = torch.zeros(100, dtype=torch.float64)
    weights[0], weights[-1] = 1e200, 3e200
    assert even_rows(Chain(values, ("a",), weights), 8)[:, 0].tolist() == [0.0] * 2 + [99.0] * 6


PRIOR = "prior.safetensors"
BAD = {
    "no file": (["fit", "none.csv", "--out", "p"], 1, "no such file: none.csv"),
    "no folder": (["fit", "samples.csv", "--out", "no/where/p"], 1, "no such folder"),
    "no chain": (["fit", PRIOR, "--out", "p"], 1, "is no chain but a safetensors file"),
    "empty": (["fit", "empty.csv", "--out", "p"], 1, "empty.csv is empty"),
    "a picture": (["fit", "picture.png", "--out", "p"], 1, "known are"),
    "broken HDF5": (["fit", "broken.h5", "--out", "p"], 1, "can't be read"),
    "no out": (["fit", "samples.csv"], 2, "Missing option '--out'"),
    "out is the samples": (["fit", "samples.csv", "--out", "samples.csv"], 1, "would be lost"),
    "out is one of the chains": (["fit", "root", "--out", "root_2.txt"], 1, "would be lost"),
    "out is a side file": (["fit", "root", "--out", "root.ranges"], 1, "would be lost"),
    "out is a folder": (["fit", "samples.csv", "--out", "folder"], 1, "folder is a folder"),
    "out is a device": (["fit", "samples.csv", "--out", "/dev/null"], 1, "is a device"),
    "out is a link": (["fit", "samples.csv", "--out", "link"], 1, "is a symbolic link"),
    "out is too long": (["fit", "samples.csv", "--out", "p" * 300], 1, "File name too long"),
    "option": (["fit", "samples.csv", "--out", "p", "--nonsense"], 2, "No such option"),
    "command": (["nonsense"], 2, "No such command"),
    "bounds": (["fit", "samples.csv", "--out", "p", "--bounds", "a=x"], 2, "must be NAME=LOW,HIGH"),
    "period": (
        ["fit", "samples.csv", "--out", "p", "--bounds", "a=0,,periodic"], 2, "NAME=LOW,HIGH"
    ),
    "bounds name": (
        ["fit", "samples.csv", "--out", "p", "--bounds", "q=0,1"], 1, "no parameter 'q'"
    ),
    "path": (["fit", "samples.csv", "--out", "p", "--path", "cubic"], 1, "`path` must be one of"),
    "dtype": (["fit", "samples.csv", "--out", "p", "--dtype", "half"], 2, "'--dtype'"),
    "weights": (["fit", "samples.csv", "--out", "p", "--weights", "q"], 1, "'q' are not among"),
    "weights of netCDF": (
        ["fit", "flat.nc", "--out", "p", "--weights", "q"], 1, "among ['a', 'v[b]', 'v[c]']"
    ),
    "weights twice": (
        ["fit", "samples.csv", "--out", "p", "--weights", "a", "--no-weights"], 2, "excludes"
    ),
    "weight of what": (["fit", "ambiguous.csv", "--out", "p"], 1, "say which"),
    "columns": (["fit", "samples.csv", "--out", "p", "--columns", "q"], 1, "no column 'q'"),
    "burn-in": (["fit", "samples.csv", "--out", "p", "--burn-in", "1.5"], 1, "`burn_in` must be"),
    "all burnt": (["fit", "samples.csv", "--out", "p", "--burn-in", "300"], 1, "leaves nothing"),
    "not a prior": (["log-prob", "samples.npy", "samples.csv"], 1, "not a checkpoint"),
    "lacks columns": (["log-prob", PRIOR, "other.csv"], 1, "other.csv has no column 'a'"),
    "wrong width": (["log-prob", PRIOR, "wide.npy"], 1, "has 3 columns without names"),
    "count": (["sample", PRIOR, "--out", "d.csv", "-n", "0"], 2, "'-n'"),
    "seed": (["sample", PRIOR, "--out", "d.csv", "--seed", "-1"], 2, "'--seed'"),
    "draws ending": (["sample", PRIOR, "--out", "d.txt"], 1, "expected .csv or .npy"),
    "draws into a folder": (["sample", PRIOR, "--out", "folder.csv"], 1, "is a folder"),
    "densities over points": (
        ["log-prob", PRIOR, "samples.csv", "--out", "samples.csv"], 1, "would be lost"
    ),
    "too few to check": (["check", PRIOR, "--samples", "one.npy"], 1, "at least two samples"),
    "picture over samples": (
        ["check", PRIOR, "--samples", "samples.csv", "--figure", "samples.csv"], 1, "would be lost"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_line_with_the_right_code(name, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    pandas.DataFrame({"c": [1.0], "d": [2.0]}).to_csv("other.csv", index=False)
    np.save("wide.npy", np.ones((2, 3)))
    np.save("one.npy", np.ones((1, 2)))
    for name_of in ("folder", "folder.csv"):
        os.makedirs(name_of, exist_ok=True)
    contents = {
        "empty.csv": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n\0",
        "broken.h5": b"\x89HDF\r\n\x1a\n\0",
    }
    for path, content in contents.items():
        (folder / path).write_bytes(content)
    if not os.path.islink("link"):
        os.symlink("nowhere", "link")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    arguments, expected, message = BAD[name]
    code, out, err = call(capsys, *arguments)
    assert message in err
    assert code == expected
    assert err.count("\n") == 1
    assert err.startswith("pyro-stad: ")
    assert out == ""
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", [n for n in BAD if n.startswith("out is")])
def test_a_bad_out_is_refused_before_training(name, folder, capsys, monkeypatch):
    def train(*arguments, **options):
        raise AssertionError("trained")

    monkeypatch.setattr("pyro_stad.cli.main.fit_prior", train)
    test_errors_are_one_line_with_the_right_code(name, folder, capsys, monkeypatch)


@pytest.mark.parametrize("command", ["log-prob", "check"])
def test_files_behind_a_root_are_not_written_over(command, folder, tmp_path, capsys):
    for number in (1, 2):
        rows = "".join(f"{i},{i / 7}\n" for i in range(50))
        (tmp_path / f"st_{number}.csv").write_text(f"# method = sample\na,b\n{rows}")
    before, root = (tmp_path / "st_1.csv").read_bytes(), tmp_path / "st"
    points = [root, "--out"] if command == "log-prob" else ["--samples", root, "--figure"]
    code, _, err = call(capsys, command, folder / PRIOR, *points, tmp_path / "st_1.csv")
    assert code == 1
    assert "would be lost" in err
    assert (tmp_path / "st_1.csv").read_bytes() == before


@pytest.mark.parametrize("ending", ["csv", "npy"])
def test_a_full_disk_leaves_the_old_file(ending, tmp_path, monkeypatch):
    path = tmp_path / f"draws.{ending}"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_table(path, torch.zeros(5, 2), NAMES)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_trial_leaves_nothing_behind(tmp_path):
    check_out(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_command(capsys):
    code, text, _ = call(capsys, "--help")
    assert code == 0
    for command in ("fit", "sample", "log-prob", "check", "demo"):
        assert command in text


def test_version(capsys):
    code, text, _ = call(capsys, "--version")
    assert (code, text.split()) == (0, ["pyro-stad", pyro_stad.__version__])


def test_without_its_extra_one_line_says_what_to_install():
    script = "import sys; sys.modules['typer'] = None; import pyro_stad.__main__ as m; m.main()"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "pip install 'pyro-stad[cli]'" in ran.stderr
