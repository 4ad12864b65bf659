"""Ratios of two ways to do the same thing, measured alternately in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """Best seconds of both sides over the repetitions."""

    ours: float
    theirs: float

    @property
    def value(self) -> float:
        """Below 1 we are faster."""
        return self.ours / self.theirs


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], repetitions: int = 5) -> Ratio:
    """Run both once to warm up, then alternately, and keep the best time of each."""
    ours(), theirs()
    best = [float("inf"), float("inf")]
    for _ in range(repetitions):
        for side, work in enumerate((ours, theirs)):
            gc.collect()
            begin = time.perf_counter()
            work()
            best[side] = min(best[side], time.perf_counter() - begin)
    return Ratio(*best)


def record(benchmark: Any, name: str, ratio: Ratio, **more: Any) -> None:
    """Put a ratio into pytest-benchmark's record and on the screen."""
    benchmark.extra_info.update({"ratio": ratio.value, "ours_s": ratio.ours, "theirs_s": ratio.theirs, **more})
    shown = "".join(f", {key} {value:.4g}" if isinstance(value, float) else f", {key} {value}"
                    for key, value in more.items())
    print(f"\n{name}: {ratio.ours:.4f} s against {ratio.theirs:.4f} s, ratio {ratio.value:.3f}{shown}")
