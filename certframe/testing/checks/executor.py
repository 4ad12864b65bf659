"""What is demanded of an executor."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np

from certframe.errors import UsageError
from certframe.protocols import Executor
from certframe.testing.kit import Subject, check, require

_SECONDS = 120.0
"""Nothing here takes longer, on a slow machine either; what does is taken to hang."""


class _Worker:
    """Does what a task ``(verb, value)`` says."""

    def __init__(self, factor: int) -> None:
        self._factor, self._birth = factor, time.monotonic_ns()

    def __call__(self, task: tuple[str, Any]) -> Any:
        verb, value = task
        if verb == "fail":
            raise ValueError(value)
        if verb == "refuse":
            raise UsageError(value)
        if verb == "who":
            return id(self), self._birth
        if verb == "sleep":
            time.sleep(value)
        return value * self._factor


def _make_worker(factor: int) -> Callable[[Any], Any]:
    return _Worker(factor)


def _broken_factory() -> Callable[[Any], Any]:
    raise UsageError("the worker cannot be made")


@contextlib.contextmanager
def _started(subject: Subject) -> Iterator[Executor]:
    executor: Executor = subject.build()
    try:
        executor.start(functools.partial(_make_worker, 3))
        yield executor
    finally:
        executor.close()


def _result(future: Future[Any]) -> Any:
    require(isinstance(future, Future), f"submit() returns {type(future).__name__}, not a concurrent.futures.Future")
    try:
        return future.result(timeout=_SECONDS)
    except TimeoutError:
        require(False, f"a task has no result after {_SECONDS:.0f} s")


@check("executor")
def slots(subject: Subject) -> None:
    """`slots` is a whole number of at least one: so many tasks are kept under way."""
    with _started(subject) as executor:
        require(isinstance(executor.slots, int) and executor.slots >= 1, f"slots is {executor.slots!r}")


@check("executor")
def results(subject: Subject) -> None:
    """Every future carries the result of its own task, whatever order they finish in; arrays arrive intact."""
    with _started(subject) as executor:
        tasks = [(("sleep", 0.02) if i % 3 == 0 else ("scale", i)) for i in range(4 * executor.slots + 3)]
        futures = [executor.submit(task) for task in tasks]
        for (verb, value), future in zip(tasks, futures, strict=True):
            found = _result(future)
            require(found == value * 3, f"task {verb} {value} gives {found!r}, not {value * 3}")
        array = np.arange(100_000, dtype=np.int64).reshape(10, -1)
        found = _result(executor.submit(("scale", array)))
        require(isinstance(found, np.ndarray) and found.dtype == array.dtype and np.array_equal(found, 3 * array),
                "an array comes back different")


@check("executor")
def one_worker_a_place(subject: Subject) -> None:
    """A place of work calls the factory once and keeps the worker: it holds the model, which takes long to load."""
    with _started(subject) as executor:
        workers = {_result(executor.submit(("who", 0))) for _ in range(3 * executor.slots + 3)}
        require(len(workers) <= executor.slots, f"{len(workers)} workers were made for {executor.slots} slots")


@check("executor")
def exceptions(subject: Subject) -> None:
    """A task's exception comes with its type and text through its future, and later tasks are not harmed."""
    with _started(subject) as executor:
        for verb, kind in (("fail", ValueError), ("refuse", UsageError)):
            future = executor.submit((verb, "text of the task"))
            error = future.exception(timeout=_SECONDS)
            require(isinstance(error, kind) and "text of the task" in str(error),
                    f"a task's {kind.__name__} arrives as {type(error).__name__}: {error}")
            require(_result(executor.submit(("scale", 5))) == 15, "after a failed task the next one is wrong")


@check("executor")
def broken_factory(subject: Subject) -> None:
    """A factory that raises is reported, by `start` or by the first future; the run must not wait for ever."""
    executor = subject.build()
    try:
        executor.start(_broken_factory)
        error = executor.submit(("scale", 1)).exception(timeout=_SECONDS)
    except TimeoutError:
        require(False, f"nothing is reported within {_SECONDS:.0f} s")
    except Exception as raised:
        error = raised
    finally:
        executor.close()
    require(error is not None and "cannot be made" in str(error), f"the factory's error arrives as {error!r}")


@check("executor")
def close(subject: Subject) -> None:
    """`close` may be called before `start`, twice, and with tasks under way, and returns soon."""
    subject.build().close()
    executor = subject.build()
    executor.start(functools.partial(_make_worker, 3))
    for _ in range(executor.slots):
        executor.submit(("sleep", 0.01))
    begin = time.monotonic()
    executor.close()
    executor.close()
    require(time.monotonic() - begin < _SECONDS / 2, "close() takes very long")


@check("executor")
def closed(subject: Subject) -> None:
    """After `close` a task is refused, at once or through its future: otherwise a run would wait for ever."""
    executor = subject.build()
    executor.start(functools.partial(_make_worker, 3))
    executor.close()
    try:
        error = executor.submit(("scale", 1)).exception(timeout=_SECONDS)
    except TimeoutError:
        require(False, f"a task submitted after close() has no outcome after {_SECONDS:.0f} s")
    except Exception:
        return
    require(error is not None, "a task submitted after close() is carried out")
