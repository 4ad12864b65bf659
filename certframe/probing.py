"""A short trial of a run that has not begun: what the methods return, and how long they take on this machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from certframe.config import RunConfig, distinct
from certframe.errors import UsageError
from certframe.noise import GaussianNoise
from certframe.registry import Registry
from certframe.tally import Tally
from certframe.worker import Count, Prepared, Worker, cells_of

LONG_CALL, SHORT_CALL = 3.0, 0.5
"""A timed call has a batch, fewer copies when that would take longer, several batches when it would take less."""
ENOUGH_SECONDS, ENOUGH_CALLS, MOST_CALLS = 3.0, 3, 9
"""Calls are repeated until they have taken so long and are so many, or have taken twice as long."""


@dataclass(frozen=True)
class MethodTime:
    """How long one method takes.

    Attributes:
        attributor: its name.
        seconds: for one noisy copy, noise not included; the median of `calls` calls.
        copies: noisy copies in one timed call.
        shape: h, w of its maps as they are certified.
        votes: whether it computes logits, so that classes are voted for.
    """

    attributor: str
    seconds: float
    copies: int
    calls: int
    shape: tuple[int, int]
    votes: bool


@dataclass(frozen=True)
class Probe:
    """Measured times and memory.

    Attributes:
        device: where the work was done.
        methods: a time for every attributor.
        noise: seconds to draw the noise of one copy; it is drawn once for all methods and noise levels.
        prepare: seconds to read an image and explain it without noise by every method.
        memory: most bytes that this process has occupied so far, None where that is not known.
        device_memory: most bytes that tensors have occupied on an accelerator, None on a CPU.
    """

    device: str
    methods: tuple[MethodTime, ...]
    noise: float
    prepare: float
    memory: int | None
    device_memory: int | None


class Prober:
    """Builds the run's worker here and prepares the first image that can be used.

    Args:
        config: the run.
        registry: where plugins are looked up.
        indices: images to try, in this order.

    Raises:
        UsageError: no image can be used; says why the first cannot.
    """

    def __init__(self, config: RunConfig, registry: Registry | None, indices: Sequence[int]) -> None:
        self.config, self.worker = config, Worker(config, registry)
        started = time.perf_counter()
        self.prepared = self._first_usable(indices)
        self._prepare = time.perf_counter() - started
        self.shapes = [(int(m.shape[0]), int(m.shape[1])) for m in self.prepared.maps]
        cells = reversed(cells_of(config))
        keys = {cell.attributor: cell.key for cell in cells}
        self._keys = [keys[i] for i in range(len(config.attributor))]
        self._first = [self._timed(key, 1) for key in self._keys]
        self.voted = [tally.votes is not None for _, tally in self._first]

    def _first_usable(self, indices: Sequence[int]) -> Prepared:
        refusal: UsageError | None = None
        for index in indices:
            try:
                return self.worker.prepare(index)
            except UsageError as error:
                refusal = refusal or error
        raise refusal or UsageError("no image could be used")

    def _timed(self, key: str, copies: int) -> tuple[float, Tally]:
        """Seconds for the first so many copies; the counts are fetched from the device, so all work is done then."""
        started = time.perf_counter()
        tally = self.worker.count(Count(self.prepared.index, (key,), 0, copies)).tallies[key]
        return time.perf_counter() - started, tally

    def measure(self) -> Probe:
        """Time every method, after a warm-up; some seconds each."""
        noise = self._noise()
        methods = []
        for name, key, shape, voted, first in zip(distinct(self.config.attributor), self._keys, self.shapes, self.voted,
                                                  self._first, strict=True):
            copies, times = 1, [first[0]]
            if first[0] < LONG_CALL:  # else one copy is enough: the clean image was the warm-up
                copies = self._size(key, first[0])
                times = _repeat(lambda: self._timed(key, copies)[0])  # noqa: B023
            seconds = max(statistics.median(times) / copies - noise, 0.0)
            methods.append(MethodTime(name, seconds, copies, len(times), shape, voted))
        device = self.worker.device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return Probe(str(device), tuple(methods), noise, self._prepare, peak_memory(), peak)

    def _size(self, key: str, first: float) -> int:
        """Copies in one timed call."""
        batch = min(self.config.batch_size, self.config.samples)
        if first * batch > LONG_CALL * 4:  # in a batch a copy takes a good deal less than by itself
            return max(1, int(LONG_CALL / first))
        batches = int(SHORT_CALL / self._timed(key, batch)[0]) + 1
        return min(batches * batch, self.config.samples)

    def _noise(self) -> float:
        """Seconds for the noise of one copy."""
        copies = min(self.config.batch_size, self.config.samples)
        source = GaussianNoise(self.config.seed, self.prepared.key)

        def draw() -> float:
            started = time.perf_counter()
            source.draw(0, copies, self.prepared.image.shape, self.worker.device)[-1].sum().item()
            return time.perf_counter() - started
        draw()
        return statistics.median(draw() for _ in range(ENOUGH_CALLS)) / copies


def _repeat(call: Callable[[], float]) -> list[float]:
    times = [call()]
    while len(times) < MOST_CALLS and sum(times) < ENOUGH_SECONDS * (1 if len(times) >= ENOUGH_CALLS else 2):
        times.append(call())
    return times


def peak_memory() -> int | None:
    """Most bytes of main memory that this process has occupied; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
