"""Posteriors of many objects: closed forms, stores, and workers that fail."""

import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_stad import sample_posterior, sample_posteriors
from pyro_stad.errors import AccuracyWarning, CheckpointError, EvidenceError
from pyro_stad.infer.sampled_objects import part_file

QUIET = {"progress": False}
package = sys.modules["pyro_stad.infer.sample_posteriors"]  # the function has its name
run = sys.modules["pyro_stad.infer.objects_run"]
workers = sys.modules["pyro_stad._workers"]
SMALL = {"num_chains": 32, "num_samples": 50, "part": 4, **QUIET}


def model(y, error):
    """A normal mean of which each object has a datum, and an error of its own."""
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.5))
    pyro.sample("y", dist.Normal(x, error), obs=y)
    pyro.sample("size", dist.Normal(scale.log(), 0.5), obs=y / 3)


def data(count):
    source = torch.Generator().manual_seed(0)
    return 2 * torch.randn(count, generator=source), 0.1 + torch.rand(count, generator=source)


@pytest.mark.parametrize("form", ["parameters", "noise"])
def test_every_object_has_its_own_posterior(form):
    y, error = data(40)
    found = sample_posteriors(model, y, error, form=form, part=16, **QUIET)
    assert found.draws["x"].shape == (40, 32, 100)
    assert found.form == form
    precision = 1 + error**-2
    mean, sd = y / error**2 / precision, precision**-0.5
    scores = (found.mean()["x"] - mean) / sd * found.ess.sqrt()
    assert scores.abs().max() < 5
    assert 0.6 < scores.std() < 1.4
    assert (found.sd()["x"] / sd - 1).abs().max() < 0.12
    # The other site, on a logarithm: prior and datum have equal weight.
    logs = found.draws["scale"].log()
    assert ((logs.mean((1, 2)) - y / 6) / (0.125**0.5) * found.ess.sqrt()).abs().max() < 5
    assert "40 objects, 32 chains of 100 draws" in found.summary()
    assert found.to_arviz(3)["posterior"]["x"].shape == (32, 100)


@pytest.mark.parametrize("form", ["parameters", "noise"])
def test_priors_whose_quantiles_are_not_torch_s_are_mapped(form):
    """A rate with a Gamma prior, and one waiting time for each object: Gamma(3, 3 + y)."""

    def waiting(y):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 3.0))
        pyro.sample("y", dist.Exponential(rate), obs=y)

    y = torch.linspace(0.1, 5.0, 8)
    found = sample_posteriors(waiting, y, form=form, **QUIET)
    mean, sd = 3 / (3 + y), math.sqrt(3) / (3 + y)
    assert ((found.mean()["rate"] - mean) / sd * found.ess.sqrt()).abs().max() < 4
    assert (found.sd()["rate"] / sd - 1).abs().max() < 0.12


def test_a_learned_prior_serves_many_objects(tiny_prior):
    def of_one(y):
        theta = pyro.sample("theta", tiny_prior)
        pyro.sample("y", dist.Normal(theta[..., 1], 0.3), obs=y)

    y = torch.tensor([0.2, 0.5, 1.0])
    many = sample_posteriors(of_one, y, **QUIET)
    one = sample_posterior(of_one, y[1], form="parameters", **QUIET)
    draws = many.draws["theta"][1].flatten(0, 1), one.draws["theta"].flatten(0, 1)
    error = draws[1].std(0) * math.sqrt(1 / many.ess[1] + 1 / one.worst_ess)
    assert ((draws[0].mean(0) - draws[1].mean(0)) / error).abs().max() < 5


def test_draws_depend_on_nobody_who_works_beside(tmp_path):
    """In this thread, in threads, in processes, and from a store: the same bits."""
    y, error = data(10)
    plain = sample_posteriors(model, y, error, **SMALL)
    spawned = multiprocessing.get_context("spawn")
    pools = [
        ThreadPoolExecutor(2),
        ProcessPoolExecutor(2, spawned),  # whose default dtype is another
    ]
    for pool in pools:
        with pool:
            found = sample_posteriors(model, y, error, executor=pool, **SMALL)
        for name, draws in plain.draws.items():
            assert torch.equal(found.draws[name], draws)
    stored = sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    again = sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    for name, draws in plain.draws.items():
        assert torch.equal(stored.draws[name], draws)
        assert torch.equal(again.draws[name], draws)


def test_numbers_of_numpy_go_into_a_store(tmp_path):
    y, error = data(4)
    options = {**SMALL, "num_chains": np.int64(8), "num_samples": np.int64(20)}
    found = sample_posteriors(model, y, error, min_ess=np.float32(50), store=tmp_path, **options)
    again = sample_posteriors(model, y, error, min_ess=50, store=tmp_path, **options)
    assert torch.equal(found.draws["x"], again.draws["x"])


def test_what_is_wrong_with_likelihoods_is_told(tmp_path):
    """A few that are NaN, by a part that comes from a store too."""

    def hurt(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x, torch.where(x > 2.9, torch.nan, 1.0)), obs=y)

    for _ in range(2):
        with pytest.warns(AccuracyWarning, match=r"likelihoods were NaN, and count as zero"):
            sample_posteriors(hurt, torch.zeros(5), form="noise", store=tmp_path, **SMALL)


def test_threads_of_a_call_that_failed_are_waited_for():
    """What they still have to do is done before the next call reads its model."""

    def bad(y, error):
        model(y, error)
        pyro.factor("possible", torch.where(y < 0, -math.inf, 0.0))

    y, error = data(16)
    y = y.abs()
    y[4] = -1.0
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            with pytest.raises(ValueError, match="from 4 on, .*the likelihood of object 0 is zero"):
                sample_posteriors(bad, y, error, executor=pool, form="noise", **SMALL)
            found = sample_posteriors(model, y[:4], error[:4], executor=pool, **SMALL)
    assert found.draws["x"].shape == (4, 32, 50)


def test_a_killed_run_keeps_the_parts_that_were_done(tmp_path, monkeypatch):
    y, error = data(12)
    whole = sample_posteriors(model, y, error, **SMALL)
    sampled, worked = package.part_of_objects, []

    def killed(shared, job):
        if len(worked) == 2:
            raise KeyboardInterrupt
        worked.append(job.start)
        return sampled(shared, job)

    monkeypatch.setattr(package, "part_of_objects", killed)
    with pytest.raises(KeyboardInterrupt):
        sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    assert worked == [0, 4]
    worked.clear()
    found = sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    assert worked == [8]
    assert torch.equal(found.draws["x"], whole.draws["x"])
    for options, rows, message in (
        ({"seed": 1}, (y, error), "has seed = 0, these objects have 1"),
        ({"num_samples": 30}, (y, error), "has num_samples = 50"),
        ({}, (y + 1, error), "has data"),
    ):
        with pytest.raises(CheckpointError, match=message):
            sample_posteriors(model, *rows, store=tmp_path, **{**SMALL, **options})

    def other(y, error):
        x = pyro.sample("x", dist.Normal(torch.tensor(100.0), 1.0))
        scale = pyro.sample("scale", dist.LogNormal(torch.tensor(0.0), 0.5))
        pyro.sample("y", dist.Normal(x, error), obs=y)
        pyro.sample("size", dist.Normal(scale.log(), 0.5), obs=y / 3)

    with pytest.raises(CheckpointError, match="of another model"):
        sample_posteriors(other, y, error, store=tmp_path, form=whole.form, **SMALL)
    file = part_file(tmp_path, 4)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError):
        sample_posteriors(model, y, error, store=tmp_path, **SMALL)


def test_a_part_that_fails_is_tried_again(monkeypatch):
    y, error = data(8)
    plain = sample_posteriors(model, y, error, **SMALL)
    sampled, tries = package.part_of_objects, []

    def failing(shared, job):
        tries.append(job.start)
        if tries.count(4) < 3 and job.start == 4:
            raise OSError("a worker was lost")
        return sampled(shared, job)

    monkeypatch.setattr(package, "part_of_objects", failing)
    with ThreadPoolExecutor(1) as pool:
        found = sample_posteriors(model, y, error, executor=pool, **SMALL)
        assert tries.count(4) == 3
        assert torch.equal(found.draws["x"], plain.draws["x"])
        tries.clear()
        monkeypatch.setattr(workers, "_TRIES", 2)
        with pytest.raises(OSError, match="a worker was lost"):
            sample_posteriors(model, y, error, executor=pool, **SMALL)


def test_objects_go_on_until_they_have_their_effective_draws(monkeypatch):
    """One is wide and bent, and goes on alone; of all as many draws are kept."""

    def bent(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        # A narrow curve for the last object, and hardly anything for others.
        pyro.sample("y", dist.Normal(z + x.square(), y), obs=torch.tensor(1.0))

    y = torch.tensor([10.0, 10.0, 0.1])
    options = {"num_samples": 50, "form": "parameters", **QUIET}
    plain = sample_posteriors(bent, y, **options)
    wanted = 0.6 * plain.ess[:2].min().item()
    assert plain.ess[2] < wanted
    found = sample_posteriors(bent, y, min_ess=wanted, **options)
    assert (found.ess >= wanted).all()
    assert found.draws["x"].shape == (3, 32, 50)
    assert found.moves[:2].tolist() == [1, 1]
    assert found.moves[2] > 1
    assert "moves apart" in found.summary()
    # Who has left the batch is as before.
    assert torch.equal(found.draws["x"][:2], plain.draws["x"][:2])
    for name, mean in found.mean().items():
        torch.testing.assert_close(mean, found.draws[name].mean((1, 2)))
    # The same symmetric law on both sides.
    assert abs(found.mean()["x"][2]) < 5 * found.sd()["x"][2] / math.sqrt(wanted)
    monkeypatch.setattr(run, "_MOST_DOUBLINGS", 1)
    most = 0.99 * 32 * 50
    with pytest.warns(AccuracyWarning, match=r"have fewer effective draws than min_ess = 1584 \("):
        sample_posteriors(bent, y, min_ess=most, **options)


def test_a_store_is_read_when_it_is_asked_for(tmp_path):
    """Memory holds what is known of objects, and their draws are in files."""
    y, error = data(10)
    plain = sample_posteriors(model, y, error, **SMALL)
    found = sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    assert [part.held for part in found.parts] == [part_file(tmp_path, at) for at in (0, 4, 8)]
    for index in (0, 5, -1):
        for name, draws in found[index].items():
            assert torch.equal(draws, plain.draws[name][index])
    assert sum(torch.equal(one["x"], plain.draws["x"][i]) for i, one in enumerate(found)) == 10
    for name in ("r_hat", "ess", "acceptance", "moves"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    again = sample_posteriors(model, y, error, store=tmp_path, **SMALL)
    for name in ("x", "scale"):
        assert torch.equal(again.mean()[name], plain.mean()[name])
        assert torch.equal(again.sd()[name], plain.sd()[name])
    assert again.pilot == plain.pilot
    with pytest.raises(IndexError, match="there are 10 objects, and none with index 10"):
        found[10]
    with pytest.raises(TypeError, match="objects are numbered, from 0 to 9; got 'x'"):
        found["x"]
    together = found.to_arviz()["posterior"]["x"]
    assert together.shape == (32, 50, 10)
    assert (together.values[:, :, 3] == found[3]["x"].numpy()).all()


def test_a_pilot_chooses_the_form():
    """In noise where a wide prior is cut by the data to a ridge that it does not know."""
    y, error = data(6)
    found = sample_posteriors(model, y, error, **SMALL)
    assert set(found.pilot) == {"noise", "parameters"}
    assert found.form == max(found.pilot, key=found.pilot.get)
    assert not sample_posteriors(model, y, error, form="noise", **SMALL).pilot


def test_objects_whose_chains_disagree_are_named():
    def apart(y):
        """Eight numbers with two modes each, too many for jumps."""
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x.abs(), 0.1).to_event(1), obs=y.expand(8))

    with pytest.warns(AccuracyWarning, match=r"chains of 1 of 2 objects disagree \(1\)"):
        found = sample_posteriors(apart, torch.tensor([0.0, 3.0]), num_samples=50, **QUIET)
    assert found.disagreeing.tolist() == [False, True]


def sharp(y):
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def test_slips_have_messages():
    y, error = data(4)
    for options, message in (
        ({"num_chains": 9}, "`num_chains` must be even"),
        ({"form": "both"}, "`form` must be one of"),
        ({"min_ess": 0.0}, "`min_ess` must be"),
        ({"min_ess": 1e6}, "`min_ess` must be at most the number of draws"),
        ({"part": 0}, "`part` must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_posteriors(model, y, error, **options, **QUIET)
    bad = y.clone()
    bad[2] = math.nan
    with pytest.raises(
        ValueError, match="argument 0 is nan or infinite for object 2, and 1 in all"
    ):
        sample_posteriors(model, bad, error, **QUIET)
    with pytest.raises(TypeError, match=r"`executor` must be a concurrent.futures.Executor"):
        sample_posteriors(model, y, error, executor="dask", **QUIET)
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        sample_posteriors(model, y, error, kernel="nuts", **QUIET)
    with pytest.raises(NotADirectoryError, match="`store` must be a folder"):
        sample_posteriors(model, y, error, store=__file__, **QUIET)
    spawned = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, spawned) as pool,
        pytest.raises(TypeError, match="must be picklable for this executor"),
    ):
        sample_posteriors(lambda *rows: model(*rows), y, error, executor=pool, **QUIET)
    with pytest.raises(EvidenceError, match="log-likelihoods of the posterior of object 2 are"):
        sample_posteriors(sharp, torch.tensor([0.0, 0.0, 1e4], dtype=torch.float32), **QUIET)
    with pytest.raises(ValueError, match="as many rows as there are objects"):
        sample_posteriors(model, y, error[:2], **QUIET)
    with pytest.raises(TypeError, match="one row for each object"):
        sample_posteriors(model, y, 0.5, **QUIET)

    def branches(y):
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0 if y > 0 else 2.0), obs=y)

    with pytest.raises(ValueError, match=r"can't be mapped over objects by torch.vmap"):
        sample_posteriors(branches, y, **QUIET)
