"""Work by executors: what is shared is sent once, what fails comes again, a pool may break."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor

import pytest

from pyro_stad import _workers
from pyro_stad._workers import worked
from pyro_stad.errors import CheckpointError

SPAWN = multiprocessing.get_context("spawn")


def times(shared, job):
    return shared * job


def dies(shared, job):
    """A job of which one kills whoever does it, if it is not this process."""
    if job == 5 and os.getpid() != shared:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


class Counting(Executor):
    """An executor that knows what it was sent."""

    def __init__(self, pool):
        self.pool, self.sent, self.running, self.most = pool, 0, 0, 0

    def submit(self, function, /, *args, **kwargs):
        self.sent += args[4] is not None
        self.running += 1
        self.most = max(self.most, self.running)
        future = self.pool.submit(function, *args, **kwargs)
        future.add_done_callback(self._done)
        return future

    def _done(self, future):
        self.running -= 1


def test_everything_is_done_once():
    jobs = {place: place for place in range(30)}
    wanted = {place: 3 * place for place in jobs}
    assert dict(worked(times, 3, jobs, None)) == wanted
    with ThreadPoolExecutor(2) as threads:
        counting = Counting(threads)
        assert dict(worked(times, 3, jobs, counting)) == wanted
        # Threads of this process have what is shared.
        assert counting.sent == 0
    assert not _workers._KNOWN


def test_what_is_shared_is_sent_to_a_worker_once():
    with ProcessPoolExecutor(2, SPAWN) as pool:
        counting = Counting(pool)
        found = dict(worked(times, 3, {place: place for place in range(40)}, counting))
    assert found == {place: 3 * place for place in range(40)}
    # Once for each worker, and as often again where two parts met one before it had answered.
    assert 1 <= counting.sent <= 6
    assert counting.most <= 2 * 2 + 2


def test_a_pool_that_broke_is_finished_here():
    jobs = {place: place for place in range(12)}
    with (
        ProcessPoolExecutor(2, SPAWN) as pool,
        pytest.warns(RuntimeWarning, match=r"the executor broke .* of 12 parts are done in this"),
    ):
        found = list(worked(dies, os.getpid(), jobs, pool))
    assert sorted(found) == [(place, place) for place in jobs]


class Failing(Executor):
    """An executor whose first job has an error by the time that others are done."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        if args[-1] == 0:
            future.set_exception(ValueError("of job 0"))
        else:
            future.set_result(function(*args, **kwargs))
        return future


def test_what_was_found_comes_before_what_failed():
    answers = worked(times, 3, {0: 0, 1: 1}, Failing())
    assert next(answers) == (1, 3)
    with pytest.raises(ValueError, match="of job 0"):
        next(answers)


def test_a_job_that_is_cancelled_comes_again():
    class Cancelling(ThreadPoolExecutor):
        cancelled = 0

        def submit(self, function, /, *args, **kwargs):
            future = super().submit(function, *args, **kwargs)
            if not self.cancelled:
                self.cancelled, future = 1, Future()
                future.cancel()
                future.set_running_or_notify_cancel()
            return future

    with Cancelling(1) as pool:
        found = dict(worked(times, 2, {0: 1, 1: 2}, pool))
    assert found == {0: 2, 1: 4}


class Spoiled(Executor):
    """An executor whose jobs fail with an error of their own."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        future.set_exception(CheckpointError("the file looks like a pickle"))
        return future


def test_errors_of_jobs_come_as_they_are():
    with pytest.raises(CheckpointError, match="looks like a pickle"):
        dict(worked(times, 3, {0: 0}, Spoiled()))


FORKED = """
import multiprocessing, sys, torch
from concurrent.futures import ProcessPoolExecutor
from pyro_stad import _workers
torch.rand(500, 500) @ torch.rand(500, 500)  # starts the threads of this process

def product(shared, job):
    return float((torch.ones(500, 500) @ torch.ones(500, 500)).mean())

with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    print(sorted(_workers.worked(product, None, dict.fromkeys(range(4), 0), pool)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_workers_do_not_wait_for_threads_that_are_not_there():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([(place, 500.0) for place in range(4)])
