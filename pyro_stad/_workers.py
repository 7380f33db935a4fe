"""Parts of a long piece of work, done here or by any ``concurrent.futures.Executor``.

What all parts share, a model with its prior, is sent to a worker once: a part is sent without it,
and a worker that has not seen it yet says so, and gets it. Threads of this process have it from the
beginning. In flight are at most two parts for each worker that has answered, and two more: so the
data of all parts do not wait in memory, and new workers are found in a few rounds, for the answer
that something is missing comes at once.

A part that fails is tried again. A pool of processes of which one was killed takes no more work;
then what is left is done here, and a warning says so.
"""

from __future__ import annotations

import os
import pickle
import platform
import secrets
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    wait,
)
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch

from pyro_stad.errors import EvidenceError

__all__ = ["check_executor", "worked"]

_TRIES = 3
_FINAL = (TypeError, ValueError, AttributeError, EvidenceError)  # that come again
_A_WORKER, _MORE = 2, 2  # parts in flight
_MOST_KNOWN = 4
# Pyro's handlers belong to the process, and two models at once would see each other's.
_ALONE = threading.Lock()
# What this process has been sent, by the key of a run, the latest last.
_KNOWN: dict[str, Any] = {}
_PROCESS = os.getpid()

Work = Callable[[Any, Any], Any]


class _Answer(NamedTuple):
    """What a worker says: who it is, and what it has found, unless it lacks what is shared."""

    worker: str
    found: Any = None
    lacks: bool = False


def check_executor(executor: Any) -> None:
    """Refuse what is no executor."""
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(
            "`executor` must be a concurrent.futures.Executor, such as a ProcessPoolExecutor or "
            f"dask.distributed.Client(...).get_executor(); got {executor!r:.80}"
        )


def worked(
    work: Work, shared: Any, jobs: dict[int, Any], executor: Executor | None
) -> Generator[tuple[int, Any], None, None]:
    """Yield ``work(shared, job)`` of all jobs as they are done, each with its place.

    Arguments:
        work: a function of a module.
        shared: what all jobs need.
        jobs: by place.
        executor: who does them; None for this thread.

    Raises:
        TypeError: if the executor has to pickle what can't be pickled.
        Exception: that of a job, if it is one that comes again, or came three times.

    Warns:
        RuntimeWarning: if the executor broke, and the rest is done here.
    """
    if executor is None:
        for place, job in jobs.items():
            yield place, work(shared, job)
        return
    key = secrets.token_hex(8)
    _remember(key, shared)
    run = _Run(work, shared, jobs, executor, key)
    try:
        yield from run.answers()
        for place in run.left:
            yield place, work(shared, jobs[place])
    finally:
        _KNOWN.pop(key, None)
        for future in run.running:
            future.cancel()
        # A thread of this process may be in the middle of a model: the next one has to wait for it.
        with _ALONE:
            pass


class _Run:
    """Jobs on their way through an executor.

    Attributes:
        running: the places of jobs in flight.
        left: places that are left to be done when the executor has broken.
    """

    def __init__(
        self, work: Work, shared: Any, jobs: dict[int, Any], executor: Executor, key: str
    ) -> None:
        self.work, self.shared, self.jobs = work, shared, jobs
        self.executor, self.key = executor, key
        self.running: dict[Future[_Answer], int] = {}
        self.left: list[int] = []
        # Each with what is sent along: nothing, at first.
        self._waiting: deque[tuple[int, tuple[Any] | None]] = deque((place, None) for place in jobs)
        self._tries = dict.fromkeys(jobs, 1)
        self._workers: set[str] = set()

    def answers(self) -> Iterator[tuple[int, Any]]:
        """Yield what is found, until all is done or the executor has broken."""
        while self._waiting or self.running:
            try:
                self._submit()
                finished, _ = wait(self.running, return_when=FIRST_COMPLETED)
                # What was found before what failed: an error ends it all.
                for future in sorted(finished, key=_has_failed):
                    place = self.running.pop(future)
                    answer = self._answer(place, future)
                    if answer is not None:
                        yield place, answer.found
            except BrokenExecutor as error:
                self._break(error)

    def _submit(self) -> None:
        most = _A_WORKER * len(self._workers) + _MORE
        while self._waiting and len(self.running) < most:
            place, sent = self._waiting[0]
            job = self.key, self._tries[place], sent, self.jobs[place]
            call = self.executor.submit(_answer, self.work, torch.get_default_dtype(), *job)
            self.running[call] = place
            self._waiting.popleft()

    def _answer(self, place: int, future: Future[_Answer]) -> _Answer | None:
        """Return what was found; None if the job is to be sent again."""
        try:
            answer = future.result()
        except BrokenExecutor:
            self._waiting.append((place, None))
            raise
        except Exception as error:
            if isinstance(error, _FINAL) or self._tries[place] >= _TRIES:
                _raise(error)
            self._tries[place] += 1
            self._waiting.append((place, (self.shared,)))
            return None
        self._workers.add(answer.worker)
        if answer.lacks:
            self._waiting.appendleft((place, (self.shared,)))
            return None
        return answer

    def _break(self, error: BrokenExecutor) -> None:
        """Leave all that is not done."""
        self.left = sorted([*self.running.values(), *(place for place, _ in self._waiting)])
        self.running.clear()
        self._waiting.clear()
        warnings.warn(
            f"the executor broke ({error or type(error).__name__}): a worker was killed, or ran "
            f"out of memory. {len(self.left)} of {len(self.jobs)} parts are done in this process "
            "instead, which takes longer; what a store or a checkpoint has is safe if you stop it",
            RuntimeWarning,
            stacklevel=5,
        )


def _has_failed(future: Future[_Answer]) -> bool:
    return future.cancelled() or future.exception() is not None


def _raise(error: BaseException) -> NoReturn:
    unpicklable = isinstance(error, pickle.PicklingError) or (
        isinstance(error, (TypeError, AttributeError)) and "pickle" in str(error).lower()
    )
    if unpicklable:
        raise TypeError(
            f"`model` and its prior must be picklable for this executor ({error}): let the model "
            "be a function of a module, or a functools.partial of one"
        ) from error
    raise error


def _answer(
    work: Work, dtype: torch.dtype, key: str, attempt: int, sent: tuple[Any] | None, job: Any
) -> _Answer:
    """Do a job: what a worker runs. An attempt makes a new call of it for those who keep them."""
    worker = f"{platform.node()} {os.getpid()}"
    if os.getpid() != _PROCESS:
        # Forked: the threads that torch had are not there any more, and would be waited for.
        torch.set_num_threads(1)
    if sent is not None:
        _remember(key, sent[0])
    with _ALONE, _default(dtype):
        # Asked for here, not before: a run that has ended while this one waited has taken it away.
        if key not in _KNOWN:
            return _Answer(worker, lacks=True)
        return _Answer(worker, work(_KNOWN[key], job))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Let torch's default dtype be that of the process that has asked."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _remember(key: str, shared: Any) -> None:
    _KNOWN[key] = shared
    for old in list(_KNOWN)[:-_MOST_KNOWN]:
        _KNOWN.pop(old, None)
