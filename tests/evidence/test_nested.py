"""Nested sampling: known evidences, a spike that SMC does not find, a file to resume from."""

import sys

import pytest

from pyro_stad import log_evidence
from pyro_stad.testing.evidence import PROBLEMS

FEW = {"method": "nested", "particles": 100, "repeats": 2, "progress": False}


def test_a_known_evidence_and_a_run_that_resumes_from_its_file(tmp_path):
    pytest.importorskip("nautilus", reason="nested sampling needs nautilus")
    pytest.importorskip("h5py", reason="nautilus writes HDF5")
    make, size = PROBLEMS["normal, D = 2"]
    model, data, truth = make(size)
    first = log_evidence(model, *data, checkpoint=tmp_path / "run", **FEW)
    assert abs(first.log_z - truth) < 4 * first.log_z_err < 0.4
    assert first.ess > 1000
    assert first.draws["x"].shape[1:] == (2,)
    assert {file.name for file in tmp_path.iterdir()} == {"run.0.h5", "run.1.h5"}
    again = log_evidence(model, *data, checkpoint=tmp_path / "run", **FEW)
    assert again.log_z == first.log_z
    assert again.likelihood_calls == first.likelihood_calls


@pytest.mark.slow
def test_a_spike_in_one_dimension():
    pytest.importorskip("nautilus", reason="nested sampling needs nautilus")
    make, size = PROBLEMS["spike"]
    model, data, truth = make(size)
    result = log_evidence(model, *data, **{**FEW, "particles": 200})
    assert abs(result.log_z - truth) < 4 * result.log_z_err < 0.4


def test_without_nautilus_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "nautilus", None)
    make, size = PROBLEMS["proportion"]
    model, data, _ = make(size)
    with pytest.raises(ImportError, match=r"pip install 'pyro-stad\[evidence\]'"):
        log_evidence(model, *data, **FEW)
