"""Each check of executors catches the mistake that it is there for."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from certframe import protocols
from certframe.testing import run_checks
from certframe.testing.checks import executor as checks


class Good:
    """Threads, each with a worker of its own."""

    class Options(protocols.Options):
        """None."""

    slots = 2

    def __init__(self, options: Options | None = None) -> None:
        self.options = options
        self._pool = None

    def start(self, factory):
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.slots, initializer=self._initialise, initargs=(factory,))

    def _initialise(self, factory):
        try:
            self._local.worker = factory()
        except Exception as error:
            self._local.worker = _raiser(error)

    def submit(self, task):
        return self._pool.submit(lambda: self._local.worker(task))

    def close(self):
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _raiser(error):
    def work(task):
        raise error
    return work


def test_a_sound_executor_passes():
    report = run_checks("executor", Good)
    assert report.ok, str(report)
    assert not report.skipped, str(report)


def but(**attributes):
    """An executor like `Good`, but …"""
    return type("But", (Good,), {"__doc__": "But.", **attributes})


class Sequential(Good):
    """Works in this thread."""

    def start(self, factory):
        self.factory = factory
        self.worker = factory()

    def submit(self, task):
        future = Future()
        try:
            future.set_result(self.worker(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self):
        self.worker = None


class NewWorkers(Sequential):
    """Makes a worker for each task."""

    def submit(self, task):
        self.kept = [*getattr(self, "kept", []), self.worker]
        self.worker = self.factory()
        return super().submit(task)


class Swapped(Sequential):
    """Hands out the result of the task before."""

    previous: Future | None = None

    def submit(self, task):
        future, self.previous = self.previous or super().submit(task), super().submit(task)
        return future


class Rounds(Sequential):
    """Sends arrays as float32."""

    def submit(self, task):
        future = super().submit(task)
        if isinstance(future.result(), np.ndarray):
            value = future.result().astype(np.float32)
            future = Future()
            future.set_result(value)
        return future


class Disguises(Sequential):
    """Turns every exception into a RuntimeError."""

    def submit(self, task):
        future = Future()
        try:
            future.set_result(self.worker(task))
        except Exception as error:
            future.set_exception(RuntimeError(str(error)))
        return future


class Dies(Sequential):
    """Gives nothing but zeros after a failure."""

    def submit(self, task):
        future = super().submit(task)
        if future.exception() is not None:
            self.worker = lambda task: 0
        return future


class Waits(Sequential):
    """Never reports that the worker could not be made."""

    def start(self, factory):
        try:
            super().start(factory)
        except Exception:
            self.worker = None

    def submit(self, task):
        return Future() if self.worker is None else super().submit(task)


class ClosesOnce(Good):
    """May be closed once."""

    def close(self):
        self._pool.shutdown()
        self._pool = None


class OpensAgain(Sequential):
    """Works on after it was closed."""

    def close(self):
        pass


class SilentAfterClose(Sequential):
    """Takes tasks after it was closed, and forgets them."""

    def submit(self, task):
        return Future() if self.worker is None else super().submit(task)


BROKEN = [
    ("slots", type("NoSlots", (Sequential,), {"slots": 0}), "slots is 0"),
    ("slots", type("ManySlots", (Sequential,), {"slots": None}), "slots is None"),
    ("results", Swapped, "gives"),
    ("results", Rounds, "an array comes back different"),
    ("results", but(submit=lambda self, task: self._local), "not a concurrent.futures.Future"),
    ("one-worker-a-place", NewWorkers, "workers were made for 2 slots"),
    ("exceptions", Disguises, "arrives as RuntimeError"),
    ("exceptions", Dies, "after a failed task"),
    ("broken-factory", Waits, "nothing is reported"),
    ("broken-factory", but(_initialise=lambda self, factory: setattr(self._local, "worker", lambda task: 0)),
     "arrives as None"),
    ("close", ClosesOnce, "NoneType"),
    ("closed", OpensAgain, "is carried out"),
    ("closed", SilentAfterClose, "has no outcome"),
]


@pytest.mark.parametrize(("name", "cls", "said"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)])
def test_a_mistake_is_caught(ask, name, cls, said, monkeypatch):
    monkeypatch.setattr(checks, "_SECONDS", 0.3)
    found = ask("executor", name, cls)
    assert found.outcome == "failed", found
    assert said in found.message


def test_every_check_has_a_mistake_that_it_catches(own_checks):
    assert own_checks("executor") == {name for name, _, _ in BROKEN}


def test_a_close_that_takes_long_and_a_task_that_hangs_are_caught(ask, monkeypatch):
    class Slow(Good):
        """Waits when it is closed."""

        def close(self):
            super().close()
            threading.Event().wait(0.3)

    class Hangs(Sequential):
        """Forgets its tasks."""

        def submit(self, task):
            return Future()

    monkeypatch.setattr(checks, "_SECONDS", 0.2)
    assert "very long" in ask("executor", "close", Slow).message
    assert "no result after" in ask("executor", "results", Hangs).message
