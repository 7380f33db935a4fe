"""Every example and, among the slow tests, every benchmark runs, with tiny arguments."""

import json
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "quickstart": ["--budget", "tiny", "--draws", "6"],
    "prior_from_csv": ["--budget", "tiny"],
    "digits": ["--budget", "tiny", "--classes", "0", "1", "--images", "3", "--particles", "100"],
    "two_experiments": ["--budget", "tiny", "--simulations", "600", "--draws", "150"],
    "bounds_and_plates": ["--budget", "tiny", "--objects", "3", "--draws", "6"],
    "cluster": ["--budget", "tiny", "--objects", "20", "--part", "10"],
}
sys.path.insert(0, str(ROOT / "benchmarks"))
runner = import_module("run")
sys.path.pop(0)
BENCHMARKS = {
    f"{script.stem} {index}": (script, arguments)
    for script in runner.scripts()
    for index, arguments in enumerate(runner.runs_of(script, "smoke"))
}


def run(script, arguments, **options):
    command = [sys.executable, str(script), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, **options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    assert run(ROOT / "examples" / f"{name}.py", EXAMPLES[name], cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark(name):
    """Under a name that git ignores, so that results of record stay as they are."""
    script, arguments = BENCHMARKS[name]
    file = ROOT / "benchmarks" / "results" / f"smoke_{script.stem}.json"
    try:
        run(script, [*shlex.split(arguments), "--name", f"smoke_{script.stem}"], cwd=ROOT)
        assert json.loads(file.read_text())["rows"]
    finally:
        file.unlink(missing_ok=True)


def test_demo_writes_its_summary_and_its_figure(tmp_path):
    """Two chains of each route in two processes, tiny; the full size is `make demo`."""
    pytest.importorskip("sklearn")
    arguments = ["--out", str(tmp_path), "--budget", "tiny", "--regression-budget", "tiny"]
    arguments += ["--draws", "1000", "--samples", "8", "--warmup", "6", "--particles", "100"]
    printed = run(ROOT / "examples" / "sequential_updating.py", arguments)
    summary = json.loads((tmp_path / "summary.json").read_text())
    kinetics, regression = summary["kinetics"], summary["regression"]
    assert kinetics["parameters"] == ["V", "K", "sigma"]
    assert len(regression["parameters"]) == 12
    chained = {
        "learned prior, x-space": (kinetics, regression),
        "learned prior, auxiliary form": (kinetics,),
        "multivariate normal": (regression,),
    }
    for name, parts in chained.items():
        for part in parts:
            assert {"r_hat", "ess_bulk", "divergences"} <= set(part["answers"][name])
    for part in (kinetics, regression):
        assert {"truth", "fit", "calibration", "seconds"} <= set(part)
        assert {"log_z", "log_z_err", "truth"} <= set(part["evidence"])
        for name, answer in part["answers"].items():
            assert {"mean_error", "sd_error", "worst_mean_error"} <= set(answer)
            assert name in printed
    assert {"multivariate normal", "log-normal"} <= set(kinetics["evidence"]["normal fits"])
    assert set(kinetics["comparison"]) == {"michaelis_menten", "hill"}
    assert summary["says"]["regression"] in printed
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
