"""Checkpoints: whole, or refused with a reason; nothing in them can run."""

import copy
import json
import os
import pickle
import struct
import time

import pytest
import torch
from safetensors.torch import save as save_tensors

import pyro_stad
from pyro_stad import CheckpointError
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.likelihood import Coarse, Constant, FlowODE, SteinPath


@pytest.fixture
def saved(tiny_prior, tmp_path):
    path = tmp_path / "prior.safetensors"
    tiny_prior.save(path)
    return path


def test_round_trip(tiny_prior, saved):
    loaded = pyro_stad.load(saved)
    value = tiny_prior.sample((9,))
    assert torch.equal(loaded.log_prob(value), tiny_prior.log_prob(value))
    assert loaded.names == tiny_prior.names
    assert loaded.bounds == tiny_prior.bounds
    assert loaded.report == tiny_prior.report
    assert loaded.calibration == tiny_prior.calibration
    assert loaded.likelihood.log_mass == tiny_prior.likelihood.log_mass
    assert repr(loaded) == repr(tiny_prior)
    assert loaded.layout == tiny_prior.layout


@pytest.mark.parametrize("path", ["vp", "edm", "cnf"])
def test_every_kind_of_field_round_trips(path, tmp_path):
    from tests.oracles import mixture_sample

    prior = pyro_stad.fit(mixture_sample(200, 2), path=path, budget="tiny", progress=False)
    prior.save(tmp_path / "prior.safetensors")
    value = torch.zeros(3, 2, dtype=torch.float32)
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert torch.equal(loaded.log_prob(value), prior.log_prob(value))
    assert loaded.log_prob(value).dtype == torch.float32


@pytest.mark.parametrize("divergence", ["Exact", "Hutchinson", "HutchPlusPlus", "XTrace"])
def test_every_divergence_round_trips(divergence, free_prior, tmp_path):
    kind = getattr(pyro_stad.divergence, divergence)
    flow = free_prior.likelihood
    prior = free_prior.with_likelihood(
        pyro_stad.likelihood.FlowODE(flow.field, kind(), flow.solver)
    )
    prior.save(tmp_path / "prior.safetensors")
    value = free_prior.sample((3,))
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert torch.equal(loaded.log_prob(value), prior.log_prob(value))


@pytest.mark.parametrize("curve", [Constant(), Coarse(steps=3)])
def test_every_curve_round_trips(curve, free_prior, tmp_path):
    flow = free_prior.likelihood
    path = SteinPath(flow.field, flow.divergence, flow.solver, curve, nodes=24)
    prior = free_prior.with_likelihood(path)
    prior.save(tmp_path / "prior.safetensors")
    value = free_prior.sample((3,))
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert loaded.likelihood.curve == curve
    assert torch.equal(loaded.log_prob(value), prior.log_prob(value))


def test_a_consistent_curve_keeps_both_heads(free_prior, tmp_path):
    """The flow's divergence and the one along the curve are two networks, and both come back."""
    flow = free_prior.likelihood
    trained = copy.deepcopy(flow.divergence)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    path = SteinPath(flow.field, flow.divergence, flow.solver, consistent=trained)
    prior, x = free_prior.with_likelihood(path), free_prior.sample((5,))
    prior.save(tmp_path / "prior.safetensors")
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert repr(loaded) == repr(prior)
    assert torch.equal(loaded.log_prob(x), prior.log_prob(x))
    plain = [
        p.with_likelihood(FlowODE(p.likelihood.field, p.likelihood.divergence, p.likelihood.solver))
        for p in (loaded, free_prior)
    ]
    assert torch.equal(plain[0].log_prob(x), plain[1].log_prob(x))
    assert not torch.equal(plain[0].log_prob(x), prior.log_prob(x))


def rewrite(path, change_tensors=None, change_document=None):
    """Write a checkpoint again, with a right checksum, after a change."""
    tensors, document = read_tensors(path)
    if change_tensors:
        change_tensors(tensors)
    if change_document:
        change_document(document)
    write_tensors(path, tensors, document)


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


def flip(path):
    payload = bytearray(path.read_bytes())
    payload[-3] ^= 1
    path.write_bytes(payload)


def link(path):
    target = path.with_name("real")
    path.rename(target)
    path.symlink_to(target)


def swap(path, payload):
    path.write_bytes(payload)


def as_folder(path):
    path.unlink()
    path.mkdir()


BROKEN = {
    "truncated": (lambda p: swap(p, p.read_bytes()[:-10]), "not a checkpoint"),
    "cut in the header": (lambda p: swap(p, p.read_bytes()[:100]), "truncated"),
    "empty": (lambda p: swap(p, b""), "truncated"),
    "appended": (lambda p: swap(p, p.read_bytes() + b"more"), "not a checkpoint"),
    "bit flipped": (flip, "damaged: its SHA-256"),
    "pickle": (lambda p: swap(p, pickle.dumps(Exploit())), "looks like a pickle"),
    "torch archive": (lambda p: torch.save({"a": torch.ones(2)}, p), "torch.save archive"),
    "text": (lambda p: swap(p, b"not a checkpoint at all, but a letter home"), "truncated"),
    "100 GB header": (lambda p: swap(p, struct.pack("<Q", 10**11) + b"{}"), "header claims"),
    "foreign safetensors": (lambda p: swap(p, save_tensors({"a": torch.ones(2)})), "not a check"),
    "symbolic link": (link, "is a symbolic link"),
    "folder": (as_folder, "is a folder"),
    "other format": (
        lambda p: rewrite(p, None, lambda d: d.update(format="else")), "not a prior of pyro_stad"
    ),
    "future version": (
        lambda p: rewrite(p, None, lambda d: d.update(version=99)), "format version 99"
    ),
    "missing tensor": (lambda p: rewrite(p, lambda t: t.pop("loc")), "loc"),
    "missing weight": (
        lambda p: rewrite(p, lambda t: t.pop("field.trunk.out.bias")), "missing tensors"
    ),
    "extra tensor": (
        lambda p: rewrite(p, lambda t: t.update(extra=torch.ones(1))), "unexpected ..extra"
    ),
    "nan weight": (
        lambda p: rewrite(p, lambda t: t["field.trunk.out.bias"].fill_(float("nan"))),
        "not finite",
    ),
    "wrong shape": (
        lambda p: rewrite(p, lambda t: t.update(loc=torch.zeros(7))), r"loc is .*\(7,\)"
    ),
    "wrong dtype": (
        lambda p: rewrite(p, lambda t: t.update(scale_tril=t["scale_tril"].half())), "float16"
    ),
    "unknown path": (
        lambda p: rewrite(p, None, lambda d: d["field"]["path"].update(name="cubic")), "cubic"
    ),
    "missing key": (lambda p: rewrite(p, None, lambda d: d.pop("solver")), "solver"),
    "absurd width": (
        lambda p: rewrite(p, None, lambda d: d["field"].update(width=-1)), "does not describe"
    ),
    "document is a list": (
        lambda p: write_tensors(p, read_tensors(p)[0], [1, 2]), "not a prior"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_a_reason_and_at_once(name, saved, monkeypatch):
    """Silent failure 8."""
    breaks, message = BROKEN[name]
    monkeypatch.chdir(saved.parent)
    breaks(saved)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        pyro_stad.load(saved)
    assert time.monotonic() - started < 1
    assert not (saved.parent / "exploited").exists()


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        pyro_stad.load(tmp_path / "nothing")


def test_header_holds_plain_json(saved):
    payload = saved.read_bytes()
    length = int.from_bytes(payload[:8], "little")
    document = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["document"])
    assert document["names"] == ["scale", "shift", "slope"]
    assert document["bounds"][0] == ["0.0", "inf"]


def test_saved_file_is_an_ordinary_file(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~mask
