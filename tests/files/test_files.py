"""Checkpoints: whole, or refused with a reason; nothing in them can run."""

import copy
import json
import math
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save as save_tensors

import pyro_stad
from pyro_stad import CheckpointError
from pyro_stad._files import read_tensors, write_tensors
from pyro_stad.divergence import SeparateNetwork, Stein
from pyro_stad.fields import Gate
from pyro_stad.likelihood import (
    Coarse,
    Constant,
    Correction,
    DistilledDensity,
    FlowODE,
    SteinPath,
)


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


def distilled(prior, width=8, depth=2):
    """Return the prior with another way to its density."""
    flow, size = prior.likelihood, len(prior.names)
    correction = Correction(size, width, depth)
    torch.nn.init.normal_(correction.out.weight)
    parts = flow.field, flow.divergence, flow.solver
    return prior.with_likelihood(DistilledDensity(*parts, correction.double(), Gate(2.5, 4.0)))


@pytest.mark.parametrize(("width", "depth"), [(4, 1), (8, 3)])
def test_a_distilled_density_round_trips(width, depth, free_prior, tmp_path):
    prior, value = distilled(free_prior, width, depth), 2 * free_prior.sample((30,))
    prior.save(tmp_path / "prior.safetensors")
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert repr(loaded) == repr(prior)
    assert loaded.likelihood.gate == Gate(2.5, 4.0)
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


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


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
        lambda p: rewrite(p, None, lambda d: d["field"].update(width=-1)),
        "`width` must be an integer of at least 1; got -1"
    ),
    "half precision": (lambda p: rewrite(p, lambda t: t.update(loc=t["loc"].half())), "float16"),
    "pipe": (as_pipe, "device or a pipe"),
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


def put(place, value):
    """Return a change of a description: ``value`` at a dotted ``place``; a number is an index."""

    def change(document):
        *parts, last = (int(p) if p.isdecimal() else p for p in place.split("."))
        for part in parts:
            document = document[part]
        document[last] = value

    return change


# What a forger may put where, and what of the refusal names it. The mark is right every time.
FORGED = [
    ("solver.steps", 10**9, "`steps` must be an integer of at most"),
    ("solver.steps", 0, "`steps`"),
    ("solver.steps", "16", "`steps` must be an integer .* got '16'"),
    ("solver.steps", True, "`steps` must be an integer .* got True"),
    ("solver.steps", 1.5, "`steps`"),
    ("solver", {"name": "dopri5", "max_steps": 10**12}, "`max_steps`"),
    ("solver", {"name": "dopri5", "rtol": math.inf}, "`rtol` must be a positive number"),
    ("solver", {"name": "dopri5", "atol": "small"}, "`atol`"),
    ("solver", {"name": "rk4", "order": 4}, "order"),
    ("solver", "euler", "`solver` must be one of"),
    ("solver", [], "does not describe"),
    ("chunk_size", 10**18, "`chunk_size` must be an integer of at most"),
    ("chunk_size", 1, "`chunk_size`"),
    ("chunk_size", "8192", "`chunk_size`"),
    ("log_mass", math.nan, "`log_mass` must be finite"),
    ("log_mass", math.inf, "`log_mass` must be finite"),
    ("log_mass", True, "`log_mass` must be of type float; got True"),
    ("log_mass", None, "`log_mass`"),
    ("log_mass", 10**400, "does not describe"),
    ("field.width", 10**9, "`width` 1000000000 and `depth` 2 do not fit the tensors"),
    ("field.width", 8, "do not fit"),
    ("field.width", "16", "`width`"),
    ("field.depth", 10**5, "`depth` must be an integer of at most"),
    ("field.depth", 3, "do not fit"),
    ("field.depth", None, "`depth`"),
    ("field.name", "free", "`field` must be one of .*; got 'free'"),
    ("field.path.t_min", math.nan, "`t_min` of a path must be a number from 0 on"),
    ("field.path.t_min", "0.0099", "`t_min`"),
    ("field.path.t_min", 2.0, "`path` must lead from data to noise"),
    ("field.path.t_max", -1.0, "`t_max`"),
    ("field.path", {"name": "ve", "sigma_min": 0.0}, "`path` must lead"),
    ("field.path", {"name": "edm", "rho": 0.0}, "`path` must lead"),
    ("field.path", {"name": "vp", "beta_max": True}, "`beta_max`"),
    ("divergence", {"name": "exact-ish"}, "`divergence` must be one of .*; got 'exact-ish'"),
    ("divergence", {"name": "hutchinson", "num_probes": 10**9}, "`num_probes`"),
    ("divergence", {"name": "hutch++", "num_probes": "6"}, "`num_probes`"),
    ("divergence", {"name": "xtrace", "seed": "7"}, "`seed`"),
    ("divergence", {"name": "stein-separate", "width": 10**9, "depth": 2}, "does not describe"),
    ("divergence", None, "does not describe"),
    ("likelihood.name", "guess", "`likelihood` must be one of .*; got 'guess'"),
    ("likelihood", "stein-path", "does not describe"),
    ("names", ["scale", "scale", "slope"], "`names` must be different names"),
    ("names", [], "`names`"),
    ("names", "abc", "`names` must be of type tuple"),
    ("names", ["scale", "shift", 3], r"`names\[2\]` must be of type str"),
    ("variables", [["x", [10**9]]], "`variables`"),
    ("variables", [["x", [-3]]], "`variables`"),
    ("variables", [["x", [2]]], "`variables` must make up 3 coordinates"),
    ("variables", [["x", "3"]], "`variables`"),
    ("variables", [["x"]], "does not describe"),
    ("bounds", [["0.0", "inf"]], "`bounds` must be 3 pairs that increase"),
    ("bounds.0", ["nan", "inf"], "`bounds` must be 3 pairs that increase"),
    ("bounds.0", ["1.0", "0.0"], "`bounds`"),
    ("bounds.0", ["zero", "inf"], "does not describe"),
    ("bounds.0", [0.0], "does not describe"),
    ("bounds", {}, "`bounds`"),
    ("bounds", 7, "does not describe"),
    ("reference.effective", 1e9, "`effective` of a reference must"),
    ("reference.effective", "many", "`effective` must be of type float"),
    ("reference", None, r"unexpected \['reference'\]"),
    ("report.rows", -5, "`rows` must be an integer of at least 1; got -5"),
    ("report.rows", "600", "`report.rows` must be of type int; got '600'"),
    ("report.seed", None, "`report.seed`"),
    ("report.stages.0.skipped", -1, "`skipped`"),
    ("report.stages.0.seconds", "long", r"`report.stages\[0\].seconds` must be of type float"),
    ("report.stages.0", [], r"`report.stages\[0\]`"),
    ("report.stages", {}, "`report.stages` must be of type tuple"),
    ("report.versions", {"torch": 2}, "`report.versions.torch` must be of type str"),
    ("report", [], "`report`"),
    ("report", {"rows": 1}, "`report` must have"),
    ("calibration.tolerance", math.nan, "`tolerance`"),
    ("calibration.tolerance", 0, "`tolerance`"),
    ("calibration.reference", "truth", "`reference` must be one of"),
    ("calibration.bound.level", 2.0, "`level` must lie in"),
    ("calibration.bound.scale", [], "`calibration.bound.scale`"),
    ("calibration.audit.points", -1, "`points` must be an integer of at least 1"),
    ("calibration.audit.points", 2.5, "`calibration.audit.points`"),
    ("calibration.audit.stein", [], "`stein` must hold"),
    ("calibration.audit.sd", "much", "`calibration.audit.sd`"),
    ("calibration.trials.0.sequential_calls", -3, "`sequential_calls`"),
    ("calibration", {}, "`calibration` must have"),
    ("calibration.surplus", 1, "`calibration` must have"),
]  # fmt: skip


# Of a prior along the constant curve, and of one with a distilled density.
FORGED_PATHS = [
    ("likelihood.nodes", 8 * 10**8, "`nodes` must be an integer of at most"),
    ("likelihood.nodes", 17, "`nodes` must be a positive multiple of 8"),
    ("likelihood.nodes", "16", "`nodes`"),
    ("likelihood.curve", {"name": "coarse", "steps": 10**9}, "`steps`"),
    ("likelihood.curve", {"name": "bent"}, "`curve` must be one of"),
    ("likelihood.consistent", 1, "does not describe"),
]
FORGED_DISTILLED = [
    ("likelihood.width", 10**9, "`width` 1000000000 and `depth` 2 do not fit correction.layers.0"),
    ("likelihood.width", 7, "`width` 7 and `depth` 2 do not fit"),
    ("likelihood.width", "8", "`width` must be an integer"),
    ("likelihood.depth", 10**9, "`depth` must be an integer of at most"),
    ("likelihood.depth", 0, "`depth`"),
    ("likelihood.depth", 1, "unexpected"),
    ("likelihood.depth", 3, "missing"),
    ("likelihood.gate.outer", 1.0, "a gate's radii must be positive, finite and increase"),
    ("likelihood.gate.inner", "1", "`gate.inner` must be of type float"),
    ("likelihood.gate", None, "`gate`"),
]


@pytest.fixture
def saved_path(tiny_prior, tmp_path):
    flow, path = tiny_prior.likelihood, tmp_path / "path.safetensors"
    way = SteinPath(flow.field, flow.divergence, flow.solver)
    tiny_prior.with_likelihood(way).save(path)
    return path


@pytest.fixture
def saved_distilled(tiny_prior, tmp_path):
    path = tmp_path / "distilled.safetensors"
    distilled(tiny_prior).save(path)
    return path


@pytest.mark.parametrize(("place", "value", "message"), FORGED)
def test_forged_descriptions_are_refused_by_name_and_at_once(place, value, message, saved):
    assert_refused_at_once(saved, place, value, message)


@pytest.mark.parametrize(("place", "value", "message"), FORGED_PATHS)
def test_forged_paths_are_refused(place, value, message, saved_path):
    assert_refused_at_once(saved_path, place, value, message)


@pytest.mark.parametrize(("place", "value", "message"), FORGED_DISTILLED)
def test_forged_distilled_densities_are_refused(place, value, message, saved_distilled):
    assert_refused_at_once(saved_distilled, place, value, message)


def test_a_correction_of_made_up_size_is_not_built(saved_distilled):
    """A wide last layer is a small tensor; the layers before it would take gigabytes."""
    wide = 200_000
    change = {"correction.out.weight": torch.zeros(1, wide)}
    rewrite(
        saved_distilled,
        lambda tensors: tensors.update(change),
        lambda document: document["likelihood"].update(width=wide),
    )
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="`width` 200000 and `depth` 2 do not fit"):
        pyro_stad.load(saved_distilled)
    assert time.monotonic() - started < 1


def assert_refused_at_once(saved, place, value, message):
    tensors, document = read_tensors(saved)
    put(place, value)(document)
    # As a forger writes it: with NaN and infinity, which Python's JSON reads.
    with pytest.MonkeyPatch.context() as patch:
        dumps = json.dumps
        patch.setattr(json, "dumps", lambda d, **options: dumps(d))
        write_tensors(saved, tensors, document)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        pyro_stad.load(saved)
    assert time.monotonic() - started < 1


def negative_diagonal(factor):
    factor[1, 1] *= -1


def filled_above(factor):
    factor[0, 2] = 0.1


def without_inverse(factor):
    factor[1, 1] = 1e-320


FACTORS = [
    (negative_diagonal, "`scale_tril` must have a positive diagonal"),
    (lambda factor: factor.zero_(), "`scale_tril` must have a positive diagonal"),
    (filled_above, "`scale_tril` must be lower triangular"),
    (without_inverse, "`scale_tril` and its inverse must be finite"),
]


@pytest.mark.parametrize(("spoil", "message"), FACTORS)
def test_what_is_no_cholesky_factor_is_refused(spoil, message, saved):
    rewrite(saved, lambda tensors: spoil(tensors["scale_tril"]))
    with pytest.raises(CheckpointError, match=message):
        pyro_stad.load(saved)


def test_a_network_of_made_up_size_is_not_built(saved):
    """Sizes that agree with one of the tensors only, at a price of gigabytes or of minutes."""

    def narrow_and_deep(document):
        document["field"].update(width=1, depth=32)

    rewrite(saved, None, narrow_and_deep)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="`depth`"):
        pyro_stad.load(saved)
    assert time.monotonic() - started < 1


def test_a_separate_network_round_trips(free_prior, tmp_path):
    flow, network = free_prior.likelihood, SeparateNetwork(2, 8, 3)
    torch.nn.init.normal_(network.trunk.out.weight)
    prior = free_prior.with_likelihood(FlowODE(flow.field, Stein(network), flow.solver))
    prior.save(tmp_path / "prior.safetensors")
    value = free_prior.sample((3,))
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert torch.equal(loaded.log_prob(value), prior.log_prob(value))


def test_deeply_nested_json_is_no_crash(saved):
    tensors, _ = read_tensors(saved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: "[" * 100_000)
        write_tensors(saved, tensors, {})
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        pyro_stad.load(saved)


def spoilt(prior, **found):
    """Return a copy of ``prior`` whose calibration found what it should not have."""
    new = prior.to(torch.float64)
    new.calibration = replace(
        new.calibration, audit=replace(new.calibration.audit, **found),
        bound=replace(new.calibration.bound, floor=math.nan),
    )  # fmt: skip
    return new


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_calibration_that_is_not_finite_is_kept_and_says_so(number, tiny_prior, tmp_path):
    prior = spoilt(tiny_prior, sd=number, normaliser=math.inf, log_normaliser=812.5)
    prior.save(tmp_path / "prior.safetensors")
    loaded = pyro_stad.load(tmp_path / "prior.safetensors")
    assert repr(loaded.calibration) == repr(prior.calibration)
    for either in (prior, loaded):
        assert "normaliser: exp(812.5)" in either.summary()
        assert "WARNING: the calibration is not finite" in either.summary()
    assert "WARNING" not in tiny_prior.summary()
    value = prior.sample((3,))
    assert torch.equal(loaded.log_prob(value), prior.log_prob(value))
    assert torch.isinf(loaded.surrogate_error(value)).all()


def test_what_could_not_be_read_is_not_written(tiny_prior, saved):
    prior, before = tiny_prior.to(torch.float64), saved.read_bytes()
    prior.likelihood.field.trunk.out.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        prior.save(saved)
    assert saved.read_bytes() == before


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".tmp"))


def test_many_threads_save_to_one_path(tiny_prior, tmp_path):
    """At any time there is a whole file, and in the end no other."""
    path = tmp_path / "prior.safetensors"
    tiny_prior.save(path)
    with ThreadPoolExecutor(8) as pool:
        saves = [pool.submit(tiny_prior.save, path) for _ in range(40)]
        for _ in range(20):
            assert pyro_stad.load(path).names == tiny_prior.names
        for save in saves:
            save.result()
    assert os.listdir(tmp_path) == [path.name]


KILLED = """
import os, signal, sys, torch
from pyro_stad._files import write_tensors
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_tensors(sys.argv[1], {"a": torch.ones(3)}, {})
"""


def test_a_kill_leaves_the_old_file_and_what_is_left_goes_with_the_next_save(tiny_prior, saved):
    before, folder = saved.read_bytes(), saved.parent
    ended = subprocess.run([sys.executable, "-c", KILLED, str(saved)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert saved.read_bytes() == before
    assert len(leftovers(folder)) == 1
    # Somebody who is still writing is left alone.
    alive = leftovers(folder)[0].split(".")
    alive[-3] = str(os.getppid())
    (folder / ".".join(alive)).touch()
    tiny_prior.save(folder / "other.safetensors")
    assert leftovers(folder) == [".".join(alive)]


def test_an_older_file_passes_on_its_permissions(tiny_prior, saved):
    for mode in (0o600, 0o640):
        saved.chmod(mode)
        tiny_prior.save(saved)
        assert stat.S_IMODE(saved.stat().st_mode) == mode


def test_a_link_stays_one_and_its_target_is_written(tiny_prior, free_prior, saved):
    (saved.parent / "scratch").mkdir()
    target = saved.parent / "scratch" / "real"
    saved.rename(target)
    saved.symlink_to(target)
    free_prior.save(saved)
    assert saved.is_symlink()
    assert pyro_stad.load(target).names == free_prior.names
    assert os.listdir(target.parent) == ["real"]


def test_folders_devices_and_pipes_are_no_place_for_a_file(tiny_prior, tmp_path):
    # A pipe stands for a device: to try it on one would break the machine if it failed.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in ((tmp_path, "folder"), (pipe, "device or a pipe")):
        with pytest.raises(OSError, match=message) as caught:
            tiny_prior.save(path)
        assert caught.value.filename == str(path)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert leftovers(tmp_path) == []
