"""Ratios of two ways to do the same thing, measured alternately in one process; peak memory, in processes of their own.

Benchmarks call `settle` first, so that all sides have the same allocator and the same number of threads.
"""

from __future__ import annotations

import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ratio:
    """Best seconds of both sides over the repetitions, and the ratio of each repetition."""

    ours: float
    theirs: float
    pairs: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """Below 1 we are faster."""
        return self.ours / self.theirs

    @property
    def paired(self) -> dict[str, float]:
        """Median and quartiles of the repetitions' ratios: what neighbours on the machine do hits both of a pair."""
        low, median, high = statistics.quantiles(self.pairs, n=4, method="inclusive") if len(self.pairs) > 1 else \
            self.pairs * 3
        return {"median": median, "low": low, "high": high}


def settle(threads: int) -> None:
    """Tune the allocator, as the command line does for runs on a CPU, and fix the number of threads."""
    import torch

    from certframe.cli.allocator import tune_allocator
    tune_allocator()
    torch.set_num_threads(threads)


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], repetitions: int = 5,
              clock: Callable[[], float] = time.perf_counter) -> Ratio:
    """Run both once to warm up, then alternately, and keep the best time of each."""
    ours(), theirs()
    seconds = [(_seconds(ours, clock), _seconds(theirs, clock)) for _ in range(repetitions)]
    return Ratio(*map(min, zip(*seconds, strict=True)), pairs=tuple(a / b for a, b in seconds))


def medians(works: Mapping[str, Callable[[], Any]], repetitions: int = 5) -> dict[str, float]:
    """Median seconds of each of several works, run in turns, after one turn to warm up."""
    turns = [{name: _seconds(work, time.perf_counter) for name, work in works.items()} for _ in range(repetitions + 1)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in works}


def _seconds(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    gc.collect()
    begin = clock()
    work()
    return clock() - begin


def fresh(code: str) -> Any:
    """Run Python code in a process of its own, this folder on its path; what it prints last, read as JSON."""
    return _last_line(["-c", f"import sys; sys.path.insert(0, {str(HERE)!r})\n{code}"])


def run_script(name: str, *arguments: str) -> Any:
    """The same for a script of this folder."""
    return _last_line([str(HERE / name), *arguments])


def _last_line(arguments: Sequence[str]) -> Any:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> float:
    """Peak memory of this process in MB; Linux. (A process takes its ru_maxrss over from the one that started it.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


_PEAK = """
import json, torch
from measure import peak
torch.set_num_threads({threads})
{before}
base = peak()
{work}
print(json.dumps({{"base": base, "peak": peak()}}))
"""


def peak_memory(before: str, work: str, threads: int = 2) -> dict[str, float]:
    """Peak memory in MB after two pieces of code, in a process of its own with the allocator as it comes."""
    found: dict[str, float] = fresh(_PEAK.format(before=before, work=work, threads=threads))
    return found


def record(benchmark: Any, name: str, ratio: Ratio, **more: Any) -> None:
    """Put a ratio into pytest-benchmark's record and on the screen."""
    benchmark.extra_info.update({"ratio": ratio.value, "ours_s": ratio.ours, "theirs_s": ratio.theirs, **more})
    shown = "".join(f", {key} {value:.4g}" if isinstance(value, float) else f", {key} {value}"
                    for key, value in more.items())
    print(f"\n{name}: {ratio.ours:.4f} s against {ratio.theirs:.4f} s, ratio {ratio.value:.3f}{shown}")
