from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import certframe
from certframe.config import component
from certframe.errors import CertframeError, UsageError
from certframe.executors.processes import Processes
from certframe.protocols import Executor


def started(workers: int = 2) -> Processes:
    """Processes whose worker does what a task says: tasks are calls.

    Nothing of this file is sent to them, because a process could not import it: tests are not installed.
    """
    executor = Processes(Processes.Options(workers=workers))
    executor.start(partial(operator.methodcaller, "__call__"))
    return executor


def gone(pid: int) -> bool:
    """Whether a process has ended; one that waits to be collected has."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def test_tasks_are_done_elsewhere_and_tensors_come_back_whole() -> None:
    executor = started()
    assert isinstance(executor, Executor)
    try:
        tensors = [executor.submit(partial(torch.mul, torch.full((1000,), float(i)), 3)) for i in range(6)]
        for i, future in enumerate(tensors):
            assert torch.equal(future.result(), torch.full((1000,), 3.0 * i))
        assert executor.submit(partial(os.getpid)).result() != os.getpid()
        threads = executor.submit(partial(torch.get_num_threads)).result()
        assert threads == max(1, torch.get_num_threads() // 2)
        handler = executor.submit(partial(signal.getsignal, signal.SIGINT)).result()
        assert handler is signal.SIG_IGN, "Ctrl-C is for the first process"
    finally:
        executor.close()


def test_close_does_not_wait_for_what_is_under_way() -> None:
    executor = started(1)
    pid = executor.submit(partial(os.getpid)).result()
    executor.submit(partial(time.sleep, 600))
    time.sleep(0.2)
    begin = time.monotonic()
    executor.close()
    assert time.monotonic() - begin < 60
    assert gone(pid)
    with pytest.raises(CertframeError, match="has not been started"):
        executor.submit(partial(abs, 1))


def test_a_process_that_ends_is_reported_with_a_way_out() -> None:
    executor = started(1)
    try:
        with pytest.raises(CertframeError, match="perhaps for want of memory: try fewer"):
            executor.submit(partial(os._exit, 3)).result()
        with pytest.raises(CertframeError, match="try fewer"):
            executor.submit(partial(abs, 1)).result()
    finally:
        executor.close()


def test_what_cannot_be_sent_is_refused_at_the_start() -> None:
    with pytest.raises(CertframeError, match="cannot send the run to another process"):
        Processes().start(lambda: lambda task: task)


def test_what_a_process_cannot_import_is_the_users_line(monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.ModuleType("only_here")
    exec("def factory():\n    return abs\n", here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", here)
    executor = Processes(Processes.Options(workers=1))
    executor.start(here.factory)
    try:
        with pytest.raises(CertframeError, match=r"does not find what the run needs \(.*only_here.*: use 'local'"):
            executor.submit(partial(abs, 1)).result()
    finally:
        executor.close()


def test_processes_end_with_the_one_that_they_work_for(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import operator, os, time
from functools import partial
from certframe.executors.processes import Processes
if __name__ == "__main__":
    executor = Processes(Processes.Options(workers=1))
    executor.start(partial(operator.methodcaller, "__call__"))
    print(executor.submit(partial(os.getpid)).result(), flush=True)
    executor.submit(partial(time.sleep, 600)).result()
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


def test_a_run_has_the_counts_of_a_run_in_one_process(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "digits", "dataset": "digits", "attributor": ["gradient", "grad-cam"],
                                "limit": 3, "samples": 80, "device": "cpu", "metric": ["certified-rate", "deletion"]}
    one = certframe.run(tmp_path / "one", **settings)
    two = certframe.run(tmp_path / "two", executor="processes", **settings)
    assert one.config.digest == two.config.digest, "where the work is done is no part of what a run is"
    first, second = ({(image, cell): e for image, cell, _, e in run.explanations()} for run in (one, two))
    assert len(first) == 6
    for key, explanation in first.items():
        np.testing.assert_array_equal(explanation.tally.counts, second[key].tally.counts)
    order = [(name, "ascending") for name in ("image", "cell", "metric")]
    assert one.table().sort_by(order)["value"].to_pylist() == two.table().sort_by(order)["value"].to_pylist()


def test_a_mistake_in_a_process_is_the_users_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown layer"):
        certframe.run(tmp_path / "run", model="digits", dataset="digits", attributor={"name": "grad-cam", "layer": "x"},
                      executor="processes", device="cpu", samples=40)
    assert component("executor", "processes").build().slots == 2
