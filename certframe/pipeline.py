"""Data set × attributors × noise levels → run directory, with resumption, progress and adaptive stopping.

The pipeline plans; executors work. It asks for images to be prepared and for ranges of copies to be counted, adds the
tallies up, certifies when an image has all its copies (or its certifier has seen enough) and stores the result. It is
the only writer of the run directory.
"""

from __future__ import annotations

import functools
import platform
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from certframe.config import RunConfig
from certframe.device import resolve_device
from certframe.errors import CertframeError, UsageError, one_line
from certframe.feasibility import proof_of, require_samples
from certframe.jobs import CellState, Job
from certframe.noise import STREAM
from certframe.protocols import Dataset, Executor
from certframe.proving import prove
from certframe.registry import Registry
from certframe.store import Run, explanation_of, image_key
from certframe.worker import (
    Count,
    Counted,
    Measure,
    Measured,
    Prepare,
    Prepared,
    Worker,
    cells_of,
    component_key,
)

CHECKPOINT_SECONDS = 15.0
"""Counts of images under way are written at least this often."""
SHARD_SECONDS = 2.0
"""Ranges of copies grow until one takes about this long."""


class Listener(Protocol):
    """Hears how a run is going."""

    def begin(self, copies: int, done: int) -> None:
        """So many noisy copies are to be explained in all, so many of them were before."""

    def advance(self, copies: int) -> None:
        """So many more copies have been explained."""

    def image(self, name: str) -> None:
        """Work on an image begins."""

    def note(self, message: str) -> None:
        """Something the user should know."""


class Silent:
    """A listener that does nothing."""

    def begin(self, copies: int, done: int) -> None:
        """Ignore."""

    def advance(self, copies: int) -> None:
        """Ignore."""

    def image(self, name: str) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""


class Pipeline:
    """Carries a run out.

    Args:
        config: the run.
        out: its directory; an unfinished run of the same configuration there is resumed.
        registry: where plugins are looked up.
        listener: hears of progress.
        keep_going: record what fails in an unforeseen way on an image, or one method of several, and go on; what was
            recorded before is not tried again. Otherwise such a failure ends the run, which can be resumed, and images
            that could not be used are tried again when it is.
    """

    def __init__(self, config: RunConfig, out: Path, *, registry: Registry | None = None,
                 listener: Listener | None = None, keep_going: bool = False) -> None:
        self.config, self.out, self.registry, self.keep_going = config, out, registry, keep_going
        self._bearable: type[Exception] = Exception if keep_going else UsageError
        self.listener: Listener = listener or Silent()
        self.specs = cells_of(config)
        self.run: Run | None = None
        self._per_image = config.samples * len(self.specs)
        self._shard = config.batch_size
        self._saved = time.monotonic()
        self._jobs: dict[int, Job] = {}
        self._noted: set[str] = set()

    # -- before any model work ----------------------------------------------------------------------------------------

    def execute(self) -> Run:
        """Do what is not done yet.

        Raises:
            UsageError: something asked for is wrong; nothing has been written.
            CertframeError: the work failed; what was finished is kept.
        """
        config = self.config
        resolve_device(config.device)
        self.certifiers, _ = proof_of(config, self.registry)
        self._needs = {c.name: frozenset(c.build(self.registry).requires) - {"labels", "model"} for c in config.metric}
        dataset: Dataset = config.dataset.build(self.registry)
        indices = self._indices(dataset)
        self.run = Run.find(self.out, config)
        if self.run is not None:
            with self.run.locked():
                return self._carry_out(dataset, indices)
        executor = self._start_executor()
        try:
            first, failures = self._first_usable(executor, dataset, indices)
            self._require_space(len(indices), first)
            self.run = Run.create(self.out, config, provenance(config, first.weights))
            with self.run.locked():
                for index, name, reason in failures:
                    self._fail(index, name, reason)
                skip = {index for index, _, _ in failures}
                return self._work(executor, dataset, [i for i in indices if i not in skip], first)
        finally:
            executor.close()

    def _indices(self, dataset: Dataset) -> list[int]:
        if len(dataset) == 0:
            raise UsageError(f"data set '{self.config.dataset.name}' has no images: give one that has")
        return list(range(min(len(dataset), self.config.limit or len(dataset))))

    def _require_space(self, images: int, first: Prepared) -> None:
        pixels = sum(m.numel() for m in first.maps) * len(self.config.sigma)
        levels = len(self.config.sparsifier.build(self.registry).levels)
        width = 1 if self.config.samples < 256 else 2 if self.config.samples < 65536 else 4
        needed = images * (first.image.numel() * 4 + pixels * levels * (2 * width + 2))
        place = self.out.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed > free:
            raise UsageError(f"the run needs about {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free: "
                             "make room, give another place with --out, or use fewer images with --limit")

    # -- the work ------------------------------------------------------------------------------------------------------

    def _start_executor(self) -> Executor:
        executor: Executor = self.config.executor.build(self.registry)
        executor.start(functools.partial(Worker, self.config, self.registry))
        return executor

    def _first_usable(self, executor: Executor, dataset: Dataset,
                      indices: Sequence[int]) -> tuple[Prepared, list[tuple[int, str, str]]]:
        """Prepare the first image that can be used, before anything is written."""
        failures: list[tuple[int, str, str]] = []
        error: Exception | None = None
        for index in indices:
            try:
                prepared: Prepared = executor.submit(Prepare(index, self.keep_going)).result()
            except self._bearable as caught:
                failures.append((index, dataset.name(index), one_line(caught)))
                error = error or caught
            else:
                self._require_samples_for(prepared)
                return prepared, failures
        raise error or UsageError("no image could be used")

    def _require_samples_for(self, prepared: Prepared) -> None:
        levels = len(self.config.sparsifier.build(self.registry).levels)
        for component, m in zip(self.config.attributor, prepared.maps, strict=True):
            if m.numel() == 0:
                continue  # the method has failed
            require_samples(self.config, self.certifiers, m.numel(), levels,
                            f"the {m.shape[0]}×{m.shape[1]} map of {component.name}")

    def _carry_out(self, dataset: Dataset, indices: Sequence[int]) -> Run:
        """Resume: start the executor only when something is left to do."""
        assert self.run is not None
        left = [i for i in indices if not self._is_settled(image_key(i, dataset.name(i)))]
        if not left:
            self.run.write_table()
            return self.run
        executor = self._start_executor()
        try:
            return self._work(executor, dataset, left, None, finished=len(indices) - len(left))
        finally:
            executor.close()

    def _work(self, executor: Executor, dataset: Dataset, indices: Sequence[int], first: Prepared | None,
              finished: int = 0) -> Run:
        assert self.run is not None
        if first is None:
            for index in indices:
                self.run.clear_failures(image_key(index, dataset.name(index)))
        begun = (self.run.partial(image_key(i, dataset.name(i)), spec.key) for i in indices for spec in self.specs)
        self.listener.begin(self._per_image * (len(indices) + finished),
                            self._per_image * finished + sum(tally.samples for tally in begun if tally))
        self.run.log("begin", images=len(indices), device=self.config.device, batch_size=self.config.batch_size)
        queue = deque(indices)
        under_way: dict[Future[Any], tuple[Job, Any, float]] = {}
        try:
            while queue or self._jobs or under_way:
                self._fill(executor, dataset, queue, under_way, first)
                if not under_way:
                    raise CertframeError("the pipeline has stalled: no task is under way although work is left")
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    self._deliver(executor, under_way, *under_way.pop(future), future)
                self._checkpoint()
        except BaseException:
            self._checkpoint(force=True)
            raise
        self.run.write_table()
        self.run.log("end")
        return self.run

    def _fill(self, executor: Executor, dataset: Dataset, queue: deque[int],
              under_way: dict[Future[Any], tuple[Job, Any, float]], first: Prepared | None) -> None:
        """Keep the executor's slots busy: with images under way first, then with new ones."""
        for job in list(self._jobs.values()):
            while len(under_way) < executor.slots and (task := job.next_task(self._shard)):
                under_way[executor.submit(task)] = (job, task, time.monotonic())
        while queue and len(under_way) < executor.slots:
            index = queue.popleft()
            job = self._jobs[index] = Job(index, dataset.name(index), tolerant=self.keep_going)
            self.listener.image(job.name)
            if first is not None and first.index == index:
                self._begin(job, first)
            while len(under_way) < executor.slots and (task := job.next_task(self._shard)):
                under_way[executor.submit(task)] = (job, task, time.monotonic())

    def _deliver(self, executor: Executor, under_way: dict[Future[Any], tuple[Job, Any, float]], job: Job, task: Any,
                 since: float, future: Future[Any]) -> None:
        if job.index not in self._jobs:
            return  # the image has failed meanwhile
        try:
            result = future.result()
        except self._bearable as error:
            if self.keep_going and isinstance(task, Count):
                self._isolate(executor, under_way, job, task, one_line(error))
            else:
                self._fail(job.index, job.name, one_line(error))
                self.listener.advance(self._per_image - job.advanced)
                del self._jobs[job.index]
                return
        else:
            if isinstance(task, Prepare):
                self._begin(job, result)
            else:
                self._add(job, task, result, time.monotonic() - since)
        for cell in job.cells.values():
            if not cell.finished and self._is_complete(cell):
                self._finish(executor, job, cell)
        if job.finished:
            self._close(job)

    def _isolate(self, executor: Executor, under_way: dict[Future[Any], tuple[Job, Any, float]], job: Job,
                 task: Count, reason: str) -> None:
        """One of the methods of a task has failed: try each by itself, and give up on the one that fails then."""
        if len(task.cells) > 1:
            for key in task.cells:
                alone = Count(task.index, (key,), task.start, task.stop)
                under_way[executor.submit(alone)] = (job, alone, time.monotonic())
            return
        cell = job.cells[task.cells[0]]
        cell.under_way -= 1
        if not cell.finished:
            self._fail_cell(job, cell, reason)

    def _fail_cell(self, job: Job, cell: CellState, reason: str) -> None:
        """Record that a method at a noise level could not be used on an image."""
        assert self.run is not None
        cell.finished = True
        self.run.save_failure(job.index, job.name, reason, cell.spec.key)
        self.run.log("failure", name=job.name, cell=cell.spec.key, reason=reason)
        method = self.config.attributor[cell.spec.attributor].name
        self.listener.note(f"{job.name}, {method}, σ = {cell.spec.sigma:g}: {reason}")
        self.listener.advance(self.config.samples - (cell.tally.samples if cell.tally else 0))

    def _is_settled(self, image: str) -> bool:
        """Whether nothing is left to do for an image: it is done or, when going on after failures, known to fail."""
        assert self.run is not None
        if not self.keep_going:
            return self.run.is_done(image)
        if self.run.has_failed(image):
            return True
        return all(self.run.is_done(image, [spec]) or self.run.has_failed(image, spec.key) for spec in self.specs)

    def _begin(self, job: Job, prepared: Prepared) -> None:
        assert self.run is not None
        if self.run.provenance["weights"] != prepared.weights:
            raise UsageError(f"{self.run.path} was begun with other model weights: give another directory with --out")
        self.run.save_image(prepared)
        self._say_what_is_not_measured(prepared)
        job.begin(prepared, self.run, self.specs, self.config.samples, self._looks())
        for spec in self.specs:
            if spec.attributor in prepared.failures:
                self._fail_cell(job, job.cells[spec.key], prepared.failures[spec.attributor])

    def _say_what_is_not_measured(self, prepared: Prepared) -> None:
        """Once for every metric: an image lacks what it needs."""
        for name, needs in list(self._needs.items()):
            if missing := sorted(needs - prepared.extras.keys()):
                del self._needs[name]
                self.listener.note(f"metric '{name}' is left out where an image has no {' and no '.join(missing)}, as "
                                   f"{prepared.name}: it is measured on data sets that give them")

    def _looks(self) -> list[int]:
        schedules = [s for certifier in self.certifiers if (s := certifier.looks(self.config.samples)) is not None]
        return sorted({n for s in schedules for n in s.looks if n < self.config.samples})

    def _add(self, job: Job, task: Count, result: Counted, seconds: float) -> None:
        for note in result.notes:
            self._note(note)
        for key, tally in result.tallies.items():
            cell = job.cells[key]
            if cell.finished:
                continue  # it has failed meanwhile
            cell.tally = tally if cell.tally is None else cell.tally.merge(tally)
            cell.under_way -= 1
        self.listener.advance((task.stop - task.start) * len(task.cells))
        if seconds < SHARD_SECONDS / 2 and task.stop - task.start >= self._shard:
            self._shard *= 2

    def _is_complete(self, cell: CellState) -> bool:
        """All copies counted, or every certifier of the run has seen enough."""
        if cell.under_way:
            return False
        if not cell.missing:
            return True
        if not (cell.looks and cell.tally and cell.tally.samples >= cell.looks[0]):
            return False
        look = cell.looks.popleft()
        verdicts = [schedule.done(cell.tally) if look in schedule.looks else (False, "")
                    for certifier in self.certifiers
                    if (schedule := certifier.looks(self.config.samples)) is not None]
        if len(verdicts) == len(self.certifiers) and all(stop for stop, _ in verdicts):
            cell.stopped = "; ".join(dict.fromkeys(reason for _, reason in verdicts))
            cell.spared = sum(stop - start for start, stop in cell.missing)
            self.listener.advance(cell.spared)
            return True
        return False

    def _finish(self, executor: Executor, job: Job, cell: CellState) -> None:
        """Certify, measure and store one cell of an image."""
        assert self.run is not None
        assert job.prepared is not None
        assert cell.tally is not None
        for certifier, component in zip(self.certifiers, self.config.certifier, strict=True):
            certificate = prove(certifier, cell.tally)
            explanation = explanation_of(job.prepared, cell.spec.attributor, cell.tally, certificate)
            measured: Measured = executor.submit(Measure(explanation, self.keep_going)).result()
            name = self.config.attributor[cell.spec.attributor].name
            for metric, reason in measured.failures.items():
                self.run.save_failure(job.index, job.name, reason, f"{cell.spec.key}--{metric}")
                self.listener.note(f"{job.name}, {name}, σ = {cell.spec.sigma:g}: {reason}")
            self.run.save_result(explanation, job.key, cell.spec.key, name, component_key(component),
                                 metrics=measured.values, stopped=cell.stopped)
            for warning in certificate.warnings:
                self.listener.note(f"{job.name}, {name}, σ = {cell.spec.sigma:g}: {warning}")
        cell.finished = True

    def _close(self, job: Job) -> None:
        assert self.run is not None
        self.run.drop_partial(job.key)
        self.run.log("image", name=job.name)
        del self._jobs[job.index]

    def _fail(self, index: int, name: str, reason: str) -> None:
        assert self.run is not None
        self.run.drop_partial(image_key(index, name))
        self.run.save_failure(index, name, reason)
        self.run.log("failure", name=name, reason=reason)
        self.listener.note(f"skipped {name}: {reason}")

    def _note(self, text: str) -> None:
        """Something that a place of work has to say: for the user and the log, once."""
        assert self.run is not None
        if text not in self._noted:
            self._noted.add(text)
            self.run.log("note", text=text)
            self.listener.note(text)

    def _checkpoint(self, *, force: bool = False) -> None:
        """Write the counts of images under way, now and then and when the run is interrupted."""
        if self.run is None or not (force or time.monotonic() - self._saved > CHECKPOINT_SECONDS):
            return
        for job in self._jobs.values():
            for key, cell in job.cells.items():
                if cell.tally is not None and not cell.finished:
                    cell.tally.save(self.run.tally_path(job.key, key, partial=True))
        self._saved = time.monotonic()


def provenance(config: RunConfig, weights: str) -> dict[str, Any]:
    """What made a run: versions, owners of the plugins, weights, definition of the noise."""
    components = [config.model, config.dataset, *config.attributor, config.sparsifier, *config.certifier,
                  *config.metric, config.executor]
    return {
        "weights": weights, "noise": STREAM, "python": platform.python_version(), "machine": platform.machine(),
        "device": resolve_device(config.device).type,
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy", "pillow", "pydantic")},
        "plugins": {f"{c.kind} {c.name}": f"{c.distribution} {c.version}" for c in components},
    }


def execute(config: RunConfig, out: Path, *, registry: Registry | None = None,
            listener: Listener | None = None, keep_going: bool = False) -> Run:
    """Carry a run out, or resume it; see `Pipeline`."""
    return Pipeline(config, out, registry=registry, listener=listener, keep_going=keep_going).execute()


