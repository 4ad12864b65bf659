from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from certframe.errors import CertframeError
from certframe.executors.local import Local
from certframe.protocols import Executor


def test_tasks_run_in_order_with_one_worker() -> None:
    made: list[list[int]] = []

    def factory() -> Any:
        seen: list[int] = []
        made.append(seen)
        return lambda task: seen.append(task) or task * 2

    local = Local()
    assert isinstance(local, Executor)
    assert local.slots == 1
    local.start(factory)
    futures = [local.submit(task) for task in (3, 1, 2)]
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [6, 2, 4]
    assert made == [[3, 1, 2]]


def test_a_failure_is_carried_by_the_future_and_the_next_task_runs() -> None:
    def worker(task: int) -> int:
        if task == 0:
            raise ValueError("zero")
        return task

    local = Local()
    local.start(lambda: worker)
    with pytest.raises(ValueError, match="zero"):
        local.submit(0).result()
    assert local.submit(1).result() == 1


def test_an_interruption_is_not_put_into_a_future() -> None:
    def worker(task: int) -> int:
        raise KeyboardInterrupt

    local = Local()
    local.start(lambda: worker)
    with pytest.raises(KeyboardInterrupt):
        local.submit(1)


def test_a_worker_that_cannot_be_built_says_so_at_the_start() -> None:
    def factory() -> Any:
        raise CertframeError("no model")

    with pytest.raises(CertframeError, match="no model"):
        Local().start(factory)


def test_it_has_to_be_started_and_not_closed() -> None:
    local = Local()
    with pytest.raises(CertframeError, match="not been started"):
        local.submit(1)
    local.start(lambda: lambda task: task)
    assert local.submit(1).result() == 1
    local.close()
    local.close()
    with pytest.raises(CertframeError, match="not been started"):
        local.submit(1)


def test_closing_frees_the_worker() -> None:
    import weakref

    class Worker:
        def __call__(self, task: int) -> int:
            return task

    local, worker = Local(), Worker()
    reference = weakref.ref(worker)
    local.start(lambda worker=worker: worker)
    del worker
    local.close()
    assert reference() is None


def test_it_has_no_options() -> None:
    with pytest.raises(ValidationError):
        Local.Options(workers=3)
