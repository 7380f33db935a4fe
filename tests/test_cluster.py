"""A Dask cluster of two workers, of which one is killed in the middle."""

import os
import signal
import threading
import time

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_stad import log_evidences, sample_posteriors

distributed = pytest.importorskip("distributed", reason="needs dask.distributed: the extra cluster")


def model(y):
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y)


@pytest.fixture(scope="module")
def client():
    """A client of two workers, processes of one thread each."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as found:
        yield found


def kill_in_the_middle(client, store, killed):
    """Kill one of the workers when the first part is done."""
    victim = next(iter(client.run(os.getpid).values()))
    while not list(store.glob("objects_*")):
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    killed.append(victim)


def test_a_worker_that_is_killed_loses_nothing(client, tmp_path):
    y = torch.linspace(-2, 2, 60)
    options = {"num_chains": 16, "num_samples": 30, "part": 5, "form": "noise", "progress": False}
    here = sample_posteriors(model, y, **options)
    killed = []
    killer = threading.Thread(target=kill_in_the_middle, args=(client, tmp_path, killed))
    killer.start()
    there = sample_posteriors(model, y, executor=client.get_executor(), store=tmp_path, **options)
    killer.join()
    assert killed
    assert torch.equal(here.draws["x"], there.draws["x"])
    assert len(list(tmp_path.glob("objects_*"))) == 12


def test_evidences_come_from_a_cluster(client):
    y = torch.linspace(-2, 2, 6)
    options = {"particles": 200, "part": 2, "progress": False}
    there = log_evidences(model, y, executor=client.get_executor(), **options)
    here = log_evidences(model, y, **options)
    assert [found.log_z for found in there] == [found.log_z for found in here]
