"""A part of the counts of a run, drawn and explained again.

A tally keeps sums over ranges of copies, its segments. A segment can only be compared as a whole, so segments are what
is chosen: at random, until they have the share of all copies that was asked for. The batches are those of the run,
because the last digits of a network's output may depend on them.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch

from certframe.checking import Check, Findings, Means
from certframe.errors import CertframeError
from certframe.protocols import Model, Sample
from certframe.sampling import Cell, Sampler, Subject
from certframe.store import ImageRecord
from certframe.tally import Tally, merge
from certframe.worker import build_sampler, choose_target, guard

OTHER_MACHINE = 1e-3
"""Share of the counts of a segment that may differ on another type of machine or device, where arithmetic rounds
differently and a pixel at the edge of a level falls to the other side."""
REAL_SLACK = 1e-5
"""How much a sum of real-valued levels may then differ, relative to the number of copies."""
MAP_SLACK = 1e-3
"""How much a clean attribution or a confidence may differ, relative to the largest score."""


@dataclass(frozen=True)
class Segment:
    """A part of a tally whose sum is stored by itself: the copies start, …, stop − 1."""

    image: str
    cell: str
    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Where its counts are stored."""
        return f"tallies/{self.image}/{self.cell}, copies {self.start} to {self.stop - 1}"


def redrawn(means: Means, *, share: float, seed: int, tolerance: float | None) -> Iterator[Check]:
    """Counts, clean attributions and targets, computed again by the model.

    Args:
        means: what there is to check with; its `tallies` are those to choose from.
        share: share of all copies.
        seed: of the choice.
        tolerance: share of the counts of a segment that may differ, or None for the default.
    """
    return _Redrawer(means, share, seed, tolerance).checks()


class _Redrawer:
    def __init__(self, means: Means, share: float, seed: int, tolerance: float | None) -> None:
        self.means, self.run, self.config, self.share, self.seed = means, means.run, means.config, share, seed
        self.same = same_machine(means)
        self.tolerance = tolerance if tolerance is not None else 0.0 if self.same else OTHER_MACHINE
        self.counts, self.maps = Findings(), Findings()
        self.compared, self.differing, self.largest, self.copies = 0, 0, 0, 0

    def checks(self) -> Iterator[Check]:
        """The counts of the chosen segments; attributions and targets of the images that they belong to."""
        total = sum(self.means.tallies.values())
        model = self.means.model
        sampler = self._sampler(model)
        chosen = [] if sampler is None else self._choose(total)
        self.means.listener.begin("noisy copies", sum(s.stop - s.start for s in chosen))
        for image in dict.fromkeys(segment.image for segment in chosen):
            assert not isinstance(model, str)
            assert sampler is not None
            self._image(model, sampler, self.run.image(image), [s for s in chosen if s.image == image])
        yield self.maps.check("clean", f"{self.maps.count} attributions of clean images, and the classes that they "
                                       "explain")
        if chosen and not self.same:
            self.counts.notes.append(f"the run was made {self._where()}: up to {self.tolerance:.3%} of the counts may "
                                     "differ by rounding")
        equal = "all equal" if not self.differing else \
            f"{self.differing:,} differ ({self.differing / self.compared:.4%}), by at most {self.largest:,}"
        yield self.counts.check("redrawn", f"{self.copies:,} of {total:,} noisy copies, chosen with seed {self.seed}: "
                                           f"{self.compared:,} counts{f', {equal}' if self.compared else ''}")

    def _where(self) -> str:
        then = self.run.provenance
        return (f"on {then.get('machine', '?')} {then.get('device', 'of unknown device')} with torch "
                f"{then.get('versions', {}).get('torch', '?')}")

    def _sampler(self, model: Model | str) -> Sampler | None:
        """The run's sampler, or None with the reason noted down."""
        reason = ""
        if isinstance(model, str):
            reason = model
        elif self.means.weights != self.run.provenance.get("weights"):
            reason = "the model has other weights now, so nothing can be drawn again"
        else:
            try:
                # Where counts are kept apart is taken from each tally, so the certifiers need not be there.
                config = self.config.model_copy(update={"certifier": []})
                return build_sampler(config, model, self.means.weights, self.means.registry)
            except CertframeError as error:
                reason = str(error)
        self.counts.unchecked.append(reason)
        self.maps.unchecked.append(reason)
        return None

    # -- the choice ---------------------------------------------------------------------------------------------------

    def _choose(self, total: int) -> list[Segment]:
        """Segments in random order until they have the share; at least one, unless the share is 0."""
        segments: list[Segment] = []
        missing: dict[int, str] = {}
        for (image, cell), samples in self.means.tallies.items():
            attributor = self.means.specs[cell].attributor
            if attributor not in missing:
                built = self.means.built(self.config.attributor[attributor])
                missing[attributor] = built if isinstance(built, str) else ""
            if missing[attributor]:
                continue
            edges = [0, *(cut for cut in self.run.tally(image, cell).cuts if cut < samples), samples]
            segments += [Segment(image, cell, i, a, b) for i, (a, b) in enumerate(pairwise(edges))]
        for reason in filter(None, missing.values()):
            self.counts.unchecked.append(reason)
            self.maps.unchecked.append(reason)
        random.Random(self.seed).shuffle(segments)
        chosen: list[Segment] = []
        while segments and sum(s.stop - s.start for s in chosen) < self.share * total:
            chosen.append(segments.pop())
        return sorted(chosen, key=lambda s: (s.image, s.cell, s.start))

    # -- one image ----------------------------------------------------------------------------------------------------

    def _image(self, model: Model, sampler: Sampler, record: ImageRecord, chosen: Sequence[Segment]) -> None:
        prepared = record.prepared
        image = prepared.image.to(self.means.device)
        memory = torch.channels_last if self.config.channels_last else torch.contiguous_format
        image = image[None].contiguous(memory_format=memory)[0]
        subject = Subject(prepared.name, image, prepared.target, prepared.target_name, prepared.key)
        try:
            self._target(model, record, image)
            for key in dict.fromkeys(segment.cell for segment in chosen):
                cell = self._cell(key)
                self._clean(sampler, subject, cell, record)
                for segment in (s for s in chosen if s.cell == key):
                    self._segment(sampler, subject, cell, segment)
        except CertframeError as error:
            self.counts.findings.append(f"images/{record.key}: {error}")

    def _cell(self, key: str) -> Cell:
        spec = self.means.specs[key]
        method = self.config.attributor[spec.attributor]
        return Cell(key, method.name, self.means.built(method), method.fingerprint, spec.sigma)

    def _target(self, model: Model, record: ImageRecord, image: torch.Tensor) -> None:
        prepared = record.prepared
        sample = Sample(prepared.name, prepared.image, prepared.label, prepared.extras)
        target, confidence = guard(self.config.model, lambda: choose_target(model, sample, image))
        if target != prepared.target:
            self.maps.findings.append(f"images/{record.key}: the class to explain is {target}, not {prepared.target}")
        elif abs(confidence - prepared.confidence) > MAP_SLACK:
            self.maps.findings.append(f"images/{record.key}: the confidence is {confidence:.6g}, not "
                                      f"{prepared.confidence:.6g}")
        if model.classes[prepared.target] != prepared.target_name:
            self.maps.findings.append(f"images/{record.key}: class {prepared.target} is called "
                                      f"'{model.classes[prepared.target]}', not '{prepared.target_name}'")

    def _clean(self, sampler: Sampler, subject: Subject, cell: Cell, record: ImageRecord) -> None:
        index = self.means.specs[cell.key].attributor
        stored = record.prepared.maps[index]
        fresh = guard(self.config.attributor[index], lambda: sampler.clean(subject, cell))
        self.maps.count += 1
        if fresh.shape != stored.shape:
            self.maps.findings.append(f"images/{record.key}: the attribution by {cell.label} has shape "
                                      f"{tuple(fresh.shape)}, not {tuple(stored.shape)}")
        elif float((fresh - stored).abs().max()) > MAP_SLACK * float(stored.abs().max()):
            self.maps.findings.append(f"images/{record.key}: the attribution by {cell.label} comes out differently")

    def _segment(self, sampler: Sampler, subject: Subject, cell: Cell, segment: Segment) -> None:
        """Count the segment again, in the batches that the run had, and compare."""
        stored = self.run.tally(segment.image, segment.cell)
        fresh = self._count(sampler, subject, cell, segment, stored)
        self.copies += segment.stop - segment.start
        has, should = stored.segments[segment.index], fresh.segments[segment.index]
        if has.shape != should.shape:
            self.counts.findings.append(f"{segment.name}: the counts have shape {has.shape} and should have "
                                        f"{should.shape}")
            return
        if (stored.votes is None) != (fresh.votes is None):
            has_no = "it has no class votes" if stored.votes is None else "it has class votes and the method gives none"
            self.counts.findings.append(f"{segment.name}: {has_no}")
        elif stored.votes is not None and fresh.votes is not None:
            has = np.concatenate([has.ravel(), stored.votes[segment.index] * stored.unit])
            should = np.concatenate([should.ravel(), fresh.votes[segment.index] * stored.unit])
        self._compare(segment, has, should, stored.unit)

    def _count(self, sampler: Sampler, subject: Subject, cell: Cell, segment: Segment, stored: Tally) -> Tally:
        size = self.config.batch_size
        grid = sorted({*range(0, stored.samples, size), *self._looks(), stored.samples})
        low = max(edge for edge in grid if edge <= segment.start)
        high = min(edge for edge in grid if edge >= segment.stop)
        edges = [edge for edge in grid if low <= edge <= high]
        sampler.cuts = stored.cuts
        parts, told = [], segment.start
        for start, stop in pairwise(edges):
            part = guard(self.config.attributor[self.means.specs[cell.key].attributor],
                         lambda: sampler.sample(subject, [cell], start, stop))[cell.key]  # noqa: B023
            parts.append(part)
            now = min(max(stop, segment.start), segment.stop)
            self.means.listener.advance(now - told)
            told = now
        return merge(parts)

    def _looks(self) -> set[int]:
        """Where the run has ended a batch because an adaptive certifier looked."""
        certifiers = [self.means.built(c) for c in self.config.certifier]
        schedules = [c.looks(self.config.samples) for c in certifiers if not isinstance(c, str)]
        return {n for s in schedules if s is not None for n in s.looks}

    def _compare(self, segment: Segment, has: np.ndarray, should: np.ndarray, unit: int) -> None:
        difference = np.abs(has - should)
        slack = REAL_SLACK * unit * (segment.stop - segment.start) if unit > 1 and self.tolerance else 0.0
        wrong = int((difference > slack).sum())
        self.compared += difference.size
        self.differing += wrong
        largest = int(np.ceil(difference.max() / unit))
        self.largest = max(self.largest, largest if wrong else 0)
        if wrong > self.tolerance * difference.size:
            self.counts.findings.append(f"{segment.name}: {wrong:,} of {difference.size:,} counts differ, by at most "
                                        f"{largest:,}")


def same_machine(means: Means) -> bool:
    """Whether this is the type of machine, of device and the torch that made the run."""
    then = means.run.provenance
    here = (platform.machine(), means.device.type if means.device is not None else "", version("torch"))
    return here == (then.get("machine"), then.get("device"), then.get("versions", {}).get("torch"))
