"""What of an image is still to be done, and in which pieces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from certframe.store import Run, image_key
from certframe.tally import Interval, Tally
from certframe.worker import CellSpec, Count, Prepare, Prepared


@dataclass
class CellState:
    """The counts of one cell of one image, and what is still to be counted."""

    spec: CellSpec
    missing: deque[Interval]
    tally: Tally | None = None
    under_way: int = 0
    finished: bool = False
    stopped: str = "all samples"
    spared: int = 0
    looks: deque[int] = field(default_factory=deque)


class Job:
    """One image on its way through the run."""

    def __init__(self, index: int, name: str, *, tolerant: bool = False) -> None:
        self.index, self.name, self.key, self.tolerant = index, name, image_key(index, name), tolerant
        self.prepared: Prepared | None = None
        self.asked = False
        self.cells: dict[str, CellState] = {}

    @property
    def finished(self) -> bool:
        """Whether all cells are."""
        return self.prepared is not None and all(cell.finished for cell in self.cells.values())

    @property
    def advanced(self) -> int:
        """The copies that are not to come any more, counted or not needed."""
        return sum(cell.tally.samples + cell.spared for cell in self.cells.values() if cell.tally)

    def begin(self, prepared: Prepared, run: Run, specs: Sequence[CellSpec], samples: int,
              looks: Sequence[int]) -> None:
        """Take up the image, with the counts that an earlier attempt has left."""
        self.prepared = prepared
        for spec in specs:
            tally = run.partial(self.key, spec.key)
            covered = tally.copies if tally else ()
            ahead = [n for n in looks if tally is None or n >= tally.samples]
            self.cells[spec.key] = CellState(spec, deque(_gaps(covered, samples)), tally, looks=deque(ahead))

    def next_task(self, shard: int) -> Prepare | Count | None:
        """The next piece of work, or None while results have to come in first."""
        if self.prepared is None:
            self.asked, before = True, self.asked
            return None if before else Prepare(self.index, self.tolerant)
        waiting = [cell for cell in self.cells.values() if cell.missing and not cell.finished]
        if not waiting:
            return None
        start = min(cell.missing[0][0] for cell in waiting)
        group = [cell for cell in waiting if cell.missing[0][0] == start]
        # Up to the end of a gap or to the next look, and in multiples of the shard, so that an interrupted run goes on
        # with the batches it would have had anyway.
        stop = min([start + shard - start % shard, *(cell.missing[0][1] for cell in group)])
        ahead = [cell.looks[0] for cell in group if cell.looks]
        if ahead and start >= min(ahead):
            return None
        stop = min([stop, *ahead])
        for cell in group:
            cell.under_way += 1
            _take(cell.missing, stop)
        return Count(self.index, tuple(cell.spec.key for cell in group), start, stop)


def _gaps(covered: Sequence[Interval], samples: int) -> Iterator[Interval]:
    position = 0
    for start, stop in covered:
        if position < start:
            yield position, start
        position = stop
    if position < samples:
        yield position, samples


def _take(missing: deque[Interval], stop: int) -> None:
    _, end = missing.popleft()
    if stop < end:
        missing.appendleft((stop, end))
