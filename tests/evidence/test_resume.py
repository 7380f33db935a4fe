"""A killed run goes on to the same answer; a file of another run is refused."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_stad import CheckpointError, log_evidence
from pyro_stad.evidence import SMC, Bridge
from pyro_stad.samplers import CrankNicolson, tempering
from pyro_stad.testing.evidence import PROBLEMS

QUIET = {"progress": False, "particles": 200}


def problem(size=10):
    model, data, _ = PROBLEMS["normal, D = 2"][0](size)
    return model, data


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["smc", "importance"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_stopped_after_a_few_temperatures_ends_the_same(method, after, tmp_path, monkeypatch):
    model, data = problem()
    whole = log_evidence(model, *data, method=method, **QUIET)
    file, written = tmp_path / "run.safetensors", []
    original = tempering.store

    def store(path, runs):
        original(path, runs)
        written.append(runs.beta.item())
        if len(written) == after:
            raise Killed

    monkeypatch.setattr(tempering, "store", store)
    with pytest.raises(Killed):
        log_evidence(model, *data, method=method, checkpoint=file, **QUIET)
    assert 0 < written[-1] < 1
    found = log_evidence(model, *data, method=method, checkpoint=file, **QUIET)
    assert found.log_z == whole.log_z
    assert found.repeats == whole.repeats
    assert found.likelihood_calls == whole.likelihood_calls
    assert torch.equal(found.draws["x"], whole.draws["x"])
    # And a run that has arrived is read, not repeated.
    before = len(written)
    again = log_evidence(model, *data, method=method, checkpoint=file, **QUIET)
    assert again.log_z == whole.log_z
    assert len(written) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 300}, "has particles = 200, these runs have 300; delete the file"),
        ({"repeats": 3}, "has repeats = 4"),
        ({"seed": 1}, "has seed = "),
    ],
)
def test_other_settings_are_refused(options, message, tmp_path):
    model, data = problem()
    file = tmp_path / "run.safetensors"
    log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)
    with pytest.raises(CheckpointError, match=message):
        log_evidence(model, *data, method="smc", checkpoint=file, **{**QUIET, **options})


def test_other_data_and_another_model_are_refused(tmp_path):
    model, data = problem()
    file = tmp_path / "run.safetensors"
    log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)
    with pytest.raises(CheckpointError, match="has data = "):
        log_evidence(model, 2 * data[0], method="smc", checkpoint=file, **QUIET)

    def wider(y):
        import pyro
        import pyro.distributions as dist

        x = pyro.sample("x", dist.Normal(torch.zeros(10), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    with pytest.raises(CheckpointError, match="is of another model"):
        log_evidence(wider, *data, method="smc", checkpoint=file, **QUIET)


def test_a_damaged_file_is_refused(tmp_path):
    model, data = problem()
    file = tmp_path / "run.safetensors"
    log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="run.safetensors"):
        log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)


def _run_until_killed(file):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    model, data = problem(30)
    log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)


@pytest.mark.slow
def test_twenty_kills_at_random_times_end_with_the_same_answer(tmp_path):
    model, data = problem(30)
    started = time.monotonic()
    whole = log_evidence(model, *data, method="smc", **QUIET)
    duration = time.monotonic() - started
    context = multiprocessing.get_context("fork")
    times = torch.rand(20, generator=torch.Generator().manual_seed(0))
    interrupted = 0
    for trial, share in enumerate(times.tolist()):
        file = tmp_path / f"{trial}.safetensors"
        process = context.Process(target=_run_until_killed, args=(file,))
        process.start()
        # Within the run, on a fast machine and on a slow one.
        time.sleep(share * duration)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            interrupted += 1
        process.join()
        found = log_evidence(model, *data, method="smc", checkpoint=file, **QUIET)
        assert found.log_z == whole.log_z
        assert torch.equal(found.draws["x"], whole.draws["x"])
    assert interrupted > 10


def test_runs_of_another_kernel_are_refused(tmp_path):
    @dataclass(frozen=True)
    class Other(CrankNicolson):
        pass

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(()))

    file, options = tmp_path / "runs", {"progress": False, "checkpoint": tmp_path / "runs"}
    log_evidence(model, method=SMC(200, 2), **options)
    assert file.exists()
    with pytest.raises(CheckpointError, match="kernel"):
        log_evidence(model, method=SMC(200, 2, kernel=Other()), **options)
    # One's own is gone on with, also by what the evidence is held against.
    file.unlink()
    found = [log_evidence(model, method=SMC(200, 2, kernel=Other()), **options) for _ in range(2)]
    assert found[0].log_z == found[1].log_z
    assert "importance" in found[1].checks


def test_a_method_has_its_own_options():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.ones(()))

    named = log_evidence(model, method="smc", particles=300, repeats=2, progress=False)
    made = log_evidence(model, method=SMC(300, 2), progress=False)
    assert (made.log_z, made.repeats) == (named.log_z, named.repeats)
    draws = {"x": torch.randn(200)}
    assert "draws" not in repr(Bridge(draws))
    with pytest.raises(ValueError, match="`draws` are to be given to the method, Bridge"):
        log_evidence(model, method=Bridge(), draws=draws, progress=False)
