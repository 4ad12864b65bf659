"""A process that has imported everything, and forks one run of toys for every line of its standard input.

Starting Python with torch for every run that a test kills would take minutes. A line is a JSON object:

    out, settings      the run
    journal            file to which every explained copy is appended
    pause              seconds to sleep in every batch
    crash              [function, n]: send SIGKILL to itself at the n-th call of os.fsync, os.replace, …
    after              crash after that call instead of before it
    count              file to which the number of calls of these functions is written
    kill               [signal, seconds]: send the signal after so long, unless the run has ended

The answer is a line with the exit status, negative for a signal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import toys

from certframe import pipeline
from certframe.errors import CertframeError
from certframe.store import Run

PLACES = {"fsync": os, "replace": os, "rmtree": shutil, "log": Run}


def run(job: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    pipeline.CHECKPOINT_SECONDS = job.get("checkpoint", 0.0)
    pipeline.SHARD_SECONDS = job.get("shard", 0.0)
    journal = os.open(job["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def observe(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16] for row in inputs]
        os.write(journal, ("\n".join(rows) + "\n").encode())
        time.sleep(job.get("pause", 0.0))

    toys.OBSERVERS.append(observe)
    calls = dict.fromkeys(PLACES, 0)
    for name, place in PLACES.items():
        setattr(place, name, counted(getattr(place, name), name, calls, job))
    registry = toys.registry()
    try:
        pipeline.execute(toys.configure(registry, **job["settings"]), Path(job["out"]), registry=registry)
    except KeyboardInterrupt:
        return 130
    except CertframeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        if "count" in job:
            Path(job["count"]).write_text(json.dumps(calls))
    return 0


def counted(function: Any, name: str, calls: dict[str, int], job: dict[str, Any]) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        now = job.get("crash") == [name, calls[name]]
        if now and not job.get("after"):
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = run(job)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if "kill" in job:  # before waiting: until then the number belongs to the child, even when it has ended
            time.sleep(job["kill"][1])
            os.kill(child, job["kill"][0])
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
