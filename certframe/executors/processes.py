"""Work in several processes of this machine, a model in each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from pydantic import Field

from certframe import protocols
from certframe.errors import CertframeError, one_line

Factory = Callable[[], Callable[[Any], Any]]


class Processes:
    """Runs tasks in processes of this machine, each with a worker, and so a model, of its own.

    For CPUs with more cores than the threads within a layer keep busy. All processes use the run's device and keep a
    model in memory. A script that is not the command line has to be protected by ``if __name__ == "__main__":``, as for
    all of Python's worker processes.
    """

    class Options(protocols.Options):
        """Options of `processes`."""

        workers: int = Field(2, ge=1, description="Number of processes; they share the threads that torch would use.")

    execution = frozenset({"workers"})

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        self.slots = self.options.workers
        self._pool: ProcessPoolExecutor | None = None

    def start(self, factory: Factory) -> None:
        """Begin; a process makes its worker before its first task.

        Raises:
            CertframeError: the factory cannot be sent to another process.
        """
        import torch

        try:
            sent = pickle.dumps(factory)
        except Exception as error:
            raise CertframeError(f"executor 'processes' cannot send the run to another process ({one_line(error)}): "
                                 "use 'local', or plugins that are installed") from error
        threads = max(1, torch.get_num_threads() // self.slots)
        # Spawned, because a forked process cannot use CUDA, nor torch's threads once they have run.
        self._pool = ProcessPoolExecutor(self.slots, multiprocessing.get_context("spawn"), _settle, (sent, threads))

    def submit(self, task: Any) -> Future[Any]:
        """Queue one task.

        Raises:
            CertframeError: `start` has not been called, or `close` has; or a process has ended.
        """
        if self._pool is None:
            raise CertframeError("executor 'processes' has not been started: call start() first")
        future: Future[Any] = Future()
        try:
            # As bytes, and so do results come back: torch would pass tensors in shared memory, which ends with its
            # process.
            self._pool.submit(_work, pickle.dumps(task)).add_done_callback(partial(_deliver, future))
        except BrokenProcessPool as error:
            raise _ended() from error
        return future

    def close(self) -> None:
        """Drop what is queued and end the processes, whatever they are doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())  # public as terminate_workers() from Python 3.14
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _deliver(future: Future[Any], done: Future[bytes]) -> None:
    if done.cancelled():
        future.cancel()
        return
    error = done.exception()
    if error is None:
        future.set_result(pickle.loads(done.result()))
    else:
        future.set_exception(_ended() if isinstance(error, BrokenProcessPool) else error)


def _ended() -> CertframeError:
    return CertframeError("a process of executor 'processes' has ended before its work was done, perhaps for want of "
                          "memory: try fewer with -o executor.workers=…, or a smaller --batch-size")


# -- in the processes -------------------------------------------------------------------------------------------------

_worker: Callable[[Any], Any] | Exception | None = None


def _settle(factory: bytes, threads: int) -> None:
    """Make the worker; what that raises is kept for the first task, because a pool would only say that it is broken."""
    global _worker
    # Ctrl-C goes to every process of a terminal; what becomes of it is the first one's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        _worker = _received(factory)()
    except Exception as error:
        _worker = error


def _received(factory: bytes) -> Factory:
    try:
        return pickle.loads(factory)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:  # of what was defined in a notebook, or in a file that is no module
        raise CertframeError(f"a process of executor 'processes' does not find what the run needs ({one_line(error)}): "
                             "use 'local', or plugins that are installed") from error


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: bytes) -> bytes:
    if isinstance(_worker, Exception):
        raise _worker
    assert _worker is not None
    return pickle.dumps(_worker(pickle.loads(task)))
